"""One line of results per distribution metric: counterfactuals, inversions and the real-against-real floor together.

On a few hundred images these distances mostly measure n, so a value never stands without the same distance for the
unedited inversions of the same queries and for real images against real ones at (as nearly as possible) the same n.
"""

from collections.abc import Callable
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


def canonical_kinds(name: str) -> tuple[tuple[Kind, Estimator], ...]:
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
    kind: Kind,
    network: Embedder,
    counterfactuals: Tensor,
    inversions: Tensor,
    real: Tensor,
    target: str,
    generator: torch.Generator,
    min_images: int = 2,
    estimator: Estimator = "biased",
) -> Distribution:
    """Distance of embedded counterfactuals `[n, d]` to real images `[m, d]` of class `target`, with its context.

    The embeddings come from `network`, which is named in the row; "mmd" is called "cmmd" in a CLIP embedding. Raises
    MetricError on fewer than `min_images` of either kind.
    """

    def distance(a: Tensor, b: Tensor) -> float:
        if kind == "fid":
            return frechet_distance(a, b)
        return mmd(a, b, estimator=estimator)

    check_embeddings(counterfactuals, real, min_images, f"{kind.upper()} towards '{target}'")
    return Distribution(
        metric="fid" if kind == "fid" else metric_name(network.name),
        estimator="biased" if kind == "fid" else estimator,
        value=distance(counterfactuals, real),
        inversion=distance(inversions, real),
        floor=real_floor(real, len(counterfactuals), distance, generator),
        n=len(counterfactuals),
        n_real=len(real),
        target=target,
        embedding=named(network),
    )
