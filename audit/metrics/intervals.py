"""Intervals of shares measured on a finite number of images.

One share: Wilson 1927.
"""

from scipy.stats import binomtest

from audit.results import Interval


def wilson_interval(successes: int, n: int, level: float = 0.95) -> Interval:
    """Return the share `successes / n` with its Wilson score interval; all None for `n` = 0."""
    if n == 0:
        return Interval(value=None, n=0, level=level)
    bounds = binomtest(successes, n).proportion_ci(confidence_level=level, method="wilson")
    return Interval(value=successes / n, low=float(bounds.low), high=float(bounds.high), level=level, n=n)
