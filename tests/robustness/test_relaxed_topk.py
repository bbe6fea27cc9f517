"""The relaxed choice of k pixels: its sum, its bounds, its limit, its gradient and its memory."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from audit.errors import MetricError
from audit.robustness.relaxed_topk import gumbel, hard_top_k, pixels_of_share, relaxed_top_k


def scores_of(n: int, pixels: int, seed: int, scale: float = 1.0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return scale * torch.randn(n, pixels, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@settings(max_examples=25, deadline=None)
@given(
    pixels=st.integers(2, 300),
    part=st.floats(0, 1),
    temperature=st.floats(0.01, 10),
    scale=st.floats(0.01, 50),
    seed=st.integers(0, 10**6),
)
def test_sums_to_k_within_bounds_and_keeps_the_order(
    pixels: int, part: float, temperature: float, scale: float, seed: int
) -> None:
    k = max(1, round(part * pixels))
    scores = scores_of(3, pixels, seed, scale, torch.float64)
    chosen = relaxed_top_k(scores, k, temperature)
    assert torch.allclose(chosen.sum(1), torch.full((3,), float(k), dtype=torch.float64), atol=1e-6)
    assert ((chosen >= 0) & (chosen <= 1)).all()
    assert (chosen.gather(1, scores.argsort(1)).diff(dim=1) >= 0).all()


@settings(max_examples=25, deadline=None)
@given(k=st.integers(1, 4095), temperature=st.floats(0.05, 5), seed=st.integers(0, 10**6))
def test_float32_maps_sum_to_k(k: int, temperature: float, seed: int) -> None:
    chosen = relaxed_top_k(scores_of(2, 4096, seed).view(2, 64, 64), k, temperature)
    assert chosen.shape == (2, 64, 64)
    assert torch.allclose(chosen.sum((1, 2)), torch.full((2,), float(k)), rtol=1e-4)


@pytest.mark.parametrize("k", [1, 7, 19])
def test_tends_to_the_hard_choice(k: int) -> None:
    scores = torch.stack([torch.randperm(20, generator=torch.Generator().manual_seed(s)).double() for s in range(4)])
    hard = hard_top_k(scores, k)
    assert (hard.sum(1) == k).all()
    gaps = [float((relaxed_top_k(scores, k, t) - hard.double()).abs().max()) for t in (1.0, 0.1, 0.01)]
    assert gaps[0] > gaps[1] > gaps[2]
    assert gaps[2] < 1e-9


def test_equal_scores_share_the_choice() -> None:
    assert torch.allclose(relaxed_top_k(torch.zeros(2, 10), 3, 0.1), torch.full((2, 10), 0.3))


@pytest.mark.parametrize(("k", "temperature"), [(1, 1.0), (3, 0.5), (8, 2.0), (9, 1.0)])
def test_gradient_agrees_with_finite_differences(k: int, temperature: float) -> None:
    scores = scores_of(2, 9, 3, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda s: relaxed_top_k(s, k, temperature), (scores,))


def saved_bytes(share: float) -> int:
    scores = scores_of(2, 32 * 32, 0).view(2, 32, 32).requires_grad_()
    total = 0

    def count(tensor: torch.Tensor) -> torch.Tensor:
        nonlocal total
        total += tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        chosen = relaxed_top_k(scores, pixels_of_share(share, 32 * 32), 1.0)
    assert chosen.requires_grad
    return total


def test_memory_is_one_map_whatever_the_share() -> None:
    one_map = 2 * 32 * 32 * 4
    assert saved_bytes(0.05) == saved_bytes(0.5) == one_map


def test_noisy_hard_choice_draws_without_replacement_by_the_odds() -> None:
    odds = torch.tensor([0.5, 0.3, 0.2])
    scores = odds.log().expand(20000, 3)
    noisy = scores + gumbel(scores, torch.Generator().manual_seed(0))
    first = hard_top_k(noisy, 1).float().mean(0)
    both = hard_top_k(noisy, 2)
    # Two draws without replacement: P(3 is left out) = sum over the two orders of 1 and 2.
    left_out = 0.5 * 0.3 / 0.5 + 0.3 * 0.5 / 0.7
    assert torch.allclose(first, odds, atol=0.015)
    assert (both.sum(1) == 2).all()
    assert abs(float((~both[:, 2]).float().mean()) - left_out) < 0.015


@pytest.mark.parametrize(
    ("share", "pixels", "k"), [(0.07, 100, 7), (0.1, 4096, 410), (1e-6, 10, 1), (1.0, 5, 5), (0.3, 100, 30)]
)
def test_number_of_pixels(share: float, pixels: int, k: int) -> None:
    assert pixels_of_share(share, pixels) == k


@pytest.mark.parametrize(("k", "temperature"), [(0, 1.0), (11, 1.0), (3, 0.0)])
def test_refuses_what_is_not_defined(k: int, temperature: float) -> None:
    with pytest.raises(MetricError, match="not defined"):
        relaxed_top_k(torch.zeros(1, 10), k, temperature)


def test_refuses_scores_that_are_not_finite() -> None:
    with pytest.raises(MetricError, match="not finite"):
        relaxed_top_k(torch.tensor([[0.0, float("nan")]]), 1, 1.0)
