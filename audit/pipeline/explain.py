"""Counterfactuals of one classifier by the configured method, kept image by image."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from audit.classifiers.classifier import Classifier
from audit.counterfactual.answers import logits_of
from audit.counterfactual.blend import with_blend
from audit.counterfactual.methods import ChosenMethod, choose_methods
from audit.counterfactual.protocol import Counterfactuals, Inverted, InvertedQueries, SearchNetworks
from audit.counterfactual.targets import NOT_EXPLAINED, choose_targets, nearest_targets
from audit.embeddings.embedding import named
from audit.inversion.deltas import Deltas, Rows
from audit.metrics.labels import SideEffects, side_effects
from audit.pipeline.calibrate import Calibrated, check_target
from audit.pipeline.context import Context
from audit.pipeline.divided import Order, Site, compute
from audit.pipeline.networks import Networks
from audit.pipeline.queries import Queries
from audit.results import Clean, Failure
from audit.runtime.faults import tried
from audit.runtime.progress import stage_progress
from audit.storage.stages import Lots, Stages

CODE = ("audit.counterfactual", "audit.inversion")
COUNTERFACTUALS = "counterfactuals"
CLIMBING = {"steps", "lr", "gradient_clip", "batch_size"}
"""Settings that the search for the nearest boundary follows."""


@dataclass(frozen=True)
class OtherLabels:
    """The labels that an edit towards one label of a classifier is to leave as they are: their names and places."""

    classifier: Classifier
    places: Mapping[str, int]

    def between(self, before: Tensor, after: Tensor) -> SideEffects:
        """Return what becomes of them between the images `before` and `after` `[N, C, H, W]`."""
        places = list(self.places.values())
        limits = torch.tensor(self.classifier.limits or [0.0] * self.classifier.num_classes)[places]
        one, other = (logits_of(self.classifier, images)[:, places] for images in (before, after))
        return side_effects(one, other, limits)


@dataclass(frozen=True)
class Subject:
    """One classifier to explain: what is usual for it, and its logits `[N, K]` and accuracy on the audited images.

    Where it is the view of one label, `others` are those beside it.
    """

    calibrated: Calibrated
    logits: Tensor
    clean: Clean
    others: OtherLabels | None = None

    @property
    def classifier(self) -> Classifier:
        return self.calibrated.classifier

    @property
    def name(self) -> str:
        return self.classifier.name


@dataclass(frozen=True)
class WayBack:
    """Counterfactuals of the counterfactuals at `rows` `[n]`, back towards the classes that these came from.

    `images` `[n, C, H, W]`; `returned` `[n]` says which of them the classifier calls that class.
    """

    rows: Tensor
    images: Tensor
    returned: Tensor


@dataclass(frozen=True)
class Explained:
    """One classifier's counterfactuals of its `queries` towards its `targets` `[N]`; the way back, or why not."""

    subject: Subject
    queries: Queries
    counterfactuals: Counterfactuals
    targets: Tensor
    back: WayBack | str = "it was not asked for"

    @property
    def sources(self) -> Tensor:
        """Classes `[N]` that the classifier gives to the query images as they are."""
        return self.subject.logits[self.queries.positions].argmax(1)

    @property
    def wrong(self) -> Tensor:
        """Whether the classifier misclassifies the query image as it is, bool `[N]`: its target is its own class."""
        return self.sources != self.queries.labels


def explain_model(
    context: Context, method: ChosenMethod, networks: Networks, queries: Queries, subject: Subject
) -> Explained:
    """Draw one classifier's counterfactuals of the query images; the targets are the same for every `method`.

    Raises ClassifierError where a target class has no operating point, and MethodError for a fault of the method.
    """
    asked, targets = _asked(context, networks, queries, subject)
    for target in targets.unique().tolist():
        check_target(subject.calibrated, target)
    search = _Search(context, method, networks, subject.calibrated)
    found = search.explain(f"counterfactuals {subject.name}", asked, targets)
    return Explained(subject, queries, found, targets)


def explain_apart(
    context: Context, method: ChosenMethod, networks: Networks, asked: Sequence[tuple[Subject, Queries]]
) -> None:
    """Have the engine, if there is one, draw the counterfactuals of all models that are not kept, and their ways back.

    A failure is told where its model is explained.
    """
    if context.engine is None or not method.known_by_version:
        return
    named = {one.name for one in context.config.classifiers}
    asked = [one for one in asked if one[0].name in named]  # and not the view of one label
    edits: list[Callable[[], Order]] = []
    for subject, queries in asked:
        search = _Search(context, method, networks, subject.calibrated)
        found = tried("counterfactuals", partial(_asked, context, networks, queries, subject))
        edits += [] if isinstance(found, Failure) else search.orders(*found)
    _draw_apart(context, "parts: counterfactuals", edits)
    back: list[Callable[[], Order]] = []
    for subject, queries in asked:
        explained = tried("counterfactuals", partial(explain_model, context, method, networks, queries, subject))
        start = "it failed" if isinstance(explained, Failure) else _start_back(context, method, explained)
        if not isinstance(start, str):
            search = _Search(context, method, networks, subject.calibrated)
            back += search.orders(start.asked, start.targets)
    _draw_apart(context, "parts: ways back", back)


def _draw_apart(context: Context, what: str, orders: Sequence[Callable[[], Order]]) -> None:
    if len(orders) > 1:
        compute(context, what, len(orders), (order() for order in orders))


def _asked(context: Context, networks: Networks, queries: Queries, subject: Subject) -> tuple[InvertedQueries, Tensor]:
    """Return the queries of a model with the classes that it gives to them, and their target classes `[N]`."""
    logits = subject.logits[queries.positions]
    asked = InvertedQueries(queries.images, logits.argmax(1), queries.inversion)
    return asked, _targets(context, networks, queries, subject, logits)


def _targets(context: Context, networks: Networks, queries: Queries, subject: Subject, logits: Tensor) -> Tensor:
    """Return the target class `[N]` of every query image."""
    config, classifier, inversion = context.config, subject.classifier, queries.inversion
    generator = networks.loaded.generator

    def choose() -> Tensor:
        return choose_targets(
            config.queries.target,
            logits,
            queries.labels,
            classifier.class_names,
            lambda sources: nearest_targets(classifier, generator, inversion, sources, config.counterfactual),
        )

    targets = context.of(classifier).kept(
        "targets", choose, (choose_targets.__module__,), logits=logits, labels=queries.labels,
        generator=networks.loaded.sha256, images=inversion.images, pivots=inversion.pivots,
        asked=config.queries.target, settings=config.counterfactual.model_dump(include=CLIMBING),
    )  # fmt: skip
    assert not bool((targets == NOT_EXPLAINED).any()), (
        "images classified as the fixed target are only selected where that is wrong"
    )
    return targets


@dataclass(frozen=True)
class _Search:
    """One classifier, explained by one method."""

    context: Context
    method: ChosenMethod
    networks: Networks
    calibrated: Calibrated

    def explain(self, stage: str, queries: InvertedQueries, targets: Tensor) -> Counterfactuals:
        """Draw the counterfactuals of `queries` towards `targets` `[N]`; each is kept, whichever others there are."""
        lots: Lots[_Row] = self._lots(queries, targets)
        networks = SearchNetworks(self.networks.loaded.generator, self.networks.perceptual)
        with stage_progress(stage, len(targets)) as advance:
            advance(len(targets) - len(lots.missing))
            for rows in self._batches(lots.missing):
                some = _select_queries(queries, rows)
                search = partial(self.method.explain, self.calibrated, networks, some, targets[rows], advance)
                lots.keep(rows, lambda search=search: _rows(search()))  # type: ignore[misc]
        return _together(lots.all())

    def _batches(self, missing: Sequence[int]) -> list[list[int]]:
        """Return the places of queries that are explained together."""
        together = self.context.config.counterfactual.batch_size if self.method.in_batches else max(1, len(missing))
        return [list(missing[first : first + together]) for first in range(0, len(missing), together)]

    def orders(self, queries: InvertedQueries, targets: Tensor) -> list[Callable[[], Order]]:
        """Return what makes the parts that explain those queries that are not kept."""
        together = self._batches(self._lots(queries, targets).missing)
        return [partial(self._order, queries, targets, rows) for rows in together]

    def _order(self, queries: InvertedQueries, targets: Tensor, rows: list[int]) -> Order:
        """Return the part that explains the queries at `rows`."""
        some, name = _select_queries(queries, rows), self.calibrated.classifier.name
        alone = replace(some, inversion=_in_memory(some.inversion))
        # Networks and images are where the part is computed.
        usual = {one.name: getattr(self.calibrated, one.name) for one in fields(self.calibrated)}
        usual |= {"classifier": None, "real": None}
        known = partial(explain_part, method=self.method.name, model=name, usual=usual)
        return Order(partial(known, queries=alone, targets=targets[rows]))

    def _lots(self, queries: InvertedQueries, targets: Tensor) -> "Lots[_Row]":
        calibrated, inversion, config = self.calibrated, queries.inversion, self.context.config
        # Of a method of another package nothing stands for the code.
        stages = self.context.of(calibrated.classifier) if self.method.known_by_version else Stages()
        labels = zip(queries.labels.tolist(), targets.tolist(), strict=True)
        seen = zip(queries.images, inversion.images, inversion.pivots, strict=True)
        items = [
            {"image": image, "inversion": drawn, "code": code, "source": source, "target": target}
            for (image, drawn, code), (source, target) in zip(seen, labels, strict=True)
        ]
        # How many are explained together is no part of an image's counterfactual.
        settings = config.counterfactual.model_dump(exclude={"method", "batch_size"})
        return stages.on(max_memory=None).lots(
            COUNTERFACTUALS,
            items,
            CODE,
            # In a method of another package the images may have a part in each other's edits.
            among=None if self.method.package is None else items,
            method=[self.method.name, self.method.package],
            settings=settings,
            # Features, logits and classes of the calibration images, and so these images themselves.
            calibration=calibrated.key,
            operating_point=calibrated.operating_point,
            generator=self.networks.loaded.sha256,
            embedding=named(self.networks.perceptual),
            seed=config.seed,
        )


def explain_part(
    site: Site, *, method: str, model: str, usual: Mapping[str, Any], queries: InvertedQueries, targets: Tensor
) -> None:
    """Draw and keep the counterfactuals of `queries`; `usual` is what is known of the model by its calibration."""
    config, networks = site.context.config, site.networks()
    assert networks is not None
    chosen = next(one for one in choose_methods(config.counterfactual, config.seed) if one.name == method)
    calibrated = Calibrated(**{**usual, "classifier": site.model(model), "real": site.calibration})
    _Search(site.context, chosen, networks, calibrated).explain(f"counterfactuals {model}", queries, targets)


_Row = Mapping[str, Tensor | None]
"""One image's counterfactual, by the fields of `Counterfactuals`."""


def _rows(found: Counterfactuals) -> list[_Row]:
    columns = {one.name: getattr(found, one.name) for one in fields(found)}
    return [
        {name: None if values is None else values[i] for name, values in columns.items()}
        for i in range(len(found.images))
    ]


def _together(rows: Sequence[_Row]) -> Counterfactuals:
    """Put counterfactuals together; traces of unequal length stay at their last value."""
    columns: dict[str, Any] = {}
    longest = max(len(row["trace"]) for row in rows if row["trace"] is not None)
    for name in rows[0]:
        values = [value for row in rows if (value := row[name]) is not None]
        if name == "trace":
            values = [torch.cat([t, t[-1:].expand(longest - len(t))]) for t in values]
        columns[name] = torch.stack(values) if values else None
    return Counterfactuals(**columns)


@dataclass(frozen=True)
class _Drawn:
    """Images `[n, C, H, W]` with the codes and weights that draw them."""

    pivots: Tensor
    deltas: Mapping[str, Rows]
    images: Tensor


def _select_queries(queries: InvertedQueries, rows: list[int]) -> InvertedQueries:
    return InvertedQueries(queries.images[rows], queries.labels[rows], _select(queries.inversion, rows))


def _in_memory(drawn: Inverted) -> Inverted:
    """Return the same without the files that its weights, and those of other images, are mapped from."""
    given = drawn.deltas
    deltas = Deltas(given.shapes, [given.pieces()]) if isinstance(given, Deltas) and given else given
    return _Drawn(drawn.pivots, deltas, drawn.images)


def _select(drawn: Inverted, rows: list[int]) -> _Drawn:
    given, places = drawn.deltas, torch.tensor(rows)
    if isinstance(given, Deltas) and given:  # their files are read when they are asked for
        return _Drawn(drawn.pivots[rows], given.select(rows), drawn.images[rows])
    return _Drawn(drawn.pivots[rows], {name: values[places] for name, values in given.items()}, drawn.images[rows])


@dataclass(frozen=True)
class _Start:
    """Where ways back begin: at the counterfactuals at `rows`, each asked back to the class in `targets`."""

    rows: Tensor
    asked: InvertedQueries
    targets: Tensor


def _start_back(context: Context, method: ChosenMethod, explained: Explained) -> _Start | str:
    """Return the first `metrics.axioms` counterfactuals that flip as what to explain; or say why there are none.

    They start at the counterfactual's own code, weights and blend: inverting it would add the error of the inversion.
    """
    wanted, found, subject = context.config.metrics.axioms, explained.counterfactuals, explained.subject
    sources = explained.sources
    rows = (found.flipped & subject.calibrated.operating_point[sources].isfinite()).nonzero()[:wanted, 0]
    if wanted == 0:
        return "metrics.axioms is 0"
    if found.latents is None:
        return f"the method '{method.name}' gives no latent codes to start from"
    if len(rows) == 0:
        return "no counterfactual flips"
    inverted = explained.queries.inversion.select(rows)
    deltas: Mapping[str, Rows] = inverted.deltas
    if found.masks is not None:
        additions = {name: values[torch.arange(len(rows))] for name, values in deltas.items()}
        deltas = with_blend(additions, inverted.images, found.masks[rows])
    start = _Drawn(found.latents[rows], deltas, found.images[rows])
    return _Start(rows, InvertedQueries(start.images, explained.targets[rows], start), sources[rows])


def way_back(context: Context, method: ChosenMethod, networks: Networks, explained: Explained) -> WayBack | str:
    """Draw counterfactuals of the first counterfactuals that flip; or say why there are none."""
    start, subject = _start_back(context, method, explained), explained.subject
    if isinstance(start, str):
        return start
    search = _Search(context, method, networks, subject.calibrated)
    back = search.explain(f"ways back {subject.name}", start.asked, start.targets)
    return WayBack(start.rows, back.images, back.flipped)


def equal_edits(explained: Sequence[Explained], least: int) -> dict[int, int]:
    """Return by target class, in order, how many edits towards it every model has of which at least `least` are there.

    Images that a model misclassifies do not count: they belong to their target class. Where no model has `least`, it is
    the most that one has.
    """
    found = {}
    for target in sorted({int(t) for one in explained for t in one.targets.unique()}):
        counts = [int((~one.wrong & (one.targets == target)).sum()) for one in explained]
        found[target] = min((n for n in counts if n >= least), default=max(counts))
    return found
