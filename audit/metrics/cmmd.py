"""Maximum mean discrepancy with a Gaussian kernel (Gretton et al. 2012), scaled as CMMD (Jayasumana et al. 2024).

`scale * (mean K_aa + mean K_bb - 2 mean K_ab)`, `K(x, y) = exp(-|x - y|^2 / (2 sigma^2))` on L2-normalised embeddings
(arXiv:2401.09603, eq. 4-5). It is called CMMD only in a CLIP embedding; in any other it is plain MMD.
"""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from audit.embeddings.embedding import check_embeddings

Kernel = Callable[[Tensor, Tensor], Tensor]
"""Maps sets `[n, d]` and `[m, d]` to their kernel matrix `[n, m]`, float64, by differences of their rows."""

SIGMA = 10.0
SCALE = 1000.0
CHUNK = 4096
"""Largest side of the piece of a kernel matrix that is held at a time."""


def metric_name(embedding: str) -> Literal["cmmd", "mmd"]:
    """Name of the metric in the embedding called `embedding`: "cmmd" for CLIP, else "mmd"."""
    return "cmmd" if embedding.lower().startswith("clip") else "mmd"


def unit_norm(embeddings: Tensor) -> Tensor:
    """Scale every row of `[n, d]` to length 1, in float64; a zero row stays zero."""
    return torch.nn.functional.normalize(embeddings.double(), dim=1)


def gaussian_kernel(a: Tensor, b: Tensor) -> Tensor:
    """Kernel matrix `[n, m]` between `a` `[n, d]` and `b` `[m, d]`, float64.

    In float64 because with unit vectors and sigma 10 all entries lie in [0.98, 1] and the discrepancy is in the
    digits that float32 rounds away.
    """
    a, b = a.double(), b.double()
    squared = a.square().sum(1)[:, None] + b.square().sum(1)[None] - 2 * a @ b.T
    return torch.exp(-squared.clamp_min(0) / (2 * SIGMA**2))


def kernel_sum(a: Tensor, b: Tensor, kernel: Kernel = gaussian_kernel) -> float:
    """Sum of the kernel matrix between `a` and `b`, holding at most CHUNK x CHUNK of it at a time."""
    return sum(float(kernel(p, q).sum()) for p in a.split(CHUNK) for q in b.split(CHUNK))


def mmd(a: Tensor, b: Tensor, estimator: Literal["biased", "unbiased"] = "biased") -> float:
    """Squared maximum mean discrepancy between embeddings `a` `[n, d]` and `b` `[m, d]`, times SCALE.

    The rows are first scaled to unit length, as CMMD defines it. The biased estimator (the published one) is >= 0 and
    contains the diagonals; the unbiased one leaves them out, is 0 on average for equal distributions whatever n, and
    can be negative. Raises MetricError on fewer than two rows in either set.
    """
    check_embeddings(a, b, 2, "The maximum mean discrepancy")
    a, b = unit_norm(a), unit_norm(b)
    n, m = len(a), len(b)
    within_a, within_b = kernel_sum(a, a), kernel_sum(b, b)
    across = kernel_sum(a, b) / (n * m)
    if estimator == "biased":
        # The two means and the cross mean are near 1 each; below the rounding of their sum the value is zero.
        return SCALE * max(within_a / n**2 + within_b / m**2 - 2 * across, 0.0)
    return SCALE * ((within_a - n) / (n * (n - 1)) + (within_b - m) / (m * (m - 1)) - 2 * across)
