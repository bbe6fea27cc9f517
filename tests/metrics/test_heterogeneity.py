"""Random effects against a published analysis and by hand."""

import math

import numpy as np
import pytest

from audit.errors import MetricError
from audit.metrics.heterogeneity import means_over_sites, random_effects, shares_over_sites
from audit.results import Interval

# Tuberculosis of vaccinated and of others, in 13 trials (Colditz et al. 1994, JAMA 271, pp. 698-702).
BCG = (
    (4, 119, 11, 128), (6, 300, 29, 274), (3, 228, 11, 209), (62, 13536, 248, 12619), (33, 5036, 47, 5761),
    (180, 1361, 372, 1079), (8, 2537, 10, 619), (505, 87886, 499, 87892), (29, 7470, 45, 7232), (17, 1699, 65, 1600),
    (186, 50448, 141, 27197), (5, 2493, 3, 2338), (27, 16886, 29, 17825),
)  # fmt: skip


def test_the_vaccine_trials_have_the_published_random_effects() -> None:
    """Viechtbauer 2010 (Journal of Statistical Software 36(3)), with the estimator of DerSimonian and Laird."""
    effects = [math.log(a / (a + b) / (c / (c + d))) for a, b, c, d in BCG]
    variances = [1 / a - 1 / (a + b) + 1 / c - 1 / (c + d) for a, b, c, d in BCG]
    found = random_effects(effects, variances)
    assert found.q == pytest.approx(152.233, abs=1e-3)
    assert found.tau2 == pytest.approx(0.3088, abs=1e-4)
    assert found.i2 == pytest.approx(0.9212, abs=1e-4)
    assert (found.mean, found.se) == pytest.approx((-0.7141, 0.1787), abs=1e-4)


def test_two_sites_by_hand() -> None:
    # w = 1 and 1, Q = 2 * 1**2 = 2, tau2 = (2 - 1) / (2 - 2/2) = 1, then se = (2 / 2) ** -0.5.
    found = random_effects([0.0, 2.0], [1.0, 1.0])
    assert (found.q, found.tau2, found.i2, found.mean, found.se) == pytest.approx((2.0, 1.0, 0.5, 1.0, 1.0))
    assert found.high - found.mean == pytest.approx(12.706, abs=1e-3)


def test_intervals_cover_a_site_like_these() -> None:
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(400):
        odds = 1.0 + 0.5 * rng.standard_normal(6)
        hits = rng.binomial(100, 1 / (1 + np.exp(-odds)))
        share, _ = shares_over_sites(hits.tolist(), [100] * 6)
        covered += share.low <= 1 / (1 + math.exp(-1.0)) <= share.high
    assert covered / 400 >= 0.93


def test_shares_of_none_and_all_have_an_interval() -> None:
    share, found = shares_over_sites([0, 0, 50], [50, 40, 50])
    assert 0 < share.low < share.value < share.high < 1
    assert found.i2 > 0.5


def test_what_has_no_variance_is_not_joined() -> None:
    known = Interval(value=0.2, low=0.1, high=0.3, n=10)
    assert means_over_sites([known, Interval(value=0.2, n=10)]) is None
    assert means_over_sites([known, known])[0].value == pytest.approx(0.2)
    with pytest.raises(MetricError, match="two on"):
        random_effects([1.0], [1.0])
