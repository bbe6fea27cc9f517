"""The worst group: where a model is right less often than on other images of the same classes.

The accuracy of a group is held against what other images of its classes get, in the group's own mix of classes
(direct standardisation, Rothman et al. 2008, chapter 15): otherwise a group of hard classes would always be the worst.
Being the worst of many is no evidence. The interval of a gap joins Wilson's of its cells (MOVER, Zou & Donner 2008) and
holds for all groups at once (Bonferroni); its p-value comes from permuting the answers within each class, the smallest
of all gaps being compared (Westfall & Young 1993).
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from torch import Tensor
from torch.nn.functional import interpolate

from audit.data.audit_set import AuditSet
from audit.metrics.intervals import distances, wilson_interval
from audit.results import Group, Interval

PERMUTATIONS = 1000
LEVEL = 0.95
CLUSTERS = "cluster"
"""Name of the column of groups that were found."""
THUMBNAIL, KEPT = 8, 10
"""Side of the thumbnails that clusters are found in, and how many of their principal components are used."""


def gaps(
    right: Tensor, labels: Tensor, columns: Mapping[str, Sequence[str]], smallest: int, rng: torch.Generator
) -> list[Group]:
    """Return every group of at least `smallest` images, the widest gap below the others first.

    `right` bool and `labels` int `[N]`; `columns` hold a value for each image, '' where there is none.
    """
    found = []
    for column, values in columns.items():
        given = np.array(values)
        for value in sorted(set(values) - {""}):
            inside = torch.from_numpy(given == value)
            weights, images = _weights(inside, labels)
            if images >= smallest:
                found.append((column, value, inside, weights))
    if not found:
        return []
    matrix = torch.stack([weights for *_, weights in found])
    p_values = _p_values(matrix, right, labels, rng)
    level = 1 - (1 - LEVEL) / len(found)
    rows = [
        Group(
            column=column,
            value=value,
            accuracy=wilson_interval(int(right[inside].sum()), int(inside.sum())),
            gap=_gap(weights, right, labels, level),
            p_value=p,
        )
        for (column, value, inside, weights), p in zip(found, p_values, strict=True)
    ]
    return sorted(rows, key=lambda row: row.gap.value or 0.0)


def _weights(inside: Tensor, labels: Tensor) -> tuple[Tensor, int]:
    """Return weights `[N]` of right answers whose sum is the gap of a group, and how many of its images are compared.

    Images of a class that is only inside or only outside of the group have no weight.
    """
    classes = labels.unique()
    within = torch.stack([(labels == c) & inside for c in classes])
    without = torch.stack([(labels == c) & ~inside for c in classes])
    both = within.any(1) & without.any(1)
    within, without = within[both].double(), without[both].double()
    images = int(within.sum())
    if images == 0:
        return torch.zeros(len(labels), dtype=torch.float64), 0
    expected = (within.sum(1) / without.sum(1))[:, None] * without
    return (within - expected).sum(0) / images, images


def _gap(weights: Tensor, right: Tensor, labels: Tensor, level: float) -> Interval:
    value, below, above = float(weights @ right.double()), 0.0, 0.0
    for c in labels.unique():
        for sign in (1, -1):
            cell = (labels == c) & (weights * sign > 0)
            if bool(cell.any()):
                share = wilson_interval(int(right[cell].sum()), int(cell.sum()), level)
                down, up = distances(share)
                size = float(weights[cell].abs().sum())
                below += (size * (down if sign > 0 else up)) ** 2
                above += (size * (up if sign > 0 else down)) ** 2
    n = int((weights > 0).sum())
    return Interval(
        value=value, low=max(value - math.sqrt(below), -1), high=min(value + math.sqrt(above), 1), level=level, n=n
    )


def _p_values(matrix: Tensor, right: Tensor, labels: Tensor, rng: torch.Generator) -> list[float]:
    """Return of each row of weights `[G, N]` how often the smallest gap of permuted answers is as small.

    Gaps are in units of their standard deviation under permutation, so that small groups do not rule.
    """
    drawn = right.double()[None].repeat(PERMUTATIONS, 1)
    for c in labels.unique():
        rows = (labels == c).nonzero()[:, 0]
        order = torch.rand(PERMUTATIONS, len(rows), generator=rng).argsort(dim=1)
        drawn[:, rows] = right[rows].double()[order]
    permuted = drawn @ matrix.T
    spread = permuted.std(dim=0).clamp_min(1e-12)
    smallest = (permuted / spread).amin(dim=1)
    seen = (matrix @ right.double()) / spread
    return [(1 + int((smallest <= one + 1e-9).sum())) / (1 + PERMUTATIONS) for one in seen]


def clusters(dataset: AuditSet, count: int, batch_size: int, seed: int) -> list[str]:
    """Return for every image the cluster it belongs to: images that look alike, found without labels and models.

    k-means on the first principal components of thumbnails and of the mean and deviation of the values.
    """
    seen = []
    for images, _, _ in dataset.batches(batch_size):
        small = interpolate(images.mean(dim=1, keepdim=True), (THUMBNAIL, THUMBNAIL), mode="area").flatten(1)
        values = images.flatten(1)
        seen.append(torch.cat([small, THUMBNAIL * torch.stack([values.mean(1), values.std(1)], dim=1)], dim=1))
    features = torch.cat(seen).numpy()
    kept = min(KEPT, *features.shape)
    features = PCA(kept, random_state=seed % 2**32).fit_transform(features)
    found = KMeans(min(count, len(features)), n_init=5, random_state=seed % 2**32).fit_predict(features)
    return [f"{one + 1}" for one in found]
