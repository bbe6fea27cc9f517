"""Intervals of shares and means measured on a finite number of images.

One share: Wilson 1927. The difference of two shares on the same images: Newcombe 1998, Statistics in Medicine 17,
pp. 2635-2650, method 10. The mean of a number per image: percentile bootstrap, Efron & Tibshirani 1993, chapter 13.
"""

import math
from statistics import NormalDist

import torch
from scipy.stats import binomtest
from torch import Tensor

from audit.errors import MetricError
from audit.results import Interval

_CHUNK = 100


def wilson_interval(successes: int, n: int, level: float = 0.95) -> Interval:
    """Return the share `successes / n` with its Wilson score interval; all None for `n` = 0."""
    if n == 0:
        return Interval(value=None, n=0, level=level)
    bounds = binomtest(successes, n).proportion_ci(confidence_level=level, method="wilson")
    return Interval(value=successes / n, low=float(bounds.low), high=float(bounds.high), level=level, n=n)


def paired_difference(a: Tensor, b: Tensor, level: float = 0.95) -> Interval:
    """Return the share of `a` minus the share of `b`, both bool `[N]` on the same images, with Newcombe's interval.

    The distances of each share from its Wilson bounds are joined as the sides of a triangle whose angle is given by the
    correlation phi of the two, which is corrected towards zero where it is positive. All None for N = 0. Raises
    MetricError if `a` and `b` are not bool vectors of one length.
    """
    if a.dtype != torch.bool or b.dtype != torch.bool or a.ndim != 1 or a.shape != b.shape:
        raise MetricError(
            f"A paired difference was asked of {a.dtype} {tuple(a.shape)} and {b.dtype} {tuple(b.shape)} where two "
            "bool [N] over the same images are expected; compare predictions with labels first."
        )
    n = len(a)
    if n == 0:
        return Interval(value=None, n=0, level=level)
    both, only_a, only_b = (int(x.sum()) for x in (a & b, a & ~b, ~a & b))
    neither = n - both - only_a - only_b
    first, second = wilson_interval(both + only_a, n, level), wilson_interval(both + only_b, n, level)
    (below_a, above_a), (below_b, above_b) = distances(first), distances(second)
    phi = _corrected_phi(both, only_a, only_b, neither)
    value = (only_a - only_b) / n
    down = below_a**2 - 2 * phi * below_a * above_b + above_b**2
    up = above_a**2 - 2 * phi * above_a * below_b + below_b**2
    # Rounding may leave a square a hair below zero when phi is near one.
    low, high = value - math.sqrt(max(down, 0)), value + math.sqrt(max(up, 0))
    return Interval(value=value, low=max(low, -1.0), high=min(high, 1.0), level=level, n=n)


def distances(share: Interval) -> tuple[float, float]:
    """How far a share lies above its lower and below its upper bound."""
    assert share.value is not None
    assert share.low is not None
    assert share.high is not None
    return share.value - share.low, share.high - share.value


def _corrected_phi(both: int, only_a: int, only_b: int, neither: int) -> float:
    """Correlation of two paired answers; a positive one loses n/2 in its numerator, down to zero at most."""
    margins = (both + only_a) * (only_b + neither) * (both + only_b) * (only_a + neither)
    if margins == 0:
        return 0.0
    n = both + only_a + only_b + neither
    product = both * neither - only_a * only_b
    return (max(product - n / 2, 0) if product > 0 else product) / math.sqrt(margins)


def mean_interval(values: Tensor, level: float = 0.95) -> Interval:
    """Mean of `values` `[N]` with its normal-approximation interval."""
    finite = values[values.isfinite()].double()
    if len(finite) == 0:
        return Interval(value=None, level=level)
    mean = float(finite.mean())
    if len(finite) < 2:
        return Interval(value=mean, level=level, n=1)
    half = NormalDist().inv_cdf((1 + level) / 2) * float(finite.std()) / len(finite) ** 0.5
    return Interval(value=mean, low=mean - half, high=mean + half, level=level, n=len(finite))


def bootstrap_mean(values: Tensor, generator: torch.Generator, level: float = 0.95, resamples: int = 2000) -> Interval:
    """Return the mean of `values` `[N]` with its percentile bootstrap interval; all None for N = 0.

    Equal values give an interval of no width: the bootstrap cannot know of what it has not seen.
    """
    if len(values) == 0:
        return Interval(value=None, n=0, level=level)
    return bootstrap_means(values[:, None], generator, level, resamples)[0]


def bootstrap_means(
    values: Tensor, generator: torch.Generator, level: float = 0.95, resamples: int = 2000
) -> list[Interval]:
    """Return the mean of every column of `values` `[N, M]` with its percentile bootstrap interval, N >= 1.

    The rows are drawn once for all columns.
    """
    n = len(values)
    values = values.double().cpu()
    means = []
    for start in range(0, resamples, _CHUNK):
        rows = torch.randint(n, (min(_CHUNK, resamples - start), n), generator=generator, device=generator.device)
        means.append(torch.stack([column[rows.cpu()].mean(dim=1) for column in values.unbind(dim=1)], dim=1))
    tail = (1 - level) / 2
    bounds = torch.cat(means).quantile(torch.tensor([tail, 1 - tail], dtype=torch.float64), dim=0)
    return [
        Interval(value=float(column.mean()), low=low, high=high, level=level, n=n)
        for column, (low, high) in zip(values.unbind(dim=1), bounds.T.tolist(), strict=True)
    ]
