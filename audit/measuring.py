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
from audit.config import AuditConfig
from audit.data.audit_set import AuditSet
from audit.data.load import load_shift
from audit.environment import Stopwatch
from audit.errors import MetricError
from audit.metrics.intervals import bootstrap_mean, paired_difference
from audit.results import Clean, Difference, Interval, NotComputed, Notice, Robust, TrustCheck
from audit.robustness.batch_dependence import IMAGES, batch_dependence, one_class
from audit.robustness.batch_dependence import NAME as BATCH_DEPENDENCE
from audit.robustness.clean import clean_of_logits, predict
from audit.robustness.corruptions import check_names, corruption_accuracies
from audit.robustness.evaluate import attacked_rows, measured_robustness
from audit.robustness.examples import Fooled
from audit.robustness.verdict import doubt_all
from audit.robustness.vulnerability import VulnerabilityMaps, map_overlap, vulnerability
from audit.seeds import stage_generator
from audit.store import Store


@dataclass
class Audited:
    """One classifier on its way through the stages.

    `outcomes` holds, by the path of a number in the results, what it is the mean of: bool or float `[n]`, one an image.
    `whole` are the checks of the model as a whole, made whatever the settings.
    """

    classifier: Classifier
    logits: Tensor
    clean: Clean
    robust: Robust = field(default_factory=Robust)
    outcomes: dict[str, Tensor] = field(default_factory=dict)
    maps: VulnerabilityMaps | None = None
    examples: list[Fooled] = field(default_factory=list)
    not_computed: list[NotComputed] = field(default_factory=list)
    whole: list[TrustCheck] = field(default_factory=list)

    @property
    def predicted(self) -> Tensor:
        return self.logits.argmax(1)


def measure_models(
    classifiers: Sequence[Classifier],
    audited: AuditSet,
    calibration: AuditSet | None,
    config: AuditConfig,
    store: Store | None,
    watch: Stopwatch,
    device: torch.device,
) -> list[Audited]:
    """Measure accuracy and robustness of every classifier on `audited`, as `config.robustness` says.

    The vulnerability map learns on `calibration`. Raises DataError, ClassifierError or MetricError.
    """
    settings = config.robustness
    # Said before the long attacks begin: a misspelt corruption or a missing second source should not cost an hour.
    if settings.corruptions is not None and settings.corruptions.names is not None:
        check_names(settings.corruptions.names)
    foreign = None if config.data.shift is None else load_shift(config.data, config.seed, audited)
    models = []
    for classifier in classifiers:
        with watch.stage("clean accuracy"):
            logits = predict(classifier, audited, settings.batch_size, device)
            clean = clean_of_logits(logits, audited.row_labels, audited.class_names)
            model = Audited(classifier, logits, clean)
            model.outcomes["clean.accuracy"] = model.predicted == audited.row_labels
            model.whole = _whole_checks(model, audited, config.seed, device)
        with watch.stage("robust accuracy"):
            key = {"source": classifier.source}
            attacked = measured_robustness(classifier, audited, settings, config.seed, classifier.name, store, key)
            model.robust = attacked.robust
            model.outcomes |= attacked.standing
            model.examples = attacked.examples
            doubt_all(model.robust, model.whole)
        models.append(model)
    if settings.corruptions is not None:
        with watch.stage("corruptions"):
            found = corruption_accuracies(
                classifiers, audited, settings.corruptions, config.seed, settings.batch_size, device
            )
            for model, (summary, correct) in zip(models, found, strict=True):
                model.robust.corruptions = summary
                model.outcomes["robust.corruptions"] = correct.double().mean(dim=(1, 2))
    if foreign is not None:
        with watch.stage("second source"):
            for model in models:
                logits = predict(model.classifier, foreign, settings.batch_size, device)
                model.robust.shift = clean_of_logits(logits, foreign.row_labels, foreign.class_names)
    if settings.vulnerability is not None and calibration is not None:
        with watch.stage("vulnerability maps"):
            for model in models:
                _map_vulnerability(model, calibration, audited, config, device)
    return models


def _whole_checks(model: Audited, audited: AuditSet, seed: int, device: torch.device) -> list[TrustCheck]:
    """Check the model as a whole: do its answers depend on the batch, and are they all one class?"""
    images = attacked_rows(audited, IMAGES, seed).images().to(device)
    found = one_class(model.predicted, audited.row_labels, audited.class_names)
    return [batch_dependence(model.classifier, images), *([] if found is None else [found])]


def _map_vulnerability(
    model: Audited, calibration: AuditSet, audited: AuditSet, config: AuditConfig, device: torch.device
) -> None:
    settings = config.robustness.vulnerability
    assert settings is not None
    judged = attacked_rows(audited, settings.n, config.seed)
    name = model.classifier.name
    try:
        learn = partial(
            vulnerability, model.classifier, calibration, judged, settings, config.seed, device,
            f"vulnerability of {name}",
        )  # fmt: skip
        model.maps = sparing(model.classifier, learn)
    except MetricError as error:
        # A model that the attack hardly fools has no map; that is a result, and no reason to stop the audit.
        model.not_computed.append(NotComputed(what="vulnerability map", why=str(error)))
        return
    places = {row_id: i for i, row_id in enumerate(judged.row_ids)}
    rows = [places[row_id] for row_id in model.maps.ids]
    model.robust.vulnerability = model.maps.summary
    model.maps.summary.regions = [
        map_overlap(model.maps.maps, judged.region(region, rows), region, config.seed) for region in judged.regions
    ]


def unreliable(model: Audited) -> list[str]:
    """Return why nothing that was measured of the model may be believed, a sentence each; empty: nothing speaks so."""
    return [check.finding for check in model.whole if check.passed is False and check.name == BATCH_DEPENDENCE]


def unreliable_notices(model: Audited) -> list[Notice]:
    """Return what a reader has to know of an unreliable model before its numbers."""
    said = "Nothing measured of it may be believed."
    name = model.classifier.name
    return [Notice(subject=name, kind=BATCH_DEPENDENCE, text=f"{said} {reason}") for reason in unreliable(model)]


def differences(models: Sequence[Audited], seed: int) -> list[Difference]:
    """Compare every pair of models, image by image, in every number that both have."""
    rows = []
    for a, b in combinations(models, 2):
        for metric in a.outcomes:
            if metric in b.outcomes:
                found = _difference(a.outcomes[metric], b.outcomes[metric], seed)
                rows.append(Difference(a=a.classifier.name, b=b.classifier.name, metric=metric, difference=found))
    return rows


def _difference(a: Tensor, b: Tensor, seed: int) -> Interval:
    if a.dtype == torch.bool:
        return paired_difference(a, b)
    return bootstrap_mean(a - b, stage_generator(seed, "differences/bootstrap"))
