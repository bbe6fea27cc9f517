"""Intervals of shares, of paired differences and of means."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest, norm
from torch import Tensor

from audit.errors import MetricError
from audit.metrics.intervals import bootstrap_mean, mean_interval, paired_difference, wilson_interval

COUNTS = st.tuples(*[st.integers(0, 40)] * 4).filter(lambda counts: sum(counts) > 0)


def answers(both: int, only_a: int, only_b: int, neither: int) -> tuple[Tensor, Tensor]:
    a = [True] * (both + only_a) + [False] * (only_b + neither)
    b = [True] * both + [False] * only_a + [True] * only_b + [False] * neither
    return torch.tensor(a), torch.tensor(b)


@settings(max_examples=25, deadline=None)
@given(n=st.integers(1, 500), share=st.floats(0, 1))
def test_wilson_interval_holds_the_share(n: int, share: float) -> None:
    k = round(share * n)
    interval = wilson_interval(k, n)
    assert interval.n == n
    assert 0 <= interval.low <= interval.value + 1e-12
    assert interval.value <= interval.high + 1e-12 <= 1 + 2e-12


@settings(max_examples=200, deadline=None)
@given(n=st.integers(1, 5000), share=st.floats(0, 1), level=st.floats(0.5, 0.9999))
def test_wilson_interval_is_that_of_scipy_to_the_last_bit(n: int, share: float, level: float) -> None:
    k = round(share * n)
    low, high = binomtest(k, n).proportion_ci(level, method="wilson")
    assert (wilson_interval(k, n, level).low, wilson_interval(k, n, level).high) == (low, high)


def test_wilson_interval_of_nothing_has_no_value() -> None:
    assert wilson_interval(0, 0).value is None


@pytest.mark.parametrize(
    ("counts", "value", "low", "high"),
    [
        # Altman et al. 2000, Statistics with Confidence, table 6.2 and p. 52.
        ((14, 5, 0, 22), 0.122, 0.011, 0.226),
        # Fagerland, Lydersen & Laake 2014, Statistics in Medicine 33, the airways of 21 children (Bentur et al. 2009).
        ((1, 1, 7, 12), -0.286, -0.507, -0.026),
    ],
)
def test_paired_difference_of_published_examples(
    counts: tuple[int, int, int, int], value: float, low: float, high: float
) -> None:
    interval = paired_difference(*answers(*counts))
    assert (interval.value, interval.low, interval.high) == pytest.approx((value, low, high), abs=5.5e-4)


@settings(max_examples=50, deadline=None)
@given(counts=COUNTS, level=st.sampled_from([0.8, 0.95, 0.99]))
def test_paired_difference_changes_sign_with_its_models(counts: tuple[int, int, int, int], level: float) -> None:
    a, b = answers(*counts)
    there, back = paired_difference(a, b, level), paired_difference(b, a, level)
    assert there.value == pytest.approx(-back.value)
    assert (there.low, there.high) == pytest.approx((-back.high, -back.low))
    assert -1 <= there.low <= there.value + 1e-12
    assert there.value <= there.high + 1e-12 <= 1 + 2e-12
    # Counting mistakes instead of hits turns the sign as well.
    mistakes = paired_difference(~a, ~b, level)
    assert (mistakes.low, mistakes.high) == pytest.approx((-there.high, -there.low))


@settings(max_examples=25, deadline=None)
@given(counts=COUNTS)
def test_paired_difference_does_not_know_the_order_of_images_and_widens_with_level(
    counts: tuple[int, int, int, int],
) -> None:
    a, b = answers(*counts)
    order = torch.randperm(len(a), generator=torch.Generator().manual_seed(0))
    assert paired_difference(a[order], b[order]) == paired_difference(a, b)
    narrow, wide = paired_difference(a, b, 0.8), paired_difference(a, b, 0.99)
    assert wide.low <= narrow.low + 1e-12
    assert narrow.high <= wide.high + 1e-12


def test_agreement_narrows_the_paired_difference() -> None:
    alike = paired_difference(*answers(60, 6, 2, 32))
    apart = paired_difference(*answers(45, 21, 17, 17))
    assert alike.value == pytest.approx(apart.value)
    assert alike.high - alike.low < 0.8 * (apart.high - apart.low)


@pytest.mark.parametrize("cells", [(0.6, 0.1, 0.1, 0.2), (0.55, 0.25, 0.05, 0.15), (0.85, 0.08, 0.03, 0.04)])
@pytest.mark.parametrize("n", [15, 40])
def test_paired_difference_covers_the_truth(cells: tuple[float, ...], n: int) -> None:
    drawn, times = np.unique(np.random.default_rng(0).multinomial(n, cells, size=4000), axis=0, return_counts=True)
    truth = cells[1] - cells[2]
    intervals = [paired_difference(*answers(*(int(count) for count in counts))) for counts in drawn]
    held = np.array([interval.low <= truth <= interval.high for interval in intervals])
    assert (held * times).sum() / times.sum() >= 0.94


def test_paired_difference_of_nothing_or_of_no_pairs() -> None:
    nothing = torch.zeros(0, dtype=torch.bool)
    assert paired_difference(nothing, nothing).value is None
    with pytest.raises(MetricError, match="bool"):
        paired_difference(torch.zeros(3), torch.zeros(3))
    with pytest.raises(MetricError, match=r"\(3,\).*\(4,\)"):
        paired_difference(torch.zeros(3, dtype=torch.bool), torch.zeros(4, dtype=torch.bool))


def test_bootstrap_mean_has_the_width_of_the_standard_error() -> None:
    values = torch.randn(400, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    interval = bootstrap_mean(values, torch.Generator().manual_seed(1))
    assert interval.value == pytest.approx(float(values.mean()))
    assert interval.high - interval.low == pytest.approx(2 * 1.96 * float(values.std()) / 20, rel=0.1)
    assert interval == bootstrap_mean(values, torch.Generator().manual_seed(1))
    assert bootstrap_mean(values[:0], torch.Generator()).value is None
    assert bootstrap_mean(torch.ones(3), torch.Generator()).low == 1


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
