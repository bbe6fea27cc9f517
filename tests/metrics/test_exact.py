"""Exact tests against numbers that can be counted by hand."""

import pytest
import torch

from audit.errors import MetricError
from audit.metrics.exact import below_p, mcnemar_p


def test_mcnemar_counts_only_the_images_that_tell_the_two_apart() -> None:
    a = torch.tensor([True] * 6 + [True] * 90 + [False] * 4)
    b = torch.tensor([False] * 6 + [True] * 90 + [False] * 4)
    # Six of six on one side: twice 2 to the power of -6.
    assert mcnemar_p(a, b) == pytest.approx(2 / 64)
    assert mcnemar_p(b, a) == pytest.approx(2 / 64)


def test_mcnemar_of_one_and_the_same_is_one() -> None:
    a = torch.tensor([True, False, True])
    assert mcnemar_p(a, a) == 1.0
    assert mcnemar_p(a[:0], a[:0]) == 1.0


@pytest.mark.parametrize("other", [torch.tensor([1, 0]), torch.tensor([True]), torch.ones(2, 1, dtype=torch.bool)])
def test_mcnemar_of_what_is_not_paired_is_refused(other: torch.Tensor) -> None:
    with pytest.raises(MetricError, match="paired test"):
        mcnemar_p(torch.tensor([True, False]), other)


def test_below_chance_is_one_sided() -> None:
    assert below_p(0, 4, 0.5) == pytest.approx(1 / 16)
    assert below_p(4, 4, 0.5) == pytest.approx(1.0)
    assert below_p(0, 0, 0.5) == 1.0
