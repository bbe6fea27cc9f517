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

from audit.robustness.ball import Norm

SMALLEST = 1e-30


def shortest_step(points: Tensor, normals: Tensor, gap: Tensor, norm: Norm) -> Tensor:
    """Return the step `[N, D]` of smallest `norm` with `normals . step = gap` and `points + step` in [0, 1].

    `points` and `normals` are `[N, D]`, `gap` is `[N]`. Where the hyperplane does not meet the box the step leads to
    the point of the box that is nearest to it in the sense of `gap`; where the normal is zero the step is zero.
    """
    peak = normals.abs().amax(dim=1, keepdim=True).clamp_min(SMALLEST)
    # Divided by its largest entry, so that the squares of a small gradient do not vanish in float32.
    normals = normals / peak
    weight = normals.abs()
    direction = normals.sign() * gap.sign()[:, None]
    room = torch.where(direction > 0, 1 - points, points)
    if norm == "Linf":
        rate, limit = weight, room
    else:
        rate = weight.square()
        limit = torch.where(weight > 0, room / weight.clamp_min(SMALLEST), 0)
    level = _level(rate, limit, weight * room, gap.abs() / peak[:, 0])[:, None]
    length = torch.minimum(level if norm == "Linf" else level * weight, room)
    return direction * length


def _level(rate: Tensor, limit: Tensor, reach: Tensor, total: Tensor) -> Tensor:
    """Return the t `[N]` at which `sum_i rate_i * min(t, limit_i) = total`, the largest limit if there is none.

    All but `total` `[N]` are `[N, D]` and not negative; `reach` is `rate * limit`, given because it may be had without
    the rounding of the product.
    """
    level = total / rate.sum(dim=1).clamp_min(SMALLEST)
    met_before = torch.zeros_like(rate, dtype=torch.bool)
    largest = limit.amax(dim=1)
    while True:
        met = limit <= level[:, None]
        if torch.equal(met, met_before):
            return level.minimum(largest)
        slope = rate.masked_fill(met, 0).sum(dim=1)
        left = total - torch.where(met, reach, 0).sum(dim=1)
        # Never lowered: rounding could otherwise let a coordinate come and go without end.
        level = torch.where(slope > 0, torch.maximum(left / slope.clamp_min(SMALLEST), level), largest)
        met_before = met
