"""What is measured of the classifiers without a generator: accuracy on clean, attacked, corrupted and foreign images.

Every model meets the same images, so that two of them can be compared image by image.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import combinations

import torch
from torch import Tensor, nn

from audit.classifiers.black_box import REASON
from audit.classifiers.classifier import Classifier
from audit.classifiers.slices import sparing
from audit.config import LowPrecision
from audit.data.audit_set import AuditSet
from audit.errors import MetricError
from audit.metrics.intervals import bootstrap_mean, paired_difference
from audit.pipeline.answers import answers_of
from audit.pipeline.context import Context
from audit.pipeline.images import Images
from audit.results import (
    TRANSFER,
    Clean,
    Corruptions,
    Difference,
    Failure,
    Interval,
    NotComputed,
    Notice,
    Robust,
    TrustCheck,
)
from audit.robustness.accuracy import clean_of_logits
from audit.robustness.attacks.blind import without_gradient
from audit.robustness.balls import attacked_rows
from audit.robustness.corruptions.run import corruption_accuracies
from audit.robustness.evaluate import measured_robustness
from audit.robustness.examples import Fooled
from audit.robustness.panel import Panel
from audit.robustness.precision import IMAGES as COMPARED
from audit.robustness.precision import LowPasses, low_passes, precision_refused
from audit.robustness.sanity.doubts import answer_notices
from audit.robustness.tally import Attacked
from audit.robustness.transfer import Onlookers, Shown, transfer_attack
from audit.robustness.trust.batch_dependence import IMAGES, batch_dependence, one_class
from audit.robustness.trust.batch_dependence import NAME as BATCH_DEPENDENCE
from audit.robustness.trust.verdict import doubt_all
from audit.robustness.vulnerability.map import VulnerabilityMaps, map_overlap, vulnerability
from audit.runtime.faults import reason, stage_kept, tried
from audit.runtime.seeds import stage_generator
from audit.storage.stages import Stages


def nothing_measured(class_names: Sequence[str]) -> Clean:
    """Return what stands in the place of a model's accuracy when it was not measured."""
    return Clean(accuracy=Interval(value=None), recall=dict.fromkeys(class_names), ece=None, n=0)


@dataclass(frozen=True)
class Measured:
    """What is known of one classifier without a generator; with `failed` it takes no part in later stages.

    `outcomes` holds, by the path of a number in the results, what it is the mean of: bool or float `[n]`, one an image.
    `checks` are those of the model as a whole, made whatever the settings; `blind` says, if so, that nothing leads back
    from its logits to the image. `low` are its passes in 16 bits, or why all have to be in float32 where 16 were asked
    for.
    """

    classifier: Classifier
    clean: Clean
    logits: Tensor | None = None
    robust: Robust = field(default_factory=Robust)
    outcomes: Mapping[str, Tensor] = field(default_factory=dict)
    maps: VulnerabilityMaps | None = None
    examples: Sequence[Fooled] = ()
    not_computed: tuple[NotComputed, ...] = ()
    checks: Sequence[TrustCheck] = ()
    blind: str | None = None
    low: LowPasses | str | None = None
    failed: Failure | None = None

    @property
    def name(self) -> str:
        return self.classifier.name

    @property
    def answering(self) -> nn.Module:
        """What is asked for answers to changed images."""
        return self.low.answers if isinstance(self.low, LowPasses) else self.classifier

    @property
    def graded(self) -> nn.Module:
        """What attacks that climb follow the gradients of."""
        return self.low.gradients if isinstance(self.low, LowPasses) else self.classifier

    def stages(self, context: Context) -> Stages:
        """Where results are kept that passes in 16 bits may have a part in."""
        stages = context.of(self.classifier)
        return self.low.stages(stages) if isinstance(self.low, LowPasses) else stages

    @property
    def predicted(self) -> Tensor:
        """Decisions `[N]` on the audited images."""
        assert self.logits is not None, "only a model that was measured takes part"
        return self.logits.argmax(1)


def panel_of(context: Context, models: Sequence[Measured]) -> Panel:
    """Return those of `models` that have not failed as they are shown changed images together."""
    asked = [model for model in models if model.failed is None]
    return Panel({one.name: one.answering for one in asked}, {one.name: one.stages(context) for one in asked})


@dataclass(frozen=True)
class Robustness:
    """What was measured of every model, and the stages that failed as a whole after something had been measured."""

    models: tuple[Measured, ...]
    lost: tuple[NotComputed, ...]


Step = Callable[[Measured], Measured]


def measure_models(
    context: Context, images: Images, classifiers: Sequence[Classifier], logits: Mapping[str, Tensor] | None = None
) -> Robustness:
    """Measure accuracy and robustness of every classifier on the audited images, as `config.robustness` says.

    `logits` `[N, K]` of these images are given, by the name of a classifier, where they are known already.

    Raises what ends the first stage, such as DataError for an image that cannot be read.
    """
    settings, watch = context.config.robustness, context.watch
    lost: list[NotComputed] = []
    models = [_clean(context, images.audited, one, (logits or {}).get(one.name)) for one in classifiers]
    if context.config.precision != "float32":
        models = _lowered(context, images.audited, models, context.config.precision)
    attacked = images.attacked or images.audited
    onlookers = _onlookers(context, attacked, models)
    models = [
        _attacked(context, attacked, one, lost, onlookers.get(one.name)) if one.failed is None else one
        for one in models
    ]
    if onlookers:
        step = partial(_transferred, context, images, models, onlookers)
        with watch.stage("transfer"):
            models = _each(models, "transfer", step, stage_kept("transfer", lost, [f"robust.attacks.{TRANSFER}"]))
    if settings.corruptions is not None:
        with watch.stage("corruptions"), stage_kept("corruptions", lost, ["robust.corruptions"]):
            models = _corrupted(context, images.audited, models)
    if images.foreign is not None:
        step = partial(_shifted, context, images.foreign)
        with watch.stage("second source"):
            models = _each(models, "second source", step, stage_kept("second source", lost, ["robust.shift"]))
    if settings.vulnerability is not None and images.calibration is not None:
        for step in (
            partial(mapped, context, images.audited, images.calibration),
            partial(_overlapped, context, images.audited),
        ):
            kept = stage_kept("vulnerability maps", lost, ["robust.vulnerability"])
            with watch.stage("vulnerability maps"):
                models = _each(models, "vulnerability map", step, kept)
    return Robustness(tuple(models), tuple(lost))


def _after(model: Measured, stage: str, step: Step) -> Measured:
    """Return what `step` makes of a model or, where it fails, the model as it was with the failure."""
    found = tried(stage, lambda: step(model))
    return replace(model, failed=found) if isinstance(found, Failure) else found


def _each(models: Sequence[Measured], stage: str, step: Step, kept: AbstractContextManager[None]) -> list[Measured]:
    """Take every model that has not failed through `step`; where `kept` ends the stage, the first ones are through."""
    done = list(models)
    with kept:
        for i, model in enumerate(models):
            if model.failed is None:
                done[i] = _after(model, stage, step)
    return done


def _clean(context: Context, audited: AuditSet, classifier: Classifier, known: Tensor | None) -> Measured:
    """Measure accuracy, and check the model as a whole: dependence on the batch, answers of one class, no gradient.

    `known` are its logits, where they have been computed.
    """
    model = Measured(classifier, nothing_measured(audited.class_names))
    some, stages = attacked_rows(audited, IMAGES, context.config.seed), context.of(classifier)

    def answered(model: Measured) -> Measured:
        logits = answers_of(context, classifier, audited) if known is None else known
        right = logits.argmax(1) == audited.row_labels
        clean = clean_of_logits(logits, audited.row_labels, audited.class_names)
        wrong = [row_id for row_id, its in zip(audited.row_ids, right.tolist(), strict=True) if not its]
        clean = clean.model_copy(update={"misclassified": wrong})
        return replace(model, logits=logits, clean=clean, outcomes={"clean.accuracy": right})

    def checked(model: Measured) -> Measured:
        found = one_class(model.predicted, audited.row_labels, audited.class_names)
        ask = partial(batch_dependence, classifier, some.images().to(context.device))
        depends = stages.kept(
            "batch dependence", partial(sparing, classifier, ask), (batch_dependence.__module__,), images=some.content
        )
        return replace(model, checks=[depends, *([] if found is None else [found])])

    def seen(model: Measured) -> Measured:
        ask = partial(without_gradient, classifier, some.images().to(context.device))
        blind = stages.kept(
            "gradient", partial(sparing, classifier, ask), (without_gradient.__module__,), images=some.content
        )
        return replace(model, blind=blind)

    with context.watch.stage("clean accuracy"):
        for step in (answered, checked, *([seen] if classifier.differentiable else [])):
            if model.failed is None:
                model = _after(model, "clean accuracy", step)
    return model


def _lowered(
    context: Context, audited: AuditSet, models: Sequence[Measured], precision: LowPrecision
) -> list[Measured]:
    """Try every model in 16 bits."""
    seed, size = context.config.seed, context.config.robustness.batch_size
    some = attacked_rows(audited, COMPARED, seed)

    def step(model: Measured) -> Measured:
        return replace(model, low=low_passes(model.classifier, some, precision, size))

    with context.watch.stage("precision"):
        return [model if model.failed is not None else _after(model, "precision", step) for model in models]


def _onlookers(context: Context, audited: AuditSet, models: Sequence[Measured]) -> dict[str, Onlookers]:
    """Return, by model, the others that see its attacked images; empty where no transfer is asked for."""
    settings = context.config.robustness
    if TRANSFER not in settings.attacks:
        return {}
    able = {one.name: one.classifier for one in models if one.failed is None}
    n = len(attacked_rows(audited, settings.n, context.config.seed))
    stages = {name: context.of(network) for name, network in able.items()}
    return {
        name: Onlookers(Panel({other: network for other, network in able.items() if other != name}, stages), n)
        for name in able
    }


def _transferred(
    context: Context,
    images: Images,
    models: Sequence[Measured],
    onlookers: Mapping[str, Onlookers],
    model: Measured,
) -> Measured:
    """Add what the images made for the other models do to this one."""
    chosen = attacked_rows(images.attacked or images.audited, context.config.robustness.n, context.config.seed)
    places = {row_id: i for i, row_id in enumerate(images.audited.row_ids)}
    clean = model.predicted[[places[row_id] for row_id in chosen.row_ids]]
    shown, failed = [], []
    for other in models:
        seen = onlookers.get(other.name)
        if seen is None or other.name == model.name:
            continue
        error = seen.panel.failed.get(model.name)
        failed += [] if error is None else [reason(error)]
        for (name, ball), answers in seen.answers.items():
            attack = other.robust.table(ball.attack, ball.norm).get(ball.radius)
            if name == model.name and attack is not None and error is None:
                fell = torch.tensor([attack.outcomes[row_id] not in (None, "before") for row_id in chosen.row_ids])
                shown.append(Shown(other.name, ball, answers, fell))
    if not shown:
        why = failed[0] if failed else "there is no other model whose attacked images it could be shown"
        note = NotComputed(what="transfer", why=why, paths=[f"robust.attacks.{TRANSFER}", "robust.transfers"])
        return replace(model, not_computed=(*model.not_computed, note))
    found = transfer_attack(chosen, clean, shown)
    robust = model.robust.model_copy(update={"transfers": found.rows})
    for ball, attack in found.attacks.items():
        doubtful = {
            "untrusted": [check.finding for check in model.checks if check.passed is False],
            "unchecked": [check.finding for check in model.checks if check.passed is None],
        }
        robust.table(TRANSFER, ball.norm)[ball.radius] = attack.model_copy(update=doubtful)
    return replace(model, robust=robust, outcomes={**model.outcomes, **found.standing})


def _attacked(
    context: Context, audited: AuditSet, model: Measured, lost: list[NotComputed], onlookers: Onlookers | None
) -> Measured:
    config, failed = context.config, None
    # What comes after the attacks may fail, and their numbers stay.
    measured = [Attacked(model.robust, {})]
    attack = partial(
        measured_robustness,
        model.graded,
        audited,
        config.robustness,
        config.seed,
        model.stages(context),
        keep=measured.append,
        witness=None if onlookers is None else onlookers.see,
    )
    kept = stage_kept(f"robust accuracy of {model.name}", lost, ["robust"])
    with context.watch.stage("robust accuracy"), kept:
        found = tried("robust accuracy", attack)
        failed = found if isinstance(found, Failure) else None
        doubt_all(measured[-1].robust, model.checks)
    last = measured[-1]
    outcomes, missing = {**model.outcomes, **last.standing}, (*model.not_computed, *last.missing)
    return replace(
        model, robust=last.robust, outcomes=outcomes, examples=last.examples, not_computed=missing, failed=failed
    )


def _corrupted(context: Context, audited: AuditSet, models: Sequence[Measured]) -> list[Measured]:
    """Measure all models on the same corrupted images, each of which is made once."""
    settings = context.config.robustness
    assert settings.corruptions is not None
    panel = panel_of(context, models)
    found = corruption_accuracies(
        panel, audited, settings.corruptions, context.config.seed,
        batch_size=settings.batch_size, device=context.device,
    )  # fmt: skip
    failed = {name: Failure(stage="corruptions", why=reason(error)) for name, error in panel.failed.items()}
    models = [replace(model, failed=failed.get(model.name, model.failed)) for model in models]
    return [_with_corruptions(model, *found[model.name]) if model.name in found else model for model in models]


def _with_corruptions(model: Measured, corruptions: Corruptions, correct: Tensor) -> Measured:
    outcomes = {**model.outcomes, "robust.corruptions": correct.double().mean(dim=(1, 2))}
    return replace(model, robust=model.robust.model_copy(update={"corruptions": corruptions}), outcomes=outcomes)


def _shifted(context: Context, foreign: AuditSet, model: Measured) -> Measured:
    logits = answers_of(context, model.classifier, foreign)
    clean = clean_of_logits(logits, foreign.row_labels, foreign.class_names)
    return replace(model, robust=model.robust.model_copy(update={"shift": clean}))


def mapped(context: Context, audited: AuditSet, calibration: AuditSet, model: Measured) -> Measured:
    """Add the model's vulnerability map, or why there is none."""
    settings, seed = context.config.robustness.vulnerability, context.config.seed
    assert settings is not None
    if not model.classifier.differentiable:
        note = NotComputed(what="vulnerability map", why=f"{REASON}.", paths=["robust.vulnerability"])
        return replace(model, not_computed=(*model.not_computed, note))
    evaluated = attacked_rows(audited, settings.n, seed)
    try:
        learn = partial(vulnerability, model.classifier, calibration, evaluated, settings, seed)
        maps = context.of(model.classifier).kept(
            "vulnerability map", partial(sparing, model.classifier, learn), (vulnerability.__module__,),
            training=calibration.content, images=evaluated.content, settings=settings, seed=seed,
        )  # fmt: skip
    except MetricError as error:
        # A model that the attack hardly fools has no map; that is a result, and no reason to stop the audit.
        note = NotComputed(what="vulnerability map", why=str(error), paths=["robust.vulnerability"])
        return replace(model, not_computed=(*model.not_computed, note))
    return replace(model, maps=maps, robust=model.robust.model_copy(update={"vulnerability": maps.summary}))


def _overlapped(context: Context, audited: AuditSet, model: Measured) -> Measured:
    """Say where the mass of the model's maps lies."""
    if model.maps is None:
        return model
    places = {row_id: i for i, row_id in enumerate(audited.row_ids)}
    rows, seed = [places[row_id] for row_id in model.maps.ids], context.config.seed
    regions = [map_overlap(model.maps.maps, audited.region(name, rows), name, seed) for name in audited.regions]
    summary = model.maps.summary.model_copy(update={"regions": regions})
    return replace(model, robust=model.robust.model_copy(update={"vulnerability": summary}))


def unreliable(model: Measured) -> list[str]:
    """Return why nothing that was measured of the model may be believed, a sentence each; empty: nothing speaks so."""
    return [check.finding for check in model.checks if check.passed is False and check.name == BATCH_DEPENDENCE]


def model_notices(model: Measured) -> list[Notice]:
    """Return what a reader has to know of a model that is unreliable or has no gradient before its numbers."""
    said = "Nothing measured of it may be believed."
    name = model.classifier.name
    found = [Notice(subject=name, kind=BATCH_DEPENDENCE, text=f"{said} {reason}") for reason in unreliable(model)]
    if model.blind is not None:
        found.append(Notice(subject=name, kind="no-gradient", text=model.blind))
    if isinstance(model.low, str):
        found.append(precision_refused(name, model.low))
    return found


def notices_of_answers(model: Measured, audited: AuditSet) -> list[Notice]:
    """Return what is wrong with the model's answers on all audited images: one class only, or worse than guessing."""
    if model.logits is None:
        return []
    return answer_notices(model.name, model.predicted, audited.row_labels, audited.class_names)


def differences(models: Sequence[Measured], seed: int) -> list[Difference]:
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
