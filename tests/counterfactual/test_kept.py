"""What the cached counterfactuals of a model are found by: everything that the search depends on."""

from pathlib import Path

import pytest
import torch
from support_explained import Other, explained
from support_store import kept
from torch import Tensor

from audit.pipeline.explain import COUNTERFACTUALS
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
    assert kept(tmp_path)[COUNTERFACTUALS] == 1
    with torch.no_grad():
        sure = world.classifier(images).softmax(1).amax(1)
    relabelled = labels.clone()
    for index in (0, 1):
        rows = (labels == index).nonzero()[:, 0]
        relabelled[rows[sure[rows] > sure[rows].median()]] = 1 - index
    after = explained(world, images, relabelled, store)
    assert (after.subject.calibrated.operating_point < first.subject.calibrated.operating_point).all()
    assert kept(tmp_path)[COUNTERFACTUALS] == 2
    fresh = explained(world, images, relabelled, None)
    assert torch.equal(after.counterfactuals.images, fresh.counterfactuals.images)
    assert not torch.equal(after.counterfactuals.images, first.counterfactuals.images)


def test_the_same_question_is_answered_from_the_cache(world, images: Tensor, labels: Tensor, tmp_path: Path) -> None:
    store = Store(tmp_path)
    first = explained(world, images, labels, store)
    again = explained(world, images, labels, store)
    assert kept(tmp_path)[COUNTERFACTUALS] == 1
    assert torch.equal(first.counterfactuals.images, again.counterfactuals.images)


def test_another_embedding_for_the_metrics_asks_for_the_same_counterfactuals(
    world, images: Tensor, labels: Tensor, tmp_path: Path
) -> None:
    store = Store(tmp_path)
    first = explained(world, images, labels, store)
    again = explained(world, images, labels, store, embedding=Other(8))
    assert kept(tmp_path)[COUNTERFACTUALS] == 1
    assert torch.equal(first.counterfactuals.images, again.counterfactuals.images)
    explained(world, images, labels, store, perceptual=Other(16))
    assert kept(tmp_path)[COUNTERFACTUALS] == 2


def test_a_cap_bounds_what_is_asked_for_and_asks_for_other_counterfactuals(
    world, images: Tensor, labels: Tensor, tmp_path: Path
) -> None:
    store = Store(tmp_path)
    free = explained(world, images, labels, store, operating_point_cap=1.0)
    cap = float(free.subject.calibrated.operating_point.min()) - 0.05
    assert cap > 0.5
    capped = explained(world, images, labels, store, operating_point_cap=cap)
    assert capped.subject.calibrated.operating_point.tolist() == pytest.approx([cap, cap])
    assert kept(tmp_path)[COUNTERFACTUALS] == 2
    explained(world, images, labels, store, operating_point_cap=cap, shrink=False)
    assert kept(tmp_path)[COUNTERFACTUALS] == 3


def test_the_cache_keeps_what_both_phases_say(world, images: Tensor, labels: Tensor, tmp_path: Path) -> None:
    store = Store(tmp_path)
    first, again = (explained(world, images, labels, store).counterfactuals for _ in range(2))
    for name, value in vars(first).items():
        assert torch.equal(value, getattr(again, name)), name
