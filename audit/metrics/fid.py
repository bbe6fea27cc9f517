"""Frechet distance between two sets of embeddings (Heusel et al. 2017, arXiv:1706.08500, eq. 6).

With Gaussian moments of both sets, d = |mu_a - mu_b|^2 + tr S_a + tr S_b - 2 tr sqrt(S_a S_b). The last trace is the
nuclear norm of A_c B_c^T / sqrt((n-1)(m-1)), A_c and B_c the centred samples, because the non-zero eigenvalues of
S_a S_b are the squared singular values of that product. Taken from the samples' triangular factors it costs
min(n, d) x min(m, d), needs no matrix square root, and is exact where n < d and the covariances are singular.
"""

import torch
from torch import Tensor

from audit.embeddings.embedding import check_embeddings


def _triangular(samples: Tensor) -> Tensor:
    # R of a QR factorisation: R^T R = A^T A, with no more rows than columns.
    return torch.linalg.qr(samples, mode="r").R if len(samples) > samples.shape[1] else samples


def frechet_distance(a: Tensor, b: Tensor) -> float:
    """Frechet distance between embeddings `a` `[n, d]` and `b` `[m, d]`, in squared units of the embedding; >= 0.

    Covariances are unbiased (n - 1), as in the public implementations. The value is biased upwards by about 1/n:
    compare only at equal n. Computed in float64. Raises MetricError on fewer than two rows in either set.
    """
    check_embeddings(a, b, 2, "The Frechet distance")
    a, b = a.double(), b.double()
    mean_a, mean_b = a.mean(0), b.mean(0)
    centred_a = (a - mean_a) / (len(a) - 1) ** 0.5
    centred_b = (b - mean_b) / (len(b) - 1) ** 0.5
    cross = torch.linalg.svdvals(_triangular(centred_a) @ _triangular(centred_b).T).sum()
    distance = (mean_a - mean_b).square().sum() + centred_a.square().sum() + centred_b.square().sum() - 2 * cross
    # Rounding can leave a tiny negative number between equal sets.
    return max(float(distance), 0.0)
