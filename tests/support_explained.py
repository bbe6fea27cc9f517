"""The stage that explains a model, run on the tiny world of `tests/counterfactual/conftest.py`."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from audit.config import AuditConfig
from audit.counterfactual.methods import choose_method
from audit.data.audit_set import AuditSet
from audit.embeddings.embedding import Embedder, FeatureNetwork, Pixels
from audit.generator.protocol import LoadedGenerator
from audit.pipeline.calibrate import calibrate
from audit.pipeline.context import Context
from audit.pipeline.explain import Explained, Subject, explain_model
from audit.pipeline.networks import Networks
from audit.pipeline.queries import Queries
from audit.robustness.accuracy import clean_of_logits
from audit.runtime.environment import Stopwatch
from audit.storage.cache import Store


class Differences(Pixels):
    """Raw pixels, and their differences as maps."""

    def maps(self, images: Tensor) -> list[Tensor]:
        return [images[..., 1:] - images[..., :-1]]


class Other(Differences):
    """The same under another name."""

    name = "other"


DIFFERENCES = Differences(16)


def image_set(images: Tensor, labels: Tensor, names: tuple[str, ...] = ("dark", "bright"), **more: Any) -> AuditSet:
    """The `images [N, C, H, W]` as a data set, with ids "0", "1", ..."""
    pixels = images.numpy()
    return AuditSet(
        read_image=lambda row: pixels[row].transpose(1, 2, 0),
        labels=labels.numpy(),
        class_names=names,
        ids=tuple(map(str, range(len(images)))),
        splits=np.array(["calibration"] * len(images)),
        image_shape=(images.shape[1], images.shape[2], images.shape[3]),
        **more,
    )


def explained(
    world,
    images: Tensor,
    labels: Tensor,
    store: Store | None,
    *,
    embedding: Embedder = DIFFERENCES,
    perceptual: FeatureNetwork = DIFFERENCES,
    **changes: object,
) -> Explained:
    given = world.config.model_dump() | {"steps": 30, "batch_size": 8} | changes
    config = AuditConfig.model_validate(
        {
            "data": {"path": "none"},
            "classifiers": [{"name": "tiny", "file": "none"}],
            "queries": {"target": "runner-up"},
            "counterfactual": given,
        }
    )
    calibration = image_set(images, labels)
    networks = Networks(LoadedGenerator(world.generator, "sha"), None, embedding, perceptual)
    context = Context(config, Path.cwd(), torch.device("cpu"), store, Stopwatch())
    with torch.no_grad():
        logits = world.classifier(world.queries)
    known = calibrate(context, world.classifier, calibration)
    subject = Subject(known, logits, clean_of_logits(logits, world.sources, world.classifier.class_names))
    queries = Queries(image_set(world.queries, world.sources), torch.arange(len(logits)), world.inversion)
    return explain_model(context, choose_method(config.counterfactual, config.seed), networks, queries, subject)
