"""Is the gradient that a network gives the slope of what it computes? Compared with central differences.

A straight-through estimator, a branch that is cut off, or a converter's mistake gives gradients that lead elsewhere;
every attack and every counterfactual would follow them. The slope is measured along the sign of the gradient, the
direction of attacks, and along random signs, where a gradient that misses something misses it too.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

STEPS = {torch.float64: (1e-5,), torch.float32: (3e-3, 1e-3, 3e-4)}
"""Changes of a pixel by the number type of the answers: in float32 a short step drowns in rounding, and a long one
crosses the kinks of rectifiers, so that the best of a few is taken."""
LIMIT = {torch.float64: 0.01, torch.float32: 0.05}
"""Largest relative difference that rounding and kinks may make, by the number type of the differences."""
ROUNDINGS = 16.0
"""Units of rounding that an answer of a deep network may be off by."""
RANDOM_DIRECTIONS = 2
TINY = 1e-30

Score = Callable[[Tensor], Tensor]
"""From images `[N, C, H, W]` to one number each, `[N]`."""


@dataclass(frozen=True)
class Exact:
    """A score whose differences are trusted, computed in numbers of `kind` (float32 or float64) from such images."""

    score: Score
    kind: torch.dtype


@dataclass(frozen=True)
class Slopes:
    """The median relative difference between gradient and central differences, and the bound that it may not exceed."""

    error: float
    limit: float

    @property
    def agree(self) -> bool:
        return self.error <= self.limit


def compare_slopes(score: Score, exact: Exact, images: Tensor, rng: torch.Generator) -> Slopes:
    """Compare the gradient of `score` at `images` with central differences of `exact`, the same function.

    `exact` may compute in other numbers or in another runtime.
    """
    given = images.clone().requires_grad_()
    scores = score(given).sum()
    if scores.requires_grad:
        (gradient,) = torch.autograd.grad(scores, given, materialize_grads=True)
    else:
        gradient = torch.zeros_like(images)
    random = torch.randint(0, 2, (RANDOM_DIRECTIONS, *images.shape), generator=rng).to(images) * 2 - 1
    point, errors = images.to(exact.kind), []
    with torch.no_grad():
        for direction in (gradient.sign(), *random):
            along = (gradient.double() * direction.double()).flatten(1).sum(1)
            tried = []
            for step in STEPS[exact.kind]:
                change = step * direction.to(exact.kind)
                above, below = exact.score(point + change).double(), exact.score(point - change).double()
                rounding = ROUNDINGS * torch.finfo(exact.kind).eps * above.abs() / step
                found = (above - below) / (2 * step)
                gap = ((along - found).abs() - rounding).clamp_min(0)
                tried.append(gap / torch.maximum(along.abs(), found.abs()).clamp_min(TINY))
            errors.append(torch.stack(tried).amin(0))
    return Slopes(float(torch.cat(errors).median()), LIMIT[exact.kind])
