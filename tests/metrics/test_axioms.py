"""Axioms of counterfactuals in known cases, and flips that copies of a model share."""

import pytest
import torch

from audit.metrics.axioms import effectiveness, reversibility, shared_flips
from audit.metrics.transfer import Verdicts

TARGETS = torch.zeros(5, dtype=torch.int64)


def verdicts(counterfactuals: list[int], inversions: list[int] | None = None, accuracy: float = 0.9) -> Verdicts:
    inverted = torch.ones(5, dtype=torch.int64) if inversions is None else torch.tensor(inversions)
    return Verdicts("judge", accuracy, torch.tensor(counterfactuals), inverted)


def test_reversibility_is_relative_to_the_edit() -> None:
    start = torch.full((4, 1, 2, 2), 0.5)
    there = start + torch.tensor([0.2, 0.2, 0.2, 0.0]).view(4, 1, 1, 1)
    back = start + torch.tensor([0.0, 0.1, 0.2, 0.0]).view(4, 1, 1, 1)
    assert reversibility(start, there, back)[:3].tolist() == pytest.approx([0, 0.5, 1], abs=1e-6)
    assert reversibility(start, there, back)[3].isnan()


def test_effectiveness_is_weighted_by_the_power_of_the_judges() -> None:
    strong, weak = verdicts([0, 0, 0, 0, 1]), verdicts([1] * 5, accuracy=0.3)
    assert effectiveness([strong, weak], TARGETS) == pytest.approx((0.9 * 0.8 + 0.3 * 0) / 1.2)
    always_yes = verdicts([0] * 5, [0] * 5)
    assert effectiveness([strong, always_yes], TARGETS) == pytest.approx(0.8)
    assert effectiveness([always_yes], TARGETS) is None
    assert effectiveness([], TARGETS) is None


def test_flips_are_shared_where_a_copy_flips_too() -> None:
    flipped = torch.tensor([True, True, True, True, False])
    one, other = verdicts([0, 0, 1, 1, 0]), verdicts([0, 0, 0, 1, 0], [0, 1, 1, 1, 1])
    assert shared_flips([one], TARGETS, flipped).value == 0.5
    both = shared_flips([one, other], TARGETS, flipped)
    assert (both.value, both.n) == (4 / 7, 7)
    assert shared_flips([], TARGETS, flipped).value is None
