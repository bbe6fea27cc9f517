"""What the scores of all models share: query images, inversions, real target images and their embeddings, once."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from audit.data.audit_set import AuditSet
from audit.embeddings.embedding import Embedder, FeatureNetwork, embed_all
from audit.errors import DataError
from audit.inversion.invert import Inversion
from audit.metrics.edit import nearest_distance
from audit.pipeline.networks import Networks
from audit.results import MAIN_REGION
from audit.runtime.progress import stage_progress
from audit.runtime.seeds import stage_generator

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
class Common:
    """What the scores of all models rest on: images `[N, C, H, W]`, masks `[N, H, W]`, embeddings `[N, d]`."""

    ids: tuple[str, ...]
    labels: Tensor
    queries: Tensor
    inversions: Tensor
    embedded_inversions: Tensor
    canonical_inversions: dict[str, Tensor]
    regions: dict[str, Tensor]
    network: Embedder
    perceptual: FeatureNetwork
    canonical: Sequence[Embedder]
    class_names: tuple[str, ...]
    device: torch.device
    real: dict[int, RealTargets] = field(default_factory=dict)


def embed_with_bar(network: Embedder, images: AuditSet, device: torch.device, stage: str) -> Tensor:
    """Embed a whole set `[N, d]` behind a progress bar, a batch at a time."""
    parts = []
    with stage_progress(stage, len(images)) as advance:
        for batch, _, _ in images.batches(256):
            parts.append(embed_all(network, batch, 256, device))
            advance(len(batch))
    return torch.cat(parts)


def gather(
    rows: AuditSet, queries: Tensor, inversion: Inversion, calibration: AuditSet, embedded: Tensor,
    targets: Sequence[int], networks: Networks, seed: int, device: torch.device,
) -> Common:  # fmt: skip
    """Put together what is shared for the query images and the target classes that some model was asked for.

    `rows` are the query images' rows and `queries` `[N, C, H, W]` their pixels; `embedded` `[M, d]` are the calibration
    images in the domain embedding. Raises DataError if a target class has no calibration image.
    """
    names = [MAIN_REGION, *(r for r in rows.regions if r != MAIN_REGION)] if rows.regions else []
    common = Common(
        ids=rows.row_ids,
        labels=rows.row_labels,
        queries=queries,
        inversions=inversion.images,
        embedded_inversions=embed_all(networks.embedding, inversion.images, 256, device),
        canonical_inversions={n.name: embed_all(n, inversion.images, 32, device) for n in networks.canonical},
        regions={name: rows.region(name) for name in names},
        network=networks.embedding,
        perceptual=networks.perceptual,
        canonical=networks.canonical,
        class_names=rows.class_names,
        device=device,
    )
    for target in targets:
        common.real[target] = _real_targets(calibration, embedded, target, queries, networks, seed, device)
    return common


def _real_targets(
    calibration: AuditSet, embedded: Tensor, target: int, queries: Tensor, networks: Networks, seed: int,
    device: torch.device,
) -> RealTargets:  # fmt: skip
    name = calibration.class_names[target]
    rows = (calibration.row_labels == target).nonzero()[:, 0]
    if len(rows) == 0:
        raise DataError(
            f"The calibration split of {calibration.source} has no image of the target class '{name}': add some or "
            "choose another target."
        )
    rows = rows[torch.randperm(len(rows), generator=stage_generator(seed, f"real targets/{target}"))[:REAL_TARGETS]]
    images = calibration.select(rows)
    nearest = torch.full((len(queries),), torch.inf)
    for batch, _, _ in images.batches(256):
        nearest = torch.minimum(nearest, nearest_distance(queries, batch))
    canonical = {n.name: embed_with_bar(n, images, device, f"{n.name} of real '{name}'") for n in networks.canonical}
    return RealTargets(name, embedded[rows], canonical, nearest)
