"""Which images of each model are explained, and their codes.

A few more than asked for are inverted, to replace those that a model decides otherwise after inversion alone: they
would count as counterfactuals without an edit.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial

import torch
from torch import Tensor

from audit.config import QueryConfig
from audit.data.audit_set import AuditSet
from audit.embeddings.embedding import named
from audit.errors import ConfigError
from audit.inversion.cache import CODE, Row, inverted, keep_without_store
from audit.inversion.invert import Inversion, images_at_once, invert
from audit.inversion.inverter import Inverter
from audit.pipeline.context import Context
from audit.pipeline.divided import Order, Site, compute
from audit.pipeline.networks import Networks
from audit.pipeline.pairing import LEAST, Group, balanced, pair_models
from audit.results import Failure
from audit.runtime.progress import stage_progress
from audit.runtime.seeds import stage_generator
from audit.storage.stages import Lots

METHODS = ("nearest", "runner-up")
SPARE = 12
"""One query image more is inverted for this many asked for."""


@dataclass(frozen=True)
class Selection:
    """Which images are to be explained.

    `indices` `[M]` are the positions of all of them in the audit split, at whose places every one of the `groups` has
    its own. `left_out` says per model and class how many candidates it misclassifies, `failed` which models cannot be
    explained, and `nothing` of which there is nothing to explain.
    """

    indices: Tensor
    groups: tuple[Group, ...]
    left_out: dict[str, dict[str, int]] = field(default_factory=dict)
    failed: dict[str, Failure] = field(default_factory=dict)
    nothing: dict[str, str] = field(default_factory=dict)


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

    def places_of(self, some: "Queries") -> Tensor:
        """Places `[n]` of `some` of these queries among them."""
        return (some.positions[:, None] == self.positions).nonzero()[:, 1]

    def of(self, audited: AuditSet, indices: Tensor) -> "Queries":
        """Return these inversions for the images at `indices` of `audited`, another view of the same images."""
        rows = audited.select(indices)
        place = {row: i for i, row in enumerate(self.rows.row_numbers.tolist())}
        places = torch.tensor([place[row] for row in rows.row_numbers.tolist()], dtype=torch.int64)
        return Queries(rows, indices, self.inversion.select(places))

    def select(self, kept: Tensor) -> "Queries":
        """Return the queries at the places `kept`."""
        return Queries(self.rows.select(kept), self.positions[kept], self.inversion.select(kept))


def source_classes(config: QueryConfig, class_names: Sequence[str]) -> tuple[int, ...]:
    """Classes whose images are explained: as configured, else all but a fixed target. Raises ConfigError.

    A fixed target is none of misclassified images, which are led to their own class.
    """
    if config.target not in METHODS and config.target not in class_names:
        raise ConfigError(
            f"Key 'queries.target' names '{config.target}', which is not one of the classes: give 'nearest', "
            f"'runner-up' or one of {', '.join(class_names)}."
        )
    names = config.classes if config.classes is not None else tuple(class_names)
    for name in names:
        if name not in class_names:
            raise ConfigError(
                f"Key 'queries.classes' names '{name}', which is not one of the classes: {', '.join(class_names)}."
            )
    kept = [name for name in dict.fromkeys(names) if name != config.target or config.pick == "wrong"]
    sources = tuple(class_names.index(name) for name in kept)
    if not sources:
        raise ConfigError("Key 'queries.classes' leaves nothing to explain: name a class other than the target.")
    return sources


def asked_classes(config: QueryConfig, class_names: Sequence[str]) -> tuple[int, ...]:
    """Classes that an edit may leave or enter: the source classes and what can be their target. Raises ConfigError."""
    sources = source_classes(config, class_names)
    if config.pick == "wrong":  # their own classes are the targets
        return sources
    targets = range(len(class_names)) if config.target in METHODS else [class_names.index(config.target)]
    return tuple(sorted({*sources, *targets}))


def sure_targets(config: QueryConfig, class_names: Sequence[str]) -> tuple[int, ...]:
    """Classes that some edit is led to, whatever the models answer; 'nearest' and 'runner-up' depend on that."""
    own = source_classes(config, class_names) if config.pick != "correct" else ()
    fixed = [class_names.index(config.target)] if config.target not in METHODS and config.pick != "wrong" else []
    return tuple(sorted({*own, *fixed}))


def choose_queries(context: Context, audited: AuditSet, predicted: Mapping[str, Tensor]) -> Selection:
    """Choose at most `queries.n` images per model and some to spare, equal shares per source class in a seeded order.

    `predicted` maps a model's name to its decisions on the `audited` images. Models are explained on common images
    where that costs the others little (`pairing.py`).
    """
    config, labels, names = context.config.queries, audited.row_labels, audited.class_names
    sources = source_classes(config, names)
    candidate = torch.isin(labels, torch.tensor(sources))
    wrong = {name: candidate & (decision != labels) for name, decision in predicted.items()}
    picked = {name: {"correct": candidate & ~w, "wrong": w, "all": candidate}[config.pick] for name, w in wrong.items()}
    usable = {name: rows for name, rows in picked.items() if int(rows.sum()) >= LEAST}
    few = {name: _too_few(name, rows, candidate, config) for name, rows in picked.items() if name not in usable}
    order = torch.randperm(len(labels), generator=stage_generator(context.config.seed, "queries"))
    n = config.n + max(2, config.n // SPARE)
    members = pair_models({name: rows[candidate] for name, rows in usable.items()}, labels[candidate], config.n)
    chosen = []
    for models in members:
        common = torch.stack([usable[name] for name in models]).all(dim=0)
        chosen.append(balanced(labels, order[common[order]], sources, n))
    places = {row: place for place, row in enumerate(dict.fromkeys(torch.cat([*chosen, order[:0]]).tolist()))}
    return Selection(
        indices=torch.tensor(list(places), dtype=torch.int64),
        groups=tuple(
            Group(models, torch.tensor([places[row] for row in rows.tolist()], dtype=torch.int64))
            for models, rows in zip(members, chosen, strict=True)
        ),
        left_out={name: {names[c]: int((mask & (labels == c)).sum()) for c in sources} for name, mask in wrong.items()},
        failed={} if config.pick == "wrong" else {k: Failure(stage="query images", why=why) for k, why in few.items()},
        nothing=few if config.pick == "wrong" else {},
    )


def _too_few(name: str, picked: Tensor, candidate: Tensor, config: QueryConfig) -> str:
    found, n = int(picked.sum()) or "none", int(candidate.sum())
    if config.pick == "wrong":
        return f"Classifier '{name}' misclassifies {found} of the {n} images of the source classes; {LEAST} are needed."
    if config.pick == "all":
        return f"The audit split has {found} images of the source classes where {LEAST} are needed: audit more images."
    return (
        f"Classifier '{name}' gets {found} of the {n} images of the source classes right, so that there is nothing to "
        "explain: check the order of its classes and its mean and std."
    )


def invert_queries(context: Context, networks: Networks, audited: AuditSet, indices: Tensor) -> Queries:
    """Invert the images at `indices` once for all models; it depends on generator, image and settings only."""
    rows = audited.select(indices)
    return Queries(rows, indices, _invert(context, networks, rows.images()))


def null_edits(context: Context, networks: Networks, queries: Queries) -> Tensor:
    """Invert the first `metrics.axioms` query images `metrics.null_edits` times in a row, without an edit.

    The first time is that of `queries`.
    """
    config, images = context.config.metrics, queries.inversion.images
    for _ in range(1, config.null_edits):
        images = _invert(context, networks, images[: config.axioms]).images
    return images


def _invert(context: Context, networks: Networks, images: Tensor) -> Inversion:
    inverter = _inverter(context, networks)
    with stage_progress("inversion (images)", len(images)) as advance:
        if context.store is None:
            return invert(inverter, images, advance, keep_without_store())
        lots = _lots(context, networks, images)
        if context.engine is not None and lots.missing:
            orders = _orders(context, networks, images[lots.missing])
            if len(orders) > 1:
                compute(context, "parts: inversion", len(orders), orders)
                lots = _lots(context, networks, images)
        advance(len(images) - len(lots.missing))
        return inverted(lots, images, lambda some, keep: invert(inverter, some, advance, keep))


def _inverter(context: Context, networks: Networks) -> Inverter:
    config = context.config
    return Inverter(networks.loaded.generator, config.inversion, config.seed, networks.perceptual, networks.encoder)


def _lots(context: Context, networks: Networks, images: Tensor) -> Lots[Row]:
    """Return what is kept of the inversions of `images`."""
    return context.stages.lots(
        "inversion",
        [{"image": image} for image in images],
        CODE,
        generator=networks.loaded.sha256,
        encoder=networks.encoder_sha256,
        embedding=named(networks.perceptual),
        # How many are inverted together is no part of an image's inversion; the encoder's weights are named above.
        settings=context.config.inversion.model_dump(exclude={"batch_size", "max_memory", "encoder"}),
        seed=context.config.seed,
    )


def _orders(context: Context, networks: Networks, waiting: Tensor) -> list[Order]:
    """Return the parts that invert the images `waiting`."""
    chunks = waiting.split(images_at_once(_inverter(context, networks), waiting))
    return [Order(partial(_invert_part, images=chunk.clone())) for chunk in chunks]


def inversions_ahead(
    context: Context, networks: Networks, audited: AuditSet, predicted: Mapping[str, Tensor]
) -> list[Order]:
    """Return the parts that invert the images to explain, which the decisions `predicted` of the models tell already.

    Where a model fails before it is explained, others may be chosen in the end, and are inverted then.
    """
    if not predicted:
        return []
    indices = choose_queries(context, audited, predicted).indices
    if not len(indices):
        return []
    images = audited.select(indices).images()
    missing = _lots(context, networks, images).missing
    return _orders(context, networks, images[missing]) if missing else []


def _invert_part(site: Site, images: Tensor) -> None:
    networks = site.networks()
    assert networks is not None
    _invert(site.context, networks, images)


@dataclass(frozen=True)
class Stable:
    """Groups of models at places in the inverted images, and which models keep their decision on too few of them."""

    groups: tuple[Group, ...]
    failed: dict[str, Failure]


def stable_groups(inverted: Queries, groups: Sequence[Group], same: Mapping[str, Tensor], wanted: int) -> Stable:
    """Keep of every group the first `wanted` images whose inversion its models decide as the images themselves.

    `same` says by model which those are, bool `[M]`; a model that is not in it takes no part. A model that would cost
    its group too many of them goes on by itself, on those of its own.
    """
    found: list[Group] = []
    failed: dict[str, Failure] = {}
    for group in groups:
        kept = {name: same[name][group.places] for name in group.models if name in same}
        few = [name for name, rows in kept.items() if int(rows.sum()) < LEAST]
        failed |= {name: _unstable(name, kept.pop(name), inverted) for name in few}
        for models in pair_models(kept, inverted.labels[group.places], wanted):
            common = torch.stack([kept[name] for name in models]).all(dim=0)
            found.append(Group(models, group.places[common][:wanted]))
    return Stable(tuple(found), failed)


def _unstable(name: str, kept: Tensor, inverted: Queries) -> Failure:
    return Failure(
        stage="inversion",
        why=f"Classifier '{name}' keeps its decision on {int(kept.sum())} of {len(kept)} inverted query images: the "
        f"inversions (mean squared error {float(inverted.inversion.mse.mean()):.2g}) are too poor for it; train the "
        "generator longer.",
    )
