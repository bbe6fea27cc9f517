"""Moments over batches, the units of a target, and the loss that stands for the gap between moments."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from audit.metrics.fid import frechet_distance
from audit.training.generator.moments import Target, follow, gap, gap_loss, moments

SEEDS = st.integers(0, 10_000)


def normal(seed, n, d, spread=1.0):
    """Correlated rows `[n, d]` around a mean that is not zero."""
    rng = torch.Generator().manual_seed(seed)
    mixing = torch.eye(d) + 0.1 * torch.randn(d, d, generator=rng)
    return torch.randn(n, d, generator=rng) @ mixing * spread + torch.randn(d, generator=rng)


@settings(max_examples=20, deadline=None)
@given(SEEDS, st.integers(1, 40))
def test_moments_of_batches_are_those_of_all_rows(seed, size):
    rows = normal(seed, 60, 4) + 1000.0  # far from the origin, where a sum of squares loses the variance
    mean, covariance, count = moments(rows.split(size))
    assert count == 60
    assert_close(mean, rows.double().mean(0))
    assert_close(covariance, torch.cov(rows.double().T))


@settings(max_examples=20, deadline=None)
@given(SEEDS)
def test_in_the_targets_units_real_features_have_mean_zero_and_the_stated_covariance(seed):
    rows = torch.cat([normal(seed, 200, 3, 5.0), normal(seed + 1, 200, 4, 0.1)], 1)
    target = Target.of(*moments([rows])[:2], [3, 4], 0.0)
    assert target.sizes == (3, 4)
    units = target.units(rows)
    assert_close(units.mean(0), torch.zeros(7), atol=1e-3, rtol=0)
    assert_close(torch.cov(units.T), target.covariance, atol=1e-3, rtol=1e-3)
    for part in (slice(0, 3), slice(3, 7)):
        assert_close(target.covariance[part, part], torch.eye(len(units.T[part])), atol=1e-3, rtol=0)


def test_directions_of_small_share_and_features_that_do_not_vary_are_left_out():
    rows = normal(3, 500, 3) * torch.tensor([1.0, 1.0, 1e-4])
    still = torch.full((500, 2), 7.0)
    target = Target.of(*moments([torch.cat([rows, still], 1)])[:2], [3, 2], 1e-3)
    assert target.sizes == (2, 0)
    assert target.units(torch.cat([rows, still], 1)).shape == (500, 2)


@settings(max_examples=20, deadline=None)
@given(SEEDS)
def test_the_gap_is_the_frechet_distance_where_moments_are_close(seed):
    real = normal(seed, 4000, 3)
    target = Target.of(*moments([real])[:2], [3], 0.0)
    rng = torch.Generator().manual_seed(seed)
    shape = torch.randn(3, 3, generator=rng)
    drawn = target.units(real) @ (torch.eye(3) + 0.01 * (shape + shape.T)) + 0.05 * torch.randn(3, generator=rng)
    mean, covariance, _ = moments([drawn])
    apart = sum(float(part) for part in gap(mean.float(), covariance.float(), target.covariance))
    exact = frechet_distance(drawn, target.units(real))
    assert abs(apart - exact) < 0.12 * exact + 1e-5


@settings(max_examples=20, deadline=None)
@given(SEEDS)
def test_the_loss_has_the_gradient_of_the_gap_of_the_batchs_own_moments(seed):
    target = Target.of(*moments([normal(seed + 1, 300, 4)])[:2], [4], 0.0).covariance.double()
    drawn = normal(seed, 50, 4).double().requires_grad_()
    mean = drawn.mean(0)
    centred = drawn - mean
    covariance = centred.T @ centred / len(drawn)
    (expected,) = torch.autograd.grad(sum(gap(mean, covariance, target)), drawn)
    (found,) = torch.autograd.grad(gap_loss(drawn, mean.detach(), covariance.detach(), target), drawn)
    assert_close(found, expected)


def test_running_moments_forget_what_was_drawn_before():
    mean, covariance = torch.full((2,), 9.0), torch.eye(2) * 50
    rows = normal(5, 60_000, 2)
    for batch in rows.split(100):
        follow(batch, mean, covariance, 0.03)
    assert_close(mean, rows.mean(0), atol=0.15, rtol=0)
    assert_close(covariance, torch.cov(rows.T), atol=0.1, rtol=0.1)
