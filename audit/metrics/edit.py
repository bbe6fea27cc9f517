"""The edit itself: map, size and extent, always measured against the inversion.

Against the query image the error of the inversion would be counted as an edit.
"""

import torch
from torch import Tensor

from audit.embeddings.embedding import check_embeddings, check_images, check_pair
from audit.errors import MetricError
from audit.metrics.cmmd import unit_norm

VISIBLE = 4 / 255
"""A pixel counts as changed above this difference, in pixel units."""


def edit_map(counterfactuals: Tensor, inversions: Tensor) -> Tensor:
    """Absolute change `[N, H, W]`, mean over channels, between two sets `[N, C, H, W]` in [0, 1]."""
    check_pair(counterfactuals, inversions, "counterfactuals and inversions")
    return (counterfactuals - inversions).abs().mean(1)


def visible(edit: Tensor, threshold: float = VISIBLE) -> Tensor:
    """Return the edit map with what nobody sees, pixels changed by at most `threshold`, set to 0."""
    return torch.where(edit > threshold, edit, 0.0)


def mean_absolute(a: Tensor, b: Tensor) -> Tensor:
    """Mean absolute pixel difference `[N]` between pairs of images `[N, C, H, W]` in [0, 1]."""
    check_pair(a, b, "images of the mean absolute difference")
    return (a - b).abs().flatten(1).mean(1)


def changed_share(counterfactuals: Tensor, inversions: Tensor, threshold: float = VISIBLE) -> Tensor:
    """Share `[N]` of pixels of which some channel changed by more than `threshold`."""
    check_pair(counterfactuals, inversions, "counterfactuals and inversions")
    return ((counterfactuals - inversions).abs().amax(1) > threshold).float().mean((1, 2))


def nearest_distance(queries: Tensor, real: Tensor, chunk: int = 256) -> Tensor:
    """Mean absolute difference `[N]` of each query image to its nearest image of `real`.

    At most `chunk` real images are compared at a time. Raises MetricError if `real` is empty or of another shape.
    """
    check_images(queries, "query images")
    check_images(real, "real target images")
    if len(real) == 0 or queries.shape[1:] != real.shape[1:]:
        raise MetricError(
            f"Nearest target images are sought among {len(real)} of shape {tuple(real.shape[1:])} for queries of shape "
            f"{tuple(queries.shape[1:])}: give at least one real target image of the queries' size."
        )
    flat = queries.flatten(1)
    best = torch.full((len(queries),), torch.inf, dtype=flat.dtype, device=flat.device)
    for part in real.flatten(1).split(chunk):
        best = torch.minimum(best, (torch.cdist(flat, part.to(flat), p=1) / flat.shape[1]).amin(1))
    return best


def ruins(l1: Tensor, nearest_l1: Tensor, edited: Tensor, inverted: Tensor, real: Tensor) -> Tensor:
    """Say `[N]` which edits spoil an image instead of leading it to its target class.

    Such an edit is as large as exchanging the image for the nearest real one of the target class (`l1 >= nearest_l1`,
    both `[N]`), and yet brings it no nearer to any of those. Large edits that do (another exposure, another person) are
    none. Nearness is between vectors of unit length of counterfactuals and inversions `[N, d]` and `real` `[m, d]`.
    """
    check_embeddings(edited, real, 1, "Nearness to real images")
    target = unit_norm(real)
    after, before = (torch.cdist(unit_norm(one), target).amin(1) for one in (edited, inverted))
    return (nearest_l1 > 0) & (l1 >= nearest_l1) & (after >= before)
