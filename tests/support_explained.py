"""The stage that explains a model, run on the tiny world of `tests/counterfactual/conftest.py`."""

import numpy as np
import torch
from torch import Tensor

from audit.config import AuditConfig
from audit.counterfactual.methods import choose_method
from audit.data.audit_set import AuditSet
from audit.embeddings.embedding import Embedder, FeatureNetwork, Pixels
from audit.generator.protocol import LoadedGenerator
from audit.pipeline.explain import Explained, calibrate, explain_model
from audit.pipeline.networks import Networks
from audit.storage.cache import Store

CPU = torch.device("cpu")


class Differences(Pixels):
    """Raw pixels, and their differences as maps."""

    def maps(self, images: Tensor) -> list[Tensor]:
        return [images[..., 1:] - images[..., :-1]]


class Other(Differences):
    """The same under another name."""

    name = "other"


DIFFERENCES = Differences(16)


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
    pixels = images.numpy()
    calibration = AuditSet(
        read_image=lambda row: pixels[row].transpose(1, 2, 0),
        labels=labels.numpy(),
        class_names=world.classifier.class_names,
        ids=tuple(map(str, range(len(images)))),
        splits=np.array(["calibration"] * len(images)),
        image_shape=tuple(images.shape[1:]),
    )
    networks = Networks(LoadedGenerator(world.generator, "sha"), None, embedding, perceptual)
    known = calibrate(world.classifier, calibration, config, CPU)
    with torch.no_grad():
        logits = world.classifier(world.queries)
    return explain_model(
        world.classifier, known, config, networks, world.queries, world.sources, logits, world.inversion, store,
        choose_method(config.counterfactual, config.seed),
    )  # fmt: skip
