"""The mathematics of reactions: counts, directions and intervals, by examples and by properties."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from audit.metrics.intervals import bootstrap_mean, bootstrap_means, wilson_interval
from audit.reliance.reactions import reaction

NAMES = ("a", "b", "c")


def rng() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def sure(*decisions: int) -> Tensor:
    """Probabilities of 0.8 for the given decisions and 0.1 for each other class."""
    return torch.full((len(decisions), 3), 0.1).scatter(1, torch.tensor(decisions)[:, None], 0.8)


def test_what_changes_is_told_with_its_direction():
    before, after = sure(*[0] * 12, *[1] * 8), sure(*[2] * 9, 0, 0, 0, *[1] * 7, 0)
    found = reaction(0.1, before, {"here": before, "there": after}, NAMES, rng())
    assert (found.variant, found.variants) == ("there", {"here": 0.0, "there": 0.5})
    assert found.changed == wilson_interval(10, 20, 0.975)
    assert (found.towards, found.of_class) == ("c", "a")
    assert found.rise.value == pytest.approx(0.7 * 9 / 20)
    assert found.shift.value == pytest.approx(0.7 * 10 / 20)
    assert found.class_changed == wilson_interval(9, 12, 0.975)  # two variants, one class of ten or more
    assert found.class_fall.value == pytest.approx(0.7 * 9 / 12)
    assert found.hit == found.class_changed


def test_where_the_decisions_of_the_class_hit_most_go_is_told_of_them_alone():
    before, after = sure(*[0] * 10, *[1] * 30), sure(*[2] * 5, *[0] * 5, *[0] * 6, *[1] * 24)
    found = reaction(0.1, before, {"": after}, NAMES, rng())
    assert (found.towards, found.of_class) == ("a", "a")
    assert found.class_towards == found.hit_towards == "c"


def test_nothing_is_said_of_a_class_with_few_decisions():
    before = sure(*[0] * 9, *[1] * 9, *[2] * 9)
    found = reaction(0.1, before, {"": sure(*[1] * 27)}, NAMES, rng())
    assert found.of_class is None
    assert found.hit == found.changed


def test_without_a_change_there_is_no_direction():
    found = reaction(0.1, sure(*[0] * 20), {"": sure(*[0] * 20)}, NAMES, rng())
    assert (found.towards, found.rise.value, found.changed.value, found.shift.value) == (None, None, 0.0, 0.0)


def test_of_equal_variants_the_one_that_moves_probabilities_most_is_told():
    before = sure(*[0] * 20)
    nearer = before * 0.9 + 0.1 / 3
    assert reaction(0.1, before, {"one": before, "other": nearer}, NAMES, rng()).variant == "other"


decisions = st.lists(st.integers(0, 2), min_size=1, max_size=40)


@settings(max_examples=60, deadline=None)
@given(before=decisions, seed=st.integers(0, 99))
def test_shares_lie_in_their_intervals_and_images_may_stand_in_any_order(before: list[int], seed: int):
    draw = torch.Generator().manual_seed(seed)
    p, q = sure(*before), torch.rand(len(before), 3, generator=draw).softmax(dim=1)
    found = reaction(0.1, p, {"": q}, NAMES, rng())
    for interval in (found.changed, found.shift, found.class_changed, found.class_fall):
        if interval.value is not None:
            assert interval.low is not None
            assert interval.high is not None
            assert interval.low - 1e-9 <= interval.value <= interval.high + 1e-9
    assert found.shift.value is not None
    assert 0 <= found.shift.value <= 1
    order = torch.randperm(len(before), generator=draw)
    other = reaction(0.1, p[order], {"": q[order]}, NAMES, rng())
    assert (other.changed, other.towards, other.of_class) == (found.changed, found.towards, found.of_class)
    assert other.shift.value == pytest.approx(found.shift.value, abs=1e-6)


def test_columns_are_resampled_as_one_of_them_alone_is():
    values = torch.rand(50, 3, generator=torch.Generator().manual_seed(3)).double()
    together = bootstrap_means(values, rng())
    for i, one in enumerate(together):
        alone = bootstrap_mean(values[:, i], rng())
        assert one.value == pytest.approx(alone.value)
        assert (one.n, one.level) == (alone.n, alone.level)
        assert one.low == pytest.approx(alone.low, abs=0.01)
        assert one.high == pytest.approx(alone.high, abs=0.01)
