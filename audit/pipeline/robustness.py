"""What is measured of the classifiers without a generator: accuracy on clean, attacked, corrupted and foreign images.

Every model meets the same images, so that two of them can be compared image by image.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import combinations

import torch
from torch import Tensor

from audit.classifiers.classifier import Classifier
from audit.classifiers.slices import sparing
from audit.config import AuditConfig, CorruptionsConfig
from audit.data.audit_set import AuditSet
from audit.errors import MetricError
from audit.metrics.intervals import bootstrap_mean, paired_difference
from audit.results import Clean, Difference, Failure, Interval, NotComputed, Notice, Robust, TrustCheck
from audit.robustness.accuracy import clean_of_logits, predict
from audit.robustness.attacks.blind import without_gradient
from audit.robustness.corruptions.run import corruption_accuracies
from audit.robustness.ensemble import StageCache
from audit.robustness.evaluate import Attacked, attacked_rows, measured_robustness
from audit.robustness.examples import Fooled
from audit.robustness.sanity.doubts import answer_notices
from audit.robustness.trust.batch_dependence import IMAGES, batch_dependence, one_class
from audit.robustness.trust.batch_dependence import NAME as BATCH_DEPENDENCE
from audit.robustness.trust.verdict import doubt_all
from audit.robustness.vulnerability.map import VulnerabilityMaps, map_overlap, vulnerability
from audit.runtime.environment import Stopwatch
from audit.runtime.faults import kept_apart, reason, stage_kept
from audit.runtime.seeds import stage_generator
from audit.storage.cache import Store


def nothing_measured(class_names: Sequence[str]) -> Clean:
    """Return what stands in the place of a model's accuracy when it was not measured."""
    return Clean(accuracy=Interval(value=None), recall=dict.fromkeys(class_names), ece=None, n=0)


@dataclass
class Audited:
    """One classifier on its way through the stages; with `failed` it takes no part in the stages after that.

    `outcomes` holds, by the path of a number in the results, what it is the mean of: bool or float `[n]`, one an image.
    `whole` are the checks of the model as a whole, made whatever the settings; `blind` says, if so, that nothing leads
    back from its logits to the image.
    """

    classifier: Classifier
    clean: Clean
    logits: Tensor | None = None
    robust: Robust = field(default_factory=Robust)
    outcomes: dict[str, Tensor] = field(default_factory=dict)
    maps: VulnerabilityMaps | None = None
    examples: list[Fooled] = field(default_factory=list)
    not_computed: list[NotComputed] = field(default_factory=list)
    whole: list[TrustCheck] = field(default_factory=list)
    blind: str | None = None
    failed: Failure | None = None

    @property
    def name(self) -> str:
        return self.classifier.name

    @property
    def answers(self) -> Tensor:
        """Logits `[N, K]` on the audited images."""
        assert self.logits is not None, "only a model that was measured takes part"
        return self.logits

    @property
    def predicted(self) -> Tensor:
        return self.answers.argmax(1)


def measure_models(
    models: Sequence[Audited],
    audited: AuditSet,
    calibration: AuditSet | None,
    foreign: AuditSet | None,
    config: AuditConfig,
    store: Store | None,
    watch: Stopwatch,
    device: torch.device,
) -> list[NotComputed]:
    """Measure accuracy and robustness of every model on `audited`, as `config.robustness` says, into `models`.

    The vulnerability map learns on `calibration`; `foreign` is the second source. A model that fails is marked and left
    out of the later stages. Returns the stages that failed as a whole after something had been measured. Raises what
    ends the first of them, such as DataError for an image that cannot be read.
    """
    settings = config.robustness
    lost: list[NotComputed] = []
    for model in models:
        with watch.stage("clean accuracy"), kept_apart(model, "clean accuracy"):
            model.logits = predict(model.classifier, audited, settings.batch_size, device)
            model.clean = clean_of_logits(model.logits, audited.row_labels, audited.class_names)
            model.outcomes["clean.accuracy"] = model.predicted == audited.row_labels
            _check_whole(model, audited, config.seed, device)
    for model in models:
        if model.failed is None:
            with watch.stage("robust accuracy"), stage_kept(f"robust accuracy of {model.name}", lost, ["robust"]):
                _attack(model, audited, config, store)
    if settings.corruptions is not None:
        with watch.stage("corruptions"), stage_kept("corruptions", lost, ["robust.corruptions"]):
            _corrupt(still_there(models), audited, settings.corruptions, config, device)
    if foreign is not None:
        with watch.stage("second source"), stage_kept("second source", lost, ["robust.shift"]):
            for model in still_there(models):
                with kept_apart(model, "second source"):
                    logits = predict(model.classifier, foreign, settings.batch_size, device)
                    model.robust.shift = clean_of_logits(logits, foreign.row_labels, foreign.class_names)
    if settings.vulnerability is not None and calibration is not None:
        with watch.stage("vulnerability maps"), stage_kept("vulnerability maps", lost, ["robust.vulnerability"]):
            for model in still_there(models):
                with kept_apart(model, "vulnerability map"):
                    _map_vulnerability(model, calibration, audited, config)
    return lost


def still_there(models: Sequence[Audited]) -> list[Audited]:
    """Return the models that have not failed so far."""
    return [model for model in models if model.failed is None]


def _attack(model: Audited, audited: AuditSet, config: AuditConfig, store: Store | None) -> None:
    settings = config.robustness

    def keep(attacked: Attacked) -> None:
        # At once: what comes after the attacks may fail, and their numbers stay.
        model.robust = attacked.robust
        model.outcomes |= attacked.standing
        model.examples = attacked.examples

    with kept_apart(model, "robust accuracy"):
        cache = None if store is None else StageCache(store, {"source": model.classifier.source})
        measured_robustness(model.classifier, audited, settings, config.seed, cache, keep=keep)
    doubt_all(model.robust, model.whole)


def _corrupt(
    models: Sequence[Audited], audited: AuditSet, settings: CorruptionsConfig, config: AuditConfig, device: torch.device
) -> None:
    classifiers = [model.classifier for model in models]
    batch_size = config.robustness.batch_size
    found = corruption_accuracies(classifiers, audited, settings, config.seed, batch_size=batch_size, device=device)
    for model, one in zip(models, found, strict=True):
        if isinstance(one, Exception):
            model.failed = Failure(stage="corruptions", why=reason(one))
        else:
            model.robust.corruptions, correct = one
            model.outcomes["robust.corruptions"] = correct.double().mean(dim=(1, 2))


def _check_whole(model: Audited, audited: AuditSet, seed: int, device: torch.device) -> None:
    """Check the model as a whole: do its answers depend on the batch, are they all one class, has it a gradient?"""
    images = attacked_rows(audited, IMAGES, seed).images().to(device)
    found = one_class(model.predicted, audited.row_labels, audited.class_names)
    depends = sparing(model.classifier, partial(batch_dependence, model.classifier, images))
    model.whole = [depends, *([] if found is None else [found])]
    model.blind = sparing(model.classifier, partial(without_gradient, model.classifier, images))


def _map_vulnerability(model: Audited, calibration: AuditSet, audited: AuditSet, config: AuditConfig) -> None:
    settings = config.robustness.vulnerability
    assert settings is not None
    evaluated = attacked_rows(audited, settings.n, config.seed)
    try:
        learn = partial(vulnerability, model.classifier, calibration, evaluated, settings, config.seed)
        model.maps = sparing(model.classifier, learn)
    except MetricError as error:
        # A model that the attack hardly fools has no map; that is a result, and no reason to stop the audit.
        note = NotComputed(what="vulnerability map", why=str(error), paths=["robust.vulnerability"])
        model.not_computed.append(note)
        return
    places = {row_id: i for i, row_id in enumerate(evaluated.row_ids)}
    rows = [places[row_id] for row_id in model.maps.ids]
    model.robust.vulnerability = model.maps.summary
    model.maps.summary.regions = [
        map_overlap(model.maps.maps, evaluated.region(name, rows), name, config.seed) for name in evaluated.regions
    ]


def unreliable(model: Audited) -> list[str]:
    """Return why nothing that was measured of the model may be believed, a sentence each; empty: nothing speaks so."""
    return [check.finding for check in model.whole if check.passed is False and check.name == BATCH_DEPENDENCE]


def model_notices(model: Audited) -> list[Notice]:
    """Return what a reader has to know of a model that is unreliable or has no gradient before its numbers."""
    said = "Nothing measured of it may be believed."
    name = model.classifier.name
    found = [Notice(subject=name, kind=BATCH_DEPENDENCE, text=f"{said} {reason}") for reason in unreliable(model)]
    return found + ([] if model.blind is None else [Notice(subject=name, kind="no-gradient", text=model.blind)])


def notices_of_answers(model: Audited, audited: AuditSet) -> list[Notice]:
    """Return what is wrong with the model's answers on all audited images: one class only, or worse than guessing."""
    if model.logits is None:
        return []
    return answer_notices(model.name, model.predicted, audited.row_labels, audited.class_names)


def differences(models: Sequence[Audited], seed: int) -> list[Difference]:
    """Compare every pair of models, image by image, in every number that both have."""
    rows = []
    for a, b in combinations(models, 2):
        for metric in a.outcomes:
            if metric in b.outcomes:
                found = _difference(a.outcomes[metric], b.outcomes[metric], seed)
                rows.append(Difference(a=a.name, b=b.name, metric=metric, difference=found))
    return rows


def _difference(a: Tensor, b: Tensor, seed: int) -> Interval:
    if a.dtype == torch.bool:
        return paired_difference(a, b)
    return bootstrap_mean(a - b, stage_generator(seed, "differences/bootstrap"))
