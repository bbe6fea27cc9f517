"""Improved precision and recall: what share of drawn images is plausible, and what share of real ones can be drawn.

Source: Kynkäänniemi et al. 2019, "Improved Precision and Recall Metric for Assessing Generative Models", section 2. The
manifold of a set is the union of balls around its embeddings, each reaching to the k-th nearest other one; precision is
the share of drawn images inside the manifold of the real ones, recall the share of real ones inside that of the drawn.
Both depend on n: the balls shrink as n grows.
"""

import torch
from torch import Tensor

from audit.embeddings.embedding import check_embeddings

NEIGHBOURS = 3
CHUNK = 1024


def _distances(a: Tensor, b: Tensor) -> Tensor:
    # Differences, not the expanded square: embeddings far from the origin would lose the digits that decide.
    return torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist")


def radii(samples: Tensor, k: int = NEIGHBOURS) -> Tensor:
    """Distance `[n]` of each row of `samples` `[n, d]` to its k-th nearest other row."""
    # The row itself, at distance 0, is the first of the k + 1.
    parts = [_distances(part, samples).kthvalue(k + 1, dim=1).values for part in samples.split(CHUNK)]
    return torch.cat(parts)


def covered(queries: Tensor, samples: Tensor, reach: Tensor) -> float:
    """Share of `queries` `[m, d]` that lie in a ball of radius `reach` `[n]` around a row of `samples` `[n, d]`."""
    inside = [(_distances(part, samples) <= reach).any(1) for part in queries.split(CHUNK)]
    return float(torch.cat(inside).double().mean())


def precision_recall(drawn: Tensor, real: Tensor, k: int = NEIGHBOURS) -> tuple[float, float]:
    """Precision and recall in [0, 1], higher is better, of embeddings `drawn` `[n, d]` against `real` `[m, d]`.

    Memory grows with n and m, not with their product. Raises MetricError on fewer than k + 1 rows.
    """
    check_embeddings(drawn, real, k + 1, "Precision and recall")
    drawn, real = drawn.double(), real.double()
    return covered(drawn, real, radii(real, k)), covered(real, drawn, radii(drawn, k))
