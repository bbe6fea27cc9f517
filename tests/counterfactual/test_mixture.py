"""The vectorised mixtures agree with scikit-learn and survive any activations."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn.mixture import GaussianMixture

from audit.counterfactual.mixture import (
    RELATIVE_REGULARISATION,
    expectation_maximisation,
    fit_mixture,
    initial_parameters,
)


def activations(n: int = 300) -> torch.Tensor:
    """Columns of very different shape and scale: normal, two modes, skewed, GELU-like, rare far group."""
    rng = np.random.default_rng(0)
    normal = rng.normal(size=n)
    modes = np.where(rng.random(n) < 0.5, rng.normal(-2, 0.3, n), rng.normal(2, 0.3, n)) * 40
    skewed = rng.lognormal(size=n) * 1e-3
    gelu = torch.nn.functional.gelu(torch.from_numpy(rng.normal(-1, 2, n))).numpy()
    rare = np.where(rng.random(n) < 0.1, rng.normal(6, 0.1, n), rng.normal(size=n)) + 100
    return torch.from_numpy(np.stack([normal, modes, skewed, gelu, rare], axis=1))


def test_equals_sklearn_from_the_same_start() -> None:
    x = activations()
    x = (x - x.mean(0)) / x.std(0, unbiased=False)
    start = initial_parameters(x, 5)
    weights, means, variances = expectation_maximisation(x, *start, tolerance=1e-3, max_steps=60)
    for i in range(x.shape[1]):
        reference = GaussianMixture(
            5,
            weights_init=start[0][i].numpy(),
            means_init=start[1][i].numpy()[:, None],
            precisions_init=1 / start[2][i].numpy()[:, None, None],
            reg_covar=RELATIVE_REGULARISATION,
            tol=1e-3,
            max_iter=60,
        ).fit(x[:, i : i + 1].numpy())
        np.testing.assert_allclose(weights[i], reference.weights_, atol=1e-8)
        np.testing.assert_allclose(means[i], reference.means_[:, 0], atol=1e-7)
        np.testing.assert_allclose(variances[i], reference.covariances_[:, 0, 0], atol=1e-8)


def test_fits_about_as_well_as_sklearn_and_agrees_on_the_distribution() -> None:
    x = activations(600)
    mixture = fit_mixture(x, 5)
    scale = x.std(0, unbiased=False)
    ours = mixture.log_likelihood(x) + scale.log()
    for i in range(x.shape[1]):
        column = ((x[:, i : i + 1] - x[:, i].mean()) / scale[i]).numpy()
        reference = GaussianMixture(5, random_state=0).fit(column)
        assert ours[i] > reference.score(column) - 0.02
        z = (column - reference.means_[:, 0]) / np.sqrt(reference.covariances_[:, 0, 0])
        cdf = (reference.weights_ * stats.norm.cdf(z)).sum(1)
        ours_cdf, empirical = mixture.tails(x)[0][:, i].numpy(), stats.rankdata(column) / len(column)
        # Where the two optima differ (a GELU's pile of values at its minimum), ours must be the nearer to the data.
        reference_error = np.abs(cdf - empirical).max()
        assert np.abs(ours_cdf - cdf).max() < 0.05 or np.abs(ours_cdf - empirical).max() < reference_error


def test_mean_is_the_sample_mean_and_cdf_fits_the_sample() -> None:
    x = activations()
    mixture = fit_mixture(x, 5)
    torch.testing.assert_close(mixture.expected, x.mean(0), rtol=1e-9, atol=1e-12)
    lower, upper = mixture.tails(x)
    torch.testing.assert_close(lower + upper, torch.ones_like(lower))
    rank = (x.argsort(0).argsort(0) + 0.5) / len(x)
    assert (lower - rank).abs().max() < 1.36 / len(x) ** 0.5  # not rejected by Kolmogorov-Smirnov at 5 %


@settings(max_examples=25, deadline=None)
@given(
    n=st.integers(1, 40),
    value=st.floats(-1e6, 1e6, width=32),
    jitter=st.sampled_from([0.0, 1e-12, 1e-7, 1.0]),
    components=st.integers(1, 8),
)
def test_near_constant_and_scarce_activations_are_finite(n: int, value: float, jitter: float, components: int) -> None:
    x = value + jitter * torch.linspace(-1, 1, n, dtype=torch.float64)[:, None] ** 3
    mixture = fit_mixture(x, components)
    probability = mixture.probability(torch.cat([x, x + 1, x - 1, torch.zeros(1, 1)]))
    assert mixture.weights.isfinite().all()
    assert mixture.variances.gt(0).all()
    assert mixture.expected.isfinite().all()
    assert probability.ge(0).all()
    assert probability.le(0.5).all()


@pytest.mark.parametrize("factor", [10.0, 1e-4, 4096.0])
def test_scaling_the_features_scales_the_fit(factor: float) -> None:
    x = activations().float()
    x[:, 0] = 3.0
    one, other = fit_mixture(x), fit_mixture(x * factor)
    torch.testing.assert_close(other.means, one.means * factor, rtol=1e-4, atol=1e-6 * factor)
    torch.testing.assert_close(other.weights, one.weights, rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(other.probability(x * factor), one.probability(x), rtol=1e-3, atol=1e-5)


def test_tails_are_exact_far_out() -> None:
    mixture = fit_mixture(torch.randn(200, 1, generator=torch.Generator().manual_seed(0)), 1)
    probability = mixture.probability(torch.tensor([[-20.0], [20.0]]))
    assert (probability > 0).all()
    assert (probability < 1e-60).all()


def test_features_are_fitted_independently() -> None:
    x = activations()
    torch.testing.assert_close(fit_mixture(x).means[1:2], fit_mixture(x[:, 1:2]).means, rtol=1e-9, atol=1e-9)
