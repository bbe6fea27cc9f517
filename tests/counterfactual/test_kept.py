"""What the cached counterfactuals of a model are found by: everything that the search depends on."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from audit.config import AuditConfig
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
        world.classifier, known, config, networks, world.queries, world.sources, logits, world.inversion, store, CPU
    )


@pytest.fixture(scope="module")
def labels(world, images: Tensor) -> Tensor:
    with torch.no_grad():
        return world.classifier(images).argmax(1)


def test_relabelled_calibration_images_ask_for_other_counterfactuals(
    world, images: Tensor, labels: Tensor, tmp_path: Path
) -> None:
    """Their labels set the operating point, and nothing else that a cached entry could be told by."""
    store = Store(tmp_path)
    first = explained(world, images, labels, store)
    assert len(list(tmp_path.rglob("*.safetensors"))) == 1
    with torch.no_grad():
        sure = world.classifier(images).softmax(1).amax(1)
    relabelled = labels.clone()
    for index in (0, 1):
        rows = (labels == index).nonzero()[:, 0]
        relabelled[rows[sure[rows] > sure[rows].median()]] = 1 - index
    after = explained(world, images, relabelled, store)
    assert (after.operating_point < first.operating_point).all()
    assert len(list(tmp_path.rglob("*.safetensors"))) == 2
    fresh = explained(world, images, relabelled, None)
    assert torch.equal(after.found.images, fresh.found.images)
    assert not torch.equal(after.found.images, first.found.images)


def test_the_same_question_is_answered_from_the_cache(world, images: Tensor, labels: Tensor, tmp_path: Path) -> None:
    store = Store(tmp_path)
    first = explained(world, images, labels, store)
    again = explained(world, images, labels, store)
    assert len(list(tmp_path.rglob("*.safetensors"))) == 1
    assert torch.equal(first.found.images, again.found.images)


def test_another_embedding_for_the_metrics_asks_for_the_same_counterfactuals(
    world, images: Tensor, labels: Tensor, tmp_path: Path
) -> None:
    store = Store(tmp_path)
    first = explained(world, images, labels, store)
    again = explained(world, images, labels, store, embedding=Other(8))
    assert len(list(tmp_path.rglob("*.safetensors"))) == 1
    assert torch.equal(first.found.images, again.found.images)
    explained(world, images, labels, store, perceptual=Other(16))
    assert len(list(tmp_path.rglob("*.safetensors"))) == 2
