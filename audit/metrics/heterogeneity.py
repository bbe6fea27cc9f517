"""One number measured at several sites: how far the sites differ, and what a site like these is to expect.

Random effects by DerSimonian & Laird 1986 (Controlled Clinical Trials 7, pp. 177-188), heterogeneity by Cochran's Q and
I squared (Higgins & Thompson 2002), and the interval of Hartung & Knapp 2001 (Statistics in Medicine 20,
pp. 3875-3889), never narrower than that of DerSimonian and Laird: with few sites theirs is too narrow.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from audit.errors import MetricError
from audit.results import Interval


@dataclass(frozen=True)
class RandomEffects:
    """The mean over sites, with `se` of DerSimonian and Laird, and the interval of Hartung and Knapp."""

    mean: float
    se: float
    low: float
    high: float
    q: float
    p_value: float
    i2: float
    tau2: float


def random_effects(effects: Sequence[float], variances: Sequence[float], level: float = 0.95) -> RandomEffects:
    """Join the `effects` of two sites or more, whose sampling `variances` are above zero."""
    y, v = np.asarray(effects, dtype=np.float64), np.asarray(variances, dtype=np.float64)
    if len(y) < 2 or not (v > 0).all():
        raise MetricError("Sites are joined from two on, each with a variance above zero.")
    k, w = len(y), 1 / v
    fixed = (w * y).sum() / w.sum()
    q = float((w * (y - fixed) ** 2).sum())
    tau2 = max(0.0, (q - (k - 1)) / float(w.sum() - (w**2).sum() / w.sum()))
    star = 1 / (v + tau2)
    mean = float((star * y).sum() / star.sum())
    se = float(star.sum() ** -0.5)
    spread = math.sqrt(float((star * (y - mean) ** 2).sum()) / (k - 1) / float(star.sum()))
    half = float(stats.t.ppf((1 + level) / 2, k - 1)) * max(se, spread)
    i2 = max(0.0, (q - (k - 1)) / q) if q > 0 else 0.0
    return RandomEffects(mean, se, mean - half, mean + half, q, float(stats.chi2.sf(q, k - 1)), i2, tau2)


def shares_over_sites(
    hits: Sequence[int], counts: Sequence[int], level: float = 0.95
) -> tuple[Interval, RandomEffects]:
    """Return the share at a site like these, and the random effects of the log-odds that it comes from.

    A half is added to both outcomes of every site, so that a share of 0 or 1 has log-odds (Haldane 1956).
    """
    right, wrong = np.asarray(hits) + 0.5, np.asarray(counts) - np.asarray(hits) + 0.5
    found = random_effects(np.log(right / wrong).tolist(), (1 / right + 1 / wrong).tolist(), level)
    value, low, high = (1 / (1 + math.exp(-x)) for x in (found.mean, found.low, found.high))
    return Interval(value=value, low=low, high=high, level=level, n=sum(counts)), found


def means_over_sites(sites: Sequence[Interval], level: float = 0.95) -> tuple[Interval, RandomEffects] | None:
    """Join means by the variances that their intervals imply; None where one has no interval or one of no width."""
    z = float(stats.norm.ppf((1 + level) / 2))
    found = [(s.value, (s.high - s.low) / 2 / z) for s in sites if None not in (s.value, s.low, s.high)]  # type: ignore[operator]
    if len(found) < len(sites) or any(se <= 0 for _, se in found):
        return None
    joined = random_effects([value for value, _ in found if value is not None], [se**2 for _, se in found], level)
    mean = Interval(value=joined.mean, low=joined.low, high=joined.high, level=level, n=sum(s.n for s in sites))
    return mean, joined
