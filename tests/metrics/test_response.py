"""What a model answers to the edits made for others, in closed form."""

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from audit.metrics.response import Answers, answers, together

ONES = torch.ones(1, 3, dtype=torch.float64)


def told(inside: list[float], outside: list[float]) -> Answers:
    return Answers(torch.tensor(inside, dtype=torch.float64), torch.tensor(outside, dtype=torch.float64))


def test_the_share_is_that_of_the_sums_and_movement_outside_counts_either_way() -> None:
    before = torch.tensor([0.1, 0.2, 0.6])  # the last one is there already
    one = answers(before, torch.tensor([0.7, 0.1, 0.9]), torch.tensor([0.0, 0.3, 0.1]))
    assert_close(one.inside, torch.tensor([0.6, -0.1, 0.0], dtype=torch.float64), atol=1e-6, rtol=0)
    assert_close(one.outside, torch.tensor([0.1, 0.1, 0.0], dtype=torch.float64), atol=1e-6, rtol=0)
    assert_close(one.share(ONES), torch.tensor([0.5 / 0.7], dtype=torch.float64), atol=1e-6, rtol=0)


def test_answers_to_several_makers_add_up_where_they_are_defined() -> None:
    nan = float("nan")
    both = together([told([0.2, nan, nan], [0.1, nan, nan]), told([0.4, 0.3, nan], [0.0, 0.1, nan])])
    assert_close(both.inside, torch.tensor([0.6, 0.3, nan], dtype=torch.float64), equal_nan=True)
    assert_close(both.share(ONES), torch.tensor([0.9 / 1.1], dtype=torch.float64))
    assert both.is_defined


def test_what_cannot_be_told_is_not_defined() -> None:
    nan = float("nan")
    assert not told([0.5, nan, nan], [0.1, nan, nan]).is_defined  # one image
    assert not told([0, 0, nan], [0, 0, nan]).is_defined  # it answers to nothing
    assert not told([-0.2, 0, nan], [0, 0, nan]).is_defined  # nor what leads away from the target
    assert told([0, 0, nan], [0.1, 0, nan]).is_defined
    assert told([0, 0, nan], [0.1, 0, nan]).share(ONES).tolist() == [0.0]
    assert told([0.1, 0, 0], [0, 0, 0]).share(torch.tensor([[0.0, 1, 1]]).double()).isnan().all()  # a draw without it


@given(st.lists(st.tuples(st.floats(-1, 1), st.floats(0, 1)), min_size=3, max_size=3))
def test_the_share_lies_between_nothing_and_all(rows: list[tuple[float, float]]) -> None:
    one = told(*map(list, zip(*rows, strict=True)))
    if one.is_defined:
        share = float(one.share(ONES))
        assert 0 <= share <= 1 or share != share
