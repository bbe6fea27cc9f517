"""Counterfactuals of one classifier by the configured method, kept in the cache by all they depend on."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from audit.classifiers.classifier import Classifier
from audit.counterfactual.answers import logits_of
from audit.counterfactual.methods import ChosenMethod
from audit.counterfactual.protocol import Counterfactuals, InvertedQueries, SearchNetworks
from audit.counterfactual.targets import NOT_EXPLAINED, choose_targets, nearest_targets
from audit.inversion.deltas import Rows
from audit.metrics.labels import SideEffects, side_effects
from audit.pipeline.calibrate import Calibrated, check_target
from audit.pipeline.context import Context
from audit.pipeline.networks import Networks
from audit.pipeline.queries import Queries
from audit.results import Clean
from audit.runtime.progress import stage_progress
from audit.storage.cache import Entry, hash_code


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
    config, calibrated, classifier = context.config, subject.calibrated, subject.classifier
    generator, inversion, logits = networks.loaded.generator, queries.inversion, subject.logits[queries.positions]

    def compute() -> Entry:
        targets = choose_targets(
            config.queries.target,
            logits,
            queries.labels,
            classifier.class_names,
            lambda sources: nearest_targets(classifier, generator, inversion, sources, config.counterfactual),
        )
        assert not bool((targets == NOT_EXPLAINED).any()), (
            "images classified as the fixed target are only selected where that is wrong"
        )
        for target in targets.unique().tolist():
            check_target(calibrated, target)
        with stage_progress(f"counterfactuals {classifier.name}", len(queries.images)) as advance:
            found = method.explain(
                calibrated,
                SearchNetworks(generator, networks.perceptual),
                InvertedQueries(queries.images, logits.argmax(1), inversion),
                targets,
                advance,
            )
        tensors = {f.name: value for f in fields(found) if (value := getattr(found, f.name)) is not None}
        return Entry(tensors | {"targets": targets}, {})

    entry = _remembering(context, method, subject.classifier).cached(
        "counterfactuals",
        compute,
        logits=logits,
        inversion=inversion.images,
        pivots=inversion.pivots,
        queries=queries.images,
        labels=queries.labels,
        target=config.queries.target,
        **_search_inputs(context, method, networks, subject),
    )
    tensors = dict(entry.tensors)
    targets = tensors.pop("targets")
    return Explained(subject, queries, Counterfactuals(**tensors), targets)


def _remembering(context: Context, method: ChosenMethod, classifier: Classifier) -> Context:
    """Return the context without a cache where the code of the method or of the classifier may change unseen."""
    known = method.known_by_version and classifier.content is not None
    return context if known else replace(context, store=None)


def _search_inputs(context: Context, method: ChosenMethod, networks: Networks, subject: Subject) -> dict[str, object]:
    """Return what every search of a subject depends on beside the images that it starts from."""
    calibrated, perceptual = subject.calibrated, networks.perceptual
    return {
        # Features, logits and classes of the calibration images stand for the classifier's weights, code, preprocessing
        # and class order, and for these images themselves.
        "classifier": calibrated.key,
        "operating_point": calibrated.operating_point,
        "class_names": subject.classifier.class_names,
        "generator": networks.loaded.sha256,
        "embedding": [perceptual.name, perceptual.weights_sha256],
        "settings": context.config.counterfactual.model_copy(update={"method": method.name}),
        "package": method.package,
        "code": hash_code("audit.counterfactual", "audit.inversion"),
        "seed": context.config.seed,
    }


@dataclass(frozen=True)
class _Drawn:
    """Images `[n, C, H, W]` with the codes and weights that draw them."""

    pivots: Tensor
    deltas: Mapping[str, Rows]
    images: Tensor


def way_back(context: Context, method: ChosenMethod, networks: Networks, explained: Explained) -> WayBack | str:
    """Draw the counterfactuals of the first `metrics.axioms` counterfactuals that flip; or say why there are none.

    They start at the counterfactual's own code and weights: inverting it would add the error of the inversion.
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
    start = _Drawn(found.latents[rows], explained.queries.inversion.select(rows).deltas, found.images[rows])

    def compute() -> Entry:
        with stage_progress(f"ways back {subject.name}", len(rows)) as advance:
            back = method.explain(
                subject.calibrated,
                SearchNetworks(networks.loaded.generator, networks.perceptual),
                InvertedQueries(start.images, explained.targets[rows], start),
                sources[rows],
                advance,
            )
        return Entry({"images": back.images, "returned": back.flipped}, {})

    entry = _remembering(context, method, subject.classifier).cached(
        "ways back",
        compute,
        latents=start.pivots,
        images=start.images,
        labels=explained.targets[rows],
        targets=sources[rows],
        **_search_inputs(context, method, networks, subject),
    )
    return WayBack(rows, entry.tensors["images"], entry.tensors["returned"])


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
