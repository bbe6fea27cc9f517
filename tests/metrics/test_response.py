"""What a model answers to the edits made for others, in closed form."""

from collections.abc import Sequence

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from audit.metrics.response import Answers, answers, together

ONES = torch.ones(1, 3, dtype=torch.float64)


def told(inside: list[float], rest: list[float], acquired: Sequence[float] = (0, 0, 0)) -> Answers:
    return Answers(*(torch.tensor(part, dtype=torch.float64) for part in (inside, rest, acquired)))


def test_the_share_is_that_of_the_sums_and_movement_outside_counts_either_way() -> None:
    before = torch.tensor([0.1, 0.2, 0.6])  # the last one is there already
    one = answers(before, torch.tensor([0.7, 0.1, 0.9]), torch.tensor([0.0, 0.3, 0.1]))
    assert_close(one.inside, torch.tensor([0.6, 0.0, 0.0], dtype=torch.float64), atol=1e-6, rtol=0)
    assert_close(one.outside, torch.tensor([0.1, 0.1, 0.0], dtype=torch.float64), atol=1e-6, rtol=0)
    assert_close(one.share(ONES), torch.tensor([0.6 / 0.8], dtype=torch.float64), atol=1e-6, rtol=0)


def test_another_acquisition_counts_outside_by_its_root_mean_square() -> None:
    before, same = torch.tensor([0.1, 0.2, 0.6]), torch.tensor([0.1, 0.2, 0.6])
    acquired = torch.tensor([[0.3, 0.2, 0.9], [0.0, 0.1, 0.1]])
    one = answers(before, same, torch.tensor([0.1, 0.4, 0.6]), acquired)
    moved = [(0.05 / 2) ** 0.5, 0.01**0.5 / 2**0.5]  # by .2 and .1; by 0 and .1
    assert_close(one.acquired, torch.tensor([*moved, 0.0], dtype=torch.float64), atol=1e-6, rtol=0)
    assert_close(one.rest, torch.tensor([0.0, 0.2, 0.0], dtype=torch.float64), atol=1e-6, rtol=0)
    assert_close(one.inside, torch.zeros(3, dtype=torch.float64))
    expected = torch.tensor([0.0, 0.2, sum(moved)], dtype=torch.float64) / (0.2 + sum(moved))
    assert_close(one.shares(ONES)[:, 0], expected, atol=1e-6, rtol=0)
    unmoved = answers(before, same, torch.tensor([0.1, 0.4, 0.6]), before.expand(4, 3))
    assert_close(unmoved.outside, answers(before, same, torch.tensor([0.1, 0.4, 0.6])).outside)


def test_of_several_makers_the_root_mean_square_counts_where_they_are_defined() -> None:
    nan = float("nan")
    both = together([told([0.6, nan, nan], [0.1, nan, nan]), told([0.2, 0.3, nan], [0.7, 0.1, nan])])
    assert_close(both.inside, torch.tensor([0.2**0.5, 0.3, nan], dtype=torch.float64), equal_nan=True)
    assert_close(both.rest, torch.tensor([0.5, 0.1, nan], dtype=torch.float64), equal_nan=True)
    inside = 0.2**0.5 + 0.3
    assert_close(both.share(ONES), torch.tensor([inside / (inside + 0.6)], dtype=torch.float64))
    assert both.is_defined


@given(st.integers(1, 9), st.floats(0, 1), st.floats(0.01, 1))
def test_what_few_makers_find_is_thinned_out_less_than_by_a_mean(sound: int, inside: float, outside: float) -> None:
    nothing, finds = told([inside] * 3, [0.0] * 3), told([inside] * 3, [outside] * 3)
    all_of_them = together([finds, *[nothing] * sound])
    assert_close(all_of_them.inside, torch.full((3,), inside, dtype=torch.float64))
    assert_close(all_of_them.rest, torch.full((3,), outside / (1 + sound) ** 0.5, dtype=torch.float64))
    assert all_of_them.rest[0] > outside / (1 + sound)


def test_what_cannot_be_told_is_not_defined() -> None:
    nan = float("nan")
    assert not told([0.5, nan, nan], [0.1, nan, nan]).is_defined  # one image
    assert not told([0, 0, nan], [0, 0, nan]).is_defined  # it answers to nothing
    assert told([0, 0, nan], [0.1, 0, nan]).is_defined
    assert told([0, 0, nan], [0.1, 0, nan]).share(ONES).tolist() == [0.0]
    assert told([0.1, 0, 0], [0, 0, 0]).share(torch.tensor([[0.0, 1, 1]]).double()).isnan().all()  # a draw without it


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1), st.floats(0, 1)), min_size=3, max_size=3))
def test_shares_lie_between_nothing_and_all_and_sum_to_all(rows: list[tuple[float, float, float]]) -> None:
    one = told(*map(list, zip(*rows, strict=True)))
    if one.is_defined:
        shares = one.shares(ONES)
        assert torch.equal(shares[0], one.share(ONES))
        assert bool(((shares >= 0) & (shares <= 1)).all())
        assert_close(shares.sum(0), ONES[0, :1])
