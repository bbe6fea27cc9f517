"""A distribution metric's row in the results: the distance of counterfactuals, of inversions, and of real images.

On a few hundred images these distances mostly measure n. So a value is always given with two others at (as nearly as
possible) the same n: the distance of the unedited inversions, and that between two sets of real images, the floor.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from audit.embeddings.embedding import Embedder, check_embeddings, named
from audit.metrics.cmmd import metric_name, mmd
from audit.metrics.fid import frechet_distance
from audit.results import Distribution

FLOOR_SPLITS = 5
Kind = Literal["fid", "mmd"]
Estimator = Literal["biased", "unbiased"]
Measure = tuple[Kind, Estimator]


@dataclass(frozen=True)
class EmbeddedSets:
    """What is compared towards one class `target`, in one embedding: edited and unedited images, and real ones.

    `counterfactuals` and `inversions` are `[n, d]` of the same query images, `real` `[m, d]` of images of the class.
    """

    target: str
    counterfactuals: Tensor
    inversions: Tensor
    real: Tensor


def canonical_kinds(name: str) -> tuple[Measure, ...]:
    """What is measured in the canonical network called `name`: CMMD in CLIP, FID in any other."""
    return (("mmd", "biased"), ("mmd", "unbiased")) if metric_name(name) == "cmmd" else (("fid", "biased"),)


def real_floor(real: Tensor, n: int, distance: Callable[[Tensor, Tensor], float], generator: torch.Generator) -> float:
    """Mean `distance` between n (at most half) random rows of `real` `[m, d]` and the others, over five splits."""
    check_embeddings(real, real, 4, "The real-against-real floor")
    first = min(n, len(real) // 2)
    values = []
    for _ in range(FLOOR_SPLITS):
        order = torch.randperm(len(real), generator=generator)
        values.append(distance(real[order[:first]], real[order[first:]]))
    return sum(values) / len(values)


def distribution_row(
    measure: Measure, network: Embedder, sets: EmbeddedSets, generator: torch.Generator, min_images: int = 2
) -> Distribution:
    """Distance of the counterfactuals to the real images, beside that of the inversions and the floor.

    The embeddings come from `network`, which is named in the row; "mmd" is called "cmmd" in a CLIP embedding. Raises
    MetricError on fewer than `min_images` counterfactuals or real images.
    """
    kind, estimator = measure

    def distance(a: Tensor, b: Tensor) -> float:
        if kind == "fid":
            return frechet_distance(a, b)
        return mmd(a, b, estimator=estimator)

    check_embeddings(sets.counterfactuals, sets.real, min_images, f"{kind.upper()} towards '{sets.target}'")
    return Distribution(
        metric="fid" if kind == "fid" else metric_name(network.name),
        estimator="biased" if kind == "fid" else estimator,
        value=distance(sets.counterfactuals, sets.real),
        inversion=distance(sets.inversions, sets.real),
        floor=real_floor(sets.real, len(sets.counterfactuals), distance, generator),
        n=len(sets.counterfactuals),
        n_real=len(sets.real),
        target=sets.target,
        embedding=named(network),
    )
