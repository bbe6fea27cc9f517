"""Shares of images, alone and of two models on the same images, from counts; loads fast, for it imports no torch.

One share: Wilson 1927. The difference of two shares on the same images: Newcombe 1998, Statistics in Medicine 17,
pp. 2635-2650, method 10. Whether two shares on the same images are equal: McNemar 1947 with the exact binomial of the
images that only one of the two has right.
"""

import math

from scipy.special import ndtri
from scipy.stats import binomtest

from audit.results import Interval


def wilson_interval(successes: int, n: int, level: float = 0.95) -> Interval:
    """Return the share `successes / n` with its Wilson score interval; all None for `n` = 0.

    Written out, for an audit asks for thousands: `binomtest` tests a hypothesis each time before it gives these bounds.
    """
    if n == 0:
        return Interval(value=None, n=0, level=level)
    share, z = successes / n, float(ndtri(0.5 + 0.5 * level))
    scale = 2 * (n + z**2)
    centre, half = (2 * n * share + z**2) / scale, z / scale * math.sqrt(4 * n * share * (1 - share) + z**2)
    low = 0.0 if successes == 0 else centre - half
    high = 1.0 if successes == n else centre + half
    return Interval(value=share, low=low, high=high, level=level, n=n)


def paired_shares(both: int, only_a: int, only_b: int, n: int, level: float = 0.95) -> Interval:
    """Return the share of `a` minus the share of `b` with Newcombe's interval; all None for `n` = 0.

    Of `n` images, `both` have it in a and b, `only_a` and `only_b` in one of the two. The distances of each share from
    its Wilson bounds are joined as the sides of a triangle whose angle is given by the correlation phi of the two,
    which is corrected towards zero where it is positive.
    """
    if n == 0:
        return Interval(value=None, n=0, level=level)
    first, second = wilson_interval(both + only_a, n, level), wilson_interval(both + only_b, n, level)
    (below_a, above_a), (below_b, above_b) = distances(first), distances(second)
    phi = _corrected_phi(both, only_a, only_b, n - both - only_a - only_b)
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


def exact_mcnemar(only_a: int, only_b: int) -> float:
    """Two-sided exact p-value that images which only one of two has right are as often a's as b's; 1 without any."""
    return 1.0 if only_a + only_b == 0 else float(binomtest(only_a, only_a + only_b).pvalue)
