"""Summaries of one model's counterfactuals."""

import pytest
import torch
from scipy.stats import norm

from audit.pipeline.score import mean_interval


@pytest.mark.parametrize("level", [0.5, 0.9, 0.95, 0.99])
def test_a_mean_has_an_interval_of_the_level_that_was_asked_for(level: float) -> None:
    values = torch.tensor([0.1, 0.4, 0.2, float("nan"), 0.9])
    found = mean_interval(values, level)
    low, high = norm.interval(level, loc=0.4, scale=values[[0, 1, 2, 4]].double().std() / 2)
    assert (found.value, found.level, found.n) == (pytest.approx(0.4), level, 4)
    assert (found.low, found.high) == (pytest.approx(low), pytest.approx(high))


def test_one_value_has_no_interval_and_none_has_no_value() -> None:
    one, none = mean_interval(torch.tensor([0.3])), mean_interval(torch.tensor([float("nan")]))
    assert (one.value, one.low, one.high, one.n) == (pytest.approx(0.3), None, None, 1)
    assert (none.value, none.n) == (None, 0)
