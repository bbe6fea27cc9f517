"""Intervals of shares and means measured on a finite number of images.

Shares are in `shares.py`. The mean of a number per image: percentile bootstrap, Efron & Tibshirani 1993, chapter 13.
"""

from statistics import NormalDist

import torch
from torch import Tensor

from audit.errors import MetricError
from audit.metrics.shares import distances, paired_shares, wilson_interval
from audit.results import Interval

__all__ = ["bootstrap_mean", "bootstrap_means", "distances", "mean_interval", "paired_difference", "wilson_interval"]

_CHUNK = 100


def paired_difference(a: Tensor, b: Tensor, level: float = 0.95) -> Interval:
    """Return the share of `a` minus the share of `b`, both bool `[N]` on the same images, with Newcombe's interval.

    All None for N = 0. Raises MetricError if `a` and `b` are not bool vectors of one length.
    """
    if a.dtype != torch.bool or b.dtype != torch.bool or a.ndim != 1 or a.shape != b.shape:
        raise MetricError(
            f"A paired difference was asked of {a.dtype} {tuple(a.shape)} and {b.dtype} {tuple(b.shape)} where two "
            "bool [N] over the same images are expected; compare predictions with labels first."
        )
    both, only_a, only_b = (int(x.sum()) for x in (a & b, a & ~b, ~a & b))
    return paired_shares(both, only_a, only_b, len(a), level)


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
