"""Kernels of the distance behind realism, by name.

The squared distance of two sets is `mean K_aa + mean K_bb - 2 mean K_ab`. With K(x, y) = -|x - y| that is the energy
distance (Székely & Rizzo 2013, "Energy statistics", J. Stat. Plan. Inference 143; a maximum mean discrepancy by
Sejdinovic et al. 2013, "Equivalence of distance-based and RKHS-based statistics", Annals of Statistics 41). It is zero
for equal distributions only, so it sees spread as well as place, and has no bandwidth: in units of its gap it does not
change with the embedding's scale.

CMMD's kernel, sigma = 10 on vectors of unit length, is nearly `1 - |x - y|^2 / 200` there, whose distance is that of
the means alone: it is kept as a choice, and under its own name among the distributions.
"""

import torch
from torch import Tensor

from audit.metrics.cmmd import Kernel, gaussian_kernel


def energy_kernel(a: Tensor, b: Tensor) -> Tensor:
    """Negative Euclidean distances `[n, m]`, float64, between `a` `[n, d]` and `b` `[m, d]`."""
    # Not by the expanded square, which loses the digits of near pairs.
    return -torch.cdist(a.double(), b.double(), compute_mode="donot_use_mm_for_euclid_dist")


KERNELS: dict[str, Kernel] = {"energy": energy_kernel, "cmmd": gaussian_kernel}
"""By the words of `metrics.realism_kernel`."""
