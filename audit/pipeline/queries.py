"""Which images are explained - those of the source classes that every model classifies correctly - and their codes.

A few more than asked for are inverted, to replace those that a model decides otherwise after inversion alone: they
would count as counterfactuals without an edit.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from audit.config import QueryConfig
from audit.data.audit_set import AuditSet
from audit.errors import ConfigError, DataError
from audit.inversion.cache import keep_in, keep_without_store
from audit.inversion.invert import Inversion, invert
from audit.inversion.inverter import Inverter
from audit.pipeline.context import Context
from audit.pipeline.networks import Networks
from audit.results import Failure
from audit.runtime.progress import stage_progress
from audit.runtime.seeds import stage_generator

METHODS = ("nearest", "runner-up")
SPARE = 12
"""One query image more is inverted for this many asked for."""


@dataclass(frozen=True)
class Selection:
    """Positions of the query images, and per model and class how many candidates it misclassifies."""

    indices: Tensor
    left_out: dict[str, dict[str, int]]


@dataclass(frozen=True)
class Queries:
    """The N images to explain: their rows, their `positions` `[N]` in the audit split and their inversions."""

    rows: AuditSet
    positions: Tensor
    inversion: Inversion

    @cached_property
    def images(self) -> Tensor:
        """Images `[N, C, H, W]`."""
        return self.rows.images()

    @property
    def labels(self) -> Tensor:
        """Classes `[N]`."""
        return self.rows.row_labels

    def select(self, kept: Tensor) -> "Queries":
        """Return the queries at the places `kept`."""
        return Queries(self.rows.select(kept), self.positions[kept], self.inversion.select(kept))


def source_classes(config: QueryConfig, class_names: Sequence[str]) -> tuple[int, ...]:
    """Classes whose images are explained: as configured, else all but a fixed target. Raises ConfigError."""
    if config.target not in METHODS and config.target not in class_names:
        raise ConfigError(
            f"Key 'queries.target' names '{config.target}', which is not one of the classes: give 'nearest', "
            f"'runner-up' or one of {', '.join(class_names)}."
        )
    names = config.classes if config.classes is not None else tuple(n for n in class_names if n != config.target)
    for name in names:
        if name not in class_names:
            raise ConfigError(
                f"Key 'queries.classes' names '{name}', which is not one of the classes: {', '.join(class_names)}."
            )
    sources = tuple(class_names.index(name) for name in dict.fromkeys(names) if name != config.target)
    if not sources:
        raise ConfigError("Key 'queries.classes' leaves nothing to explain: name a class other than the target.")
    return sources


def asked_classes(config: QueryConfig, class_names: Sequence[str]) -> tuple[int, ...]:
    """Classes that an edit may leave or enter: the source classes and what can be their target. Raises ConfigError."""
    sources = source_classes(config, class_names)
    targets = range(len(class_names)) if config.target in METHODS else [class_names.index(config.target)]
    return tuple(sorted({*sources, *targets}))


def select_queries(
    labels: Tensor, predicted: Mapping[str, Tensor], config: QueryConfig, class_names: Sequence[str], seed: int
) -> Selection:
    """Choose at most `config.n` rows of `labels` `[N]`, equal shares per source class, in a seeded order.

    `predicted` maps a model's name to its decisions `[N]`. A class with too few rows leaves its share to the others.
    """
    sources = source_classes(config, class_names)
    candidate = torch.isin(labels, torch.tensor(sources))
    wrong = {name: candidate & (decision != labels) for name, decision in predicted.items()}
    left_out = {
        name: {class_names[c]: int((mask & (labels == c)).sum()) for c in sources} for name, mask in wrong.items()
    }
    common = candidate.clone()
    for mask in wrong.values():
        common &= ~mask
    order = torch.randperm(len(labels), generator=stage_generator(seed, "queries"))
    queues = [order[common[order] & (labels[order] == c)].tolist() for c in sources]
    chosen: list[int] = []
    while len(chosen) < config.n and any(queues):
        for queue in queues:
            if queue and len(chosen) < config.n:
                chosen.append(queue.pop(0))
    return Selection(torch.tensor(chosen, dtype=torch.int64), left_out)


def choose_queries(
    context: Context, audited: AuditSet, predicted: Mapping[str, Tensor]
) -> tuple[Selection, dict[str, Failure]]:
    """Choose the images that all models classify correctly, but for a model that gets none of them right.

    `predicted` maps a model's name to its decisions on the `audited` images. Returns the choice, and by name why a
    model takes no part in it.
    """
    config, labels, names = context.config.queries, audited.row_labels, audited.class_names
    candidates = torch.isin(labels, torch.tensor(source_classes(config, names)))
    blind = [name for name, p in predicted.items() if not bool((p[candidates] == labels[candidates]).any())]
    failed = {
        name: Failure(
            stage="query images",
            why=f"Classifier '{name}' gets none of the {int(candidates.sum())} images of the source classes right, so "
            "that there is nothing to explain: check the order of its classes and its mean and std.",
        )
        for name in (blind if len(blind) < len(predicted) else ())
    }
    others = {name: p for name, p in predicted.items() if name not in failed}
    spare = config.model_copy(update={"n": config.n + max(2, config.n // SPARE)})
    return select_queries(labels, others, spare, names, context.config.seed), failed


def invert_queries(context: Context, networks: Networks, audited: AuditSet, chosen: Selection) -> Queries:
    """Invert the chosen images once for all models; an inversion depends on generator, image and settings only.

    Raises DataError where there are too few.
    """
    if len(chosen.indices) < 2:
        counts = ", ".join(f"{name} misses {sum(missed.values())}" for name, missed in chosen.left_out.items())
        raise DataError(
            f"Only {len(chosen.indices)} image(s) of the source classes are classified correctly by all models "
            f"({counts}): audit more images, set queries.classes, or leave a model out."
        )
    rows = audited.select(chosen.indices)
    return Queries(rows, chosen.indices, _invert(context, networks, rows.images()))


def null_edits(context: Context, networks: Networks, queries: Queries) -> Tensor:
    """Invert the first `metrics.axioms` query images `metrics.null_edits` times in a row, without an edit.

    The first time is that of `queries`.
    """
    config, images = context.config.metrics, queries.inversion.images
    for _ in range(1, config.null_edits):
        images = _invert(context, networks, images[: config.axioms]).images
    return images


def _invert(context: Context, networks: Networks, images: Tensor) -> Inversion:
    config, perceptual = context.config, networks.perceptual
    keep = (
        keep_without_store()
        if context.store is None
        else keep_in(
            context.store,
            generator=networks.loaded.sha256,
            encoder=networks.encoder_sha256,
            embedding=[perceptual.name, perceptual.weights_sha256],
            settings=config.inversion,
            seed=config.seed,
        )
    )
    inverter = Inverter(networks.loaded.generator, config.inversion, config.seed, perceptual, networks.encoder)
    with stage_progress("inversion (images)", len(images)) as advance:
        return invert(inverter, images, advance, keep)


def stable_queries(inverted: Queries, same: Sequence[Tensor], wanted: int) -> Queries:
    """Return the first `wanted` of the `inverted` images whose inversion every model decides as the image itself.

    `same` holds for each model bool `[N]`. Raises DataError where there are too few.
    """
    kept = torch.stack(list(same)).all(dim=0).nonzero()[:wanted, 0]
    if len(kept) < 2:
        raise DataError(
            f"The models keep their decision on {len(kept)} of {len(inverted.rows)} inverted query images: the "
            f"inversions (mean squared error {float(inverted.inversion.mse.mean()):.2g}) are too poor; train the "
            "generator longer."
        )
    return inverted.select(kept)
