"""The shortest step from a point of the box [0, 1]^D to a hyperplane without leaving the box, in L-inf and L2.

This is the inner problem of the Fast Adaptive Boundary attack (Croce & Hein 2020, arXiv 1907.02044, section 2.1). By
the optimality conditions every coordinate moves in the direction that closes the gap, until it meets the box: by
min(t, room) in L-inf, by min(t * |w|, room) in L2, with one t for each point. What the coordinates close together is
then sum of rate * min(t, limit), which is concave and piecewise linear in t. Newton's method from the left finds its t
exactly, in a few rounds over the coordinates and with no sorting: no round overshoots, and each one but the last finds
coordinates that have met the box.
"""

import torch
from torch import Tensor

from audit.robustness.attacks.ball import Norm

SMALLEST = 1e-30
LARGEST = 1e30


def shortest_step(points: Tensor, normals: Tensor, gap: Tensor, norm: Norm) -> Tensor:
    """Return the step of smallest `norm` with `normals . step = gap` and `points + step` in [0, 1], shaped as `points`.

    `points` are `[..., N, D]`, `normals` `[N, D]` and `gap` `[..., N]`: several points may share a normal. Where the
    hyperplane does not meet the box the step leads to the corner that closes most of the gap; where the normal is zero
    the step is zero.
    """
    peak = normals.abs().amax(dim=-1).clamp_min(SMALLEST)
    # Divided by its largest entry, so that the squares of a small gradient do not vanish in float32.
    normals = normals / peak[..., None]
    weight = normals.abs()
    direction = normals.sign() * gap.sign()[..., None]
    room = torch.where(direction > 0, 1 - points, points)
    total = gap.abs() / peak
    if norm == "Linf":
        length = torch.minimum(room, _level(weight, room, weight * room, total)[..., None])
    else:
        # Where the weight is zero a step of any level is zero, and the limit is of no account.
        limit = room / weight.clamp_min(SMALLEST)
        length = torch.minimum(room, _level(weight.square(), limit, weight * room, total)[..., None] * weight)
    return direction.mul_(length)


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """Return the inner products `[..., N]` of `a` `[..., N, D]` and `b` without a product of their size in memory."""
    a, b = torch.broadcast_tensors(a, b)
    return (a[..., None, :] @ b[..., None])[..., 0, 0]


def _level(rate: Tensor, limit: Tensor, reach: Tensor, total: Tensor) -> Tensor:
    """Return the t at which `sum_i rate_i * min(t, limit_i) = total`, `LARGEST` if there is none.

    All are not negative; `rate` is `[N, D]`, `limit` and `reach`, their product, `[..., N, D]`, `total` `[..., N]`.
    """
    level = total / rate.sum(dim=-1).clamp_min(SMALLEST)
    open_before = torch.ones_like(limit, dtype=torch.bool)
    while True:
        still_open = limit > level[..., None]
        if torch.equal(still_open, open_before):
            return level
        free = still_open.to(rate)
        slope = _dot(free, rate)
        left = total - _dot(1 - free, reach)
        # Never lowered: rounding could otherwise let a coordinate come and go without end.
        raised = torch.maximum(left / slope.clamp_min(SMALLEST), level)
        level = torch.where(slope > 0, raised, LARGEST)
        open_before = still_open
