"""The methods that take what they show from real images: which ones, and which parts of them."""

import dataclasses

import pytest
import torch
from support_explained import image_set
from support_small_audit import by_brightness
from torch import Tensor

from audit.counterfactual.methods import choose_method
from audit.counterfactual.nearest_image import nearest_real
from audit.counterfactual.protocol import CalibratedClassifier, Counterfactuals, InvertedQueries, SearchNetworks
from audit.counterfactual.region_replacement import grid
from audit.errors import MethodError


def subject(world, real: Tensor, labels: Tensor, confidence: float = 0.9) -> CalibratedClassifier:
    """Decides by the mean of the left half."""
    points = torch.tensor([confidence, confidence])
    return CalibratedClassifier(by_brightness("left"), world.calibration, points, real=image_set(real, labels))


def explain(world, subject: CalibratedClassifier, images: Tensor, method: str) -> Counterfactuals:
    labels = torch.zeros(len(images), dtype=torch.int64)
    inverted = dataclasses.replace(
        world.inversion, pivots=world.inversion.pivots[: len(images)], deltas={}, images=images
    )
    chosen = choose_method(world.config.model_copy(update={"method": method}), 0)
    networks = SearchNetworks(world.generator, None)
    return chosen.explain(subject, networks, InvertedQueries(images, labels, inverted), 1 - labels, lambda n=1: None)


def flat(*levels: float) -> Tensor:
    return torch.tensor(levels).view(-1, 1, 1, 1).expand(-1, 1, 16, 16).clone()


def test_the_nearest_image_of_the_class_that_convinces_enough_is_taken(world) -> None:
    # The confidence is .5 at grey and above .9 at .6. The nearest image is of class 0, the nearest of class 1 unsure.
    real, labels = flat(0.35, 0.55, 0.8, 0.7), torch.tensor([0, 1, 1, 1])
    found = explain(world, subject(world, real, labels), flat(0.3, 0.2), "nearest-image")
    assert torch.equal(found.images, flat(0.7, 0.7))
    assert found.reached.all()
    sure = subject(world, real, labels, confidence=0.999999)
    assert torch.equal(nearest_real(sure, flat(0.3), torch.tensor([1])), flat(0.55))  # assigned to the class, at least
    wrong = subject(world, flat(0.1, 0.4), torch.tensor([1, 1]))
    assert torch.equal(nearest_real(wrong, flat(0.3), torch.tensor([1])), flat(0.4))


def test_where_there_is_none_it_is_said(world) -> None:
    with pytest.raises(MethodError, match="hold none of class 'bright'"):
        explain(world, subject(world, flat(0.2, 0.3), torch.tensor([0, 0])), flat(0.3), "nearest-image")
    without = dataclasses.replace(subject(world, flat(0.2), torch.tensor([0])), real=None)
    with pytest.raises(MethodError, match="hold none of class 'bright'"):
        explain(world, without, flat(0.3), "region-replacement")


def test_only_cells_that_convince_are_replaced(world) -> None:
    """The classifier sees the left half: cells are taken there, and no more of them than are needed."""
    found = explain(world, subject(world, flat(0.9), torch.tensor([1])), flat(0.3, 0.45), "region-replacement")
    changed = (found.images - flat(0.3, 0.45)).abs()
    assert found.reached.all()
    assert not changed[..., 8:].any()
    # A cell is 1/32 of the left half: the mean has to rise from the level to that of 90 % confidence.
    needed = 0.5 + torch.logit(torch.tensor(0.9)) / 40
    for row, level in enumerate((0.3, 0.45)):
        cells = int((changed[row] > 0).sum()) / 4
        assert cells == torch.ceil((needed - level) / ((0.9 - level) / 32))
        assert int(found.step[row]) == cells
    assert found.trace.diff(dim=1).ge(0).all()


@pytest.mark.parametrize(("height", "width"), [(16, 16), (50, 20), (5, 9)])
def test_cells_cover_the_image_once(height: int, width: int) -> None:
    cells = grid(torch.Size([height, width]))
    assert torch.equal(cells.sum(dim=0), torch.ones(height, width, dtype=torch.int64))
    assert cells.flatten(1).any(dim=1).all()
