"""The hurdle model agrees with scipy's fits and tests, and with the four conditions of the thesis."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from audit.counterfactual.hurdle import FAMILIES, fit_hurdle, gamma_shape


def columns(n: int = 400) -> np.ndarray:
    rng = np.random.default_rng(1)
    return np.stack(
        [
            np.maximum(rng.normal(3, 0.4, n), 0),
            np.where(rng.random(n) < 0.4, 0, rng.gamma(2, 3, n)),
            rng.exponential(2, n),
            np.maximum(rng.normal(0, 1, n), 0),
            rng.gamma(0.3, 1, n),
            np.where(rng.random(n) < 0.9, 0, rng.normal(5, 0.2, n)),
        ],
        axis=1,
    )


def test_families_are_those_of_the_best_ks_p_value() -> None:
    x = columns()
    hurdle = fit_hurdle(torch.from_numpy(x))
    for i in range(x.shape[1]):
        active = x[:, i][x[:, i] != 0]
        shape, _, scale = stats.gamma.fit(active, floc=0)
        fits = {
            "normal": stats.norm(*stats.norm.fit(active)),
            "gamma": stats.gamma(shape, 0, scale),
            "exponential": stats.expon(*stats.expon.fit(active, floc=0)),
        }
        p = [stats.kstest(active, fits[name].cdf).pvalue for name in FAMILIES]
        chosen = FAMILIES[int(hurdle.family[i])]
        assert p[FAMILIES.index(chosen)] == pytest.approx(max(p), abs=1e-9)
        points = torch.from_numpy(np.linspace(active.min() / 2, active.max() * 1.2, 50))[:, None].expand(-1, x.shape[1])
        np.testing.assert_allclose(hurdle.active_cdf(points)[:, i], fits[chosen].cdf(points[:, i]), atol=1e-5)
        assert hurdle.theta[i] == pytest.approx(len(active) / len(x))
        assert hurdle.expected[i] == pytest.approx(hurdle.theta[i].item() * fits[chosen].mean(), rel=1e-4)


def test_gamma_shape_solves_the_likelihood_equation() -> None:
    shapes = np.geomspace(0.01, 1e6, 60)
    from scipy.special import digamma

    np.testing.assert_allclose(gamma_shape(np.log(shapes) - digamma(shapes)), shapes, rtol=1e-3)


def test_exceptional_exactly_under_the_four_conditions() -> None:
    hurdle = fit_hurdle(torch.from_numpy(columns()))
    t = 0.12
    values = torch.cat([torch.zeros(1), torch.logspace(-3, 1.5, 60)]).double()[:, None].expand(-1, 6)
    theta, cdf, off = hurdle.theta, hurdle.active_cdf(values), values == 0
    inactive = (1 - theta < t) & off
    seldom = (theta < t) & ~off
    low = (theta * cdf < t) & ~off
    high = ((1 - theta) + theta * cdf > 1 - t) & ~off
    assert torch.equal(hurdle.probability(values) < t, inactive | seldom | low | high)
    is_high = hurdle.is_high(values, t)
    assert is_high[seldom].all()
    assert not is_high[inactive].any()
    assert not is_high[low & ~seldom & ~high].any()
    assert is_high[high & ~low].all()


@settings(max_examples=25, deadline=None)
@given(
    n=st.integers(1, 40),
    value=st.sampled_from([0.0, 1e-20, 1e-3, 1.0, 1e6, -2.0]),
    zeros=st.integers(0, 40),
    jitter=st.sampled_from([0.0, 1e-9, 0.5]),
)
def test_degenerate_activations_are_finite(n: int, value: float, zeros: int, jitter: float) -> None:
    x = value * (1 + jitter * torch.linspace(-1, 1, n, dtype=torch.float64)[:, None])
    x[:zeros] = 0
    hurdle = fit_hurdle(x)
    probability = hurdle.probability(torch.cat([x, torch.tensor([[0.0], [5.0], [-5.0]]).double()]))
    assert hurdle.expected.isfinite().all()
    assert probability.ge(0).all()
    assert probability.le(0.5).all()


def test_scaling_the_features_scales_the_fit() -> None:
    x = torch.from_numpy(columns()).float()
    one, other = fit_hurdle(x), fit_hurdle(x * 10)
    assert torch.equal(one.family, other.family)
    torch.testing.assert_close(other.expected, one.expected * 10, rtol=1e-4, atol=0)
    torch.testing.assert_close(other.probability(x * 10), one.probability(x), rtol=1e-3, atol=1e-5)
