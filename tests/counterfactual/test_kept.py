"""What the cached counterfactuals of a model are found by: everything that the search depends on."""

from pathlib import Path

import pytest
import torch
from support_explained import Other, explained
from torch import Tensor

from audit.storage.cache import Store


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
    assert (after.subject.calibrated.operating_point < first.subject.calibrated.operating_point).all()
    assert len(list(tmp_path.rglob("*.safetensors"))) == 2
    fresh = explained(world, images, relabelled, None)
    assert torch.equal(after.counterfactuals.images, fresh.counterfactuals.images)
    assert not torch.equal(after.counterfactuals.images, first.counterfactuals.images)


def test_the_same_question_is_answered_from_the_cache(world, images: Tensor, labels: Tensor, tmp_path: Path) -> None:
    store = Store(tmp_path)
    first = explained(world, images, labels, store)
    again = explained(world, images, labels, store)
    assert len(list(tmp_path.rglob("*.safetensors"))) == 1
    assert torch.equal(first.counterfactuals.images, again.counterfactuals.images)


def test_another_embedding_for_the_metrics_asks_for_the_same_counterfactuals(
    world, images: Tensor, labels: Tensor, tmp_path: Path
) -> None:
    store = Store(tmp_path)
    first = explained(world, images, labels, store)
    again = explained(world, images, labels, store, embedding=Other(8))
    assert len(list(tmp_path.rglob("*.safetensors"))) == 1
    assert torch.equal(first.counterfactuals.images, again.counterfactuals.images)
    explained(world, images, labels, store, perceptual=Other(16))
    assert len(list(tmp_path.rglob("*.safetensors"))) == 2
