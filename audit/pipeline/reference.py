"""What the counterfactuals of all models are compared with: inversions and real target images, embedded once."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from audit.data.audit_set import AuditSet
from audit.embeddings.embedding import Embedder
from audit.errors import DataError
from audit.metrics.edit import nearest_distance
from audit.pipeline.context import Context
from audit.pipeline.looks import embed_with_bar, embedded
from audit.pipeline.networks import Networks
from audit.pipeline.queries import Queries
from audit.results import MAIN_REGION

REAL_TARGETS = 1000
"""Most real images of a target class that distributions and nearest neighbours are taken from."""


@dataclass(frozen=True)
class RealTargets:
    """Real images of one target class from the calibration split, by what is measured on them.

    `embedded` `[m, d]` in the domain embedding, `canonical` `[m, D]` by the name of a canonical network, and `nearest`
    `[N]` the mean absolute difference of every query image to the nearest of them.
    """

    name: str
    embedded: Tensor
    canonical: dict[str, Tensor]
    nearest: Tensor


@dataclass(frozen=True)
class Reference:
    """What the counterfactuals of all models are compared with: queries, inversions and real images, once embedded.

    `embedded_inversions` `[N, d]` are in the domain embedding, `canonical_inversions` `[N, D]` by the name of a
    canonical network; `regions` hold masks `[N, H, W]`, and `real` the target classes that some model was asked for.
    `edits` says by target class how many edits of a model enter FID and MMD, which depend on the number.
    """

    queries: Queries
    networks: Networks
    embedded_inversions: Tensor
    canonical_inversions: Mapping[str, Tensor]
    regions: Mapping[str, Tensor]
    real: Mapping[int, RealTargets]
    edits: Mapping[int, int]

    @property
    def inversions(self) -> Tensor:
        """Inverted query images `[N, C, H, W]`."""
        return self.queries.inversion.images

    def of(self, queries: Queries) -> "Reference":
        """Return what concerns `queries`, which are some of these, in their order."""
        if queries is self.queries:
            return self
        places = self.queries.places_of(queries)
        return replace(
            self,
            queries=queries,
            embedded_inversions=self.embedded_inversions[places],
            canonical_inversions={name: seen[places] for name, seen in self.canonical_inversions.items()},
            regions={name: masks[places] for name, masks in self.regions.items()},
            real={target: replace(one, nearest=one.nearest[places]) for target, one in self.real.items()},
        )

    @property
    def class_names(self) -> tuple[str, ...]:
        return self.queries.rows.class_names


def build_reference(
    context: Context,
    networks: Networks,
    queries: Queries,
    calibration: AuditSet,
    known: Tensor,
    edits: Mapping[int, int],
) -> Reference:
    """Put together what the counterfactuals of all models are compared with.

    `edits` holds the target classes and how many edits of a model enter FID and MMD, `known` `[M, d]` the
    calibration images in the domain embedding. Raises DataError if a target class has no calibration image.
    """
    rows, inverted = queries.rows, queries.inversion.images
    names = [MAIN_REGION, *(r for r in rows.regions if r != MAIN_REGION)] if rows.regions else []
    return Reference(
        queries=queries,
        networks=networks,
        embedded_inversions=embedded(context, networks.embedding, inverted),
        canonical_inversions={n.name: embedded(context, n, inverted, 32) for n in networks.canonical},
        regions={name: rows.region(name) for name in names},
        real={t: _real_targets(context, networks.canonical, queries, calibration, known, t) for t in edits},
        edits=edits,
    )


def _real_targets(
    context: Context,
    canonical: Sequence[Embedder],
    queries: Queries,
    calibration: AuditSet,
    known: Tensor,
    target: int,
) -> RealTargets:
    name = calibration.class_names[target]
    rows = (calibration.row_labels == target).nonzero()[:, 0]
    if len(rows) == 0:
        raise DataError(
            f"The calibration split of {calibration.source} has no image of the target class '{name}': add some or "
            "choose another target."
        )
    rows = rows[torch.randperm(len(rows), generator=context.rng(f"real targets/{target}"))[:REAL_TARGETS]]
    images = calibration.select(rows)
    nearest = torch.full((len(queries.images),), torch.inf)
    for batch, _, _ in images.batches(256):
        nearest = torch.minimum(nearest, nearest_distance(queries.images, batch))
    seen = {n.name: embed_with_bar(context, n, images, f"{n.name} of real '{name}'") for n in canonical}
    return RealTargets(name, known[rows], seen, nearest)
