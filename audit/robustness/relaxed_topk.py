"""Choosing k of P pixels by a differentiable rule, in memory that does not depend on k.

Hard choice: the k pixels of highest score. Perturbing the scores by independent Gumbel noise makes it a random one, k
draws *without* replacement with odds exp(score) (Vieira 2014; Kool et al., arXiv:1903.06059, section 2.2). Relaxed
choice: z_i = sigmoid((score_i - t) / temperature), where the threshold t of each image is the root of sum(z) = k. It is
the point of the polytope {0 <= z <= 1, sum(z) = k} that maximises <score, z> + temperature * binary entropy of z
(the limited multi-label projection of Amos et al., arXiv:1906.08707), and tends to the hard choice as the
temperature falls to 0. The gradient comes from the implicit function theorem applied to sum(z) = k, so that only z
itself is kept for the backward pass: one map, where k relaxed one-hot draws would keep k.
"""

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from audit.errors import MetricError

MOST_ITERATIONS = 120
"""Far above what the search needs: it ends once the sum is right or the bracket can be split no further."""


def pixels_of_share(share: float, pixels: int) -> int:
    """Return the number of pixels M = ceil(share * pixels), at least 1."""
    # 0.07 * 100 is 7.000000000000001 in floating point, which is still 7 pixels.
    return min(pixels, max(1, math.ceil(share * pixels - 1e-6)))


def gumbel(like: Tensor, generator: torch.Generator) -> Tensor:
    """Draw standard Gumbel noise of the shape of `like`, from `generator` on its own device."""
    uniform = torch.rand(like.shape, generator=generator, device=generator.device, dtype=like.dtype)
    tiny = torch.finfo(like.dtype).tiny
    return -(-uniform.clamp_min(tiny).log()).clamp_min(tiny).log().to(like.device)


def hard_top_k(scores: Tensor, k: int) -> Tensor:
    """Return a boolean tensor like `scores` `[N, ...]`: True at exactly the `k` highest scores of each image."""
    flat = scores.flatten(1)
    chosen = torch.zeros_like(flat, dtype=torch.bool)
    return chosen.scatter_(1, flat.topk(k, dim=1).indices, True).view_as(scores)


def _threshold(scores: Tensor, k: int, temperature: float) -> Tensor:
    """Return the root t `[N, 1]` of sum(sigmoid((scores - t) / temperature)) = k by Newton steps inside a bisection."""
    pixels = scores.shape[1]
    # Were all scores equal, the root would lie here; the extreme scores therefore bracket it.
    shift = temperature * math.log(k / (pixels - k))
    low, high = scores.amin(1, keepdim=True) - shift, scores.amax(1, keepdim=True) - shift
    root = (low + high) / 2
    accuracy = 4 * torch.finfo(scores.dtype).eps * k
    for iteration in range(MOST_ITERATIONS):
        chosen = torch.sigmoid((scores - root) / temperature)
        excess = chosen.sum(1, keepdim=True) - k
        middle = (low + high) / 2
        if bool(((excess.abs() <= accuracy) | (middle == low) | (middle == high)).all()):
            break
        low, high = torch.where(excess > 0, root, low), torch.where(excess > 0, high, root)
        middle = (low + high) / 2
        if iteration % 2:
            # Every other step halves the bracket, whatever Newton does where the sum is nearly a staircase.
            root = middle
            continue
        slope = (chosen * (1 - chosen)).sum(1, keepdim=True) / temperature
        newton = root + excess / slope.clamp_min(torch.finfo(scores.dtype).tiny)
        root = torch.where((newton > low) & (newton < high), newton, middle)
    return root


class _RelaxedTopK(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, scores: Tensor, k: int, temperature: float) -> Tensor:
        chosen = torch.sigmoid((scores - _threshold(scores, k, temperature)) / temperature)
        ctx.save_for_backward(chosen)
        ctx.temperature = temperature
        return chosen

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        # dz_i/ds_j = w_i / temperature * (1[i = j] - w_j / sum(w)), with w = z (1 - z): the threshold moves so that the
        # sum stays k.
        (chosen,) = ctx.saved_tensors
        weight = chosen * (1 - chosen)
        total = weight.sum(1, keepdim=True).clamp_min(torch.finfo(chosen.dtype).tiny)
        mean = (weight * gradient).sum(1, keepdim=True) / total
        return weight * (gradient - mean) / ctx.temperature, None, None


def relaxed_top_k(scores: Tensor, k: int, temperature: float) -> Tensor:
    """Return z like `scores` `[N, ...]`, each in [0, 1] and summing to `k` in each image; differentiable in `scores`.

    Equal scores get equal z. Raises MetricError unless 1 <= k <= P, the temperature is above 0 and scores are finite.
    Source: Amos et al., arXiv:1906.08707, with a temperature.
    """
    flat = scores.flatten(1)
    if not 1 <= k <= flat.shape[1] or not temperature > 0:
        raise MetricError(
            f"A relaxed choice of {k} among {flat.shape[1]} pixels at temperature {temperature:g} is not defined: "
            "choose 1 to all of the pixels and a temperature above 0."
        )
    if not torch.isfinite(scores.detach()).all():
        raise MetricError("The scores of a relaxed choice of pixels are not finite: lower vulnerability.lr.")
    if k == flat.shape[1]:
        return torch.ones_like(scores) + 0 * scores
    return _RelaxedTopK.apply(flat, k, temperature).view_as(scores)
