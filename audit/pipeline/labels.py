"""What is measured of classifiers whose images have any number of labels.

Every label is a question of two classes, so that clean answers, attacks, trust checks and corruptions are those of a
classifier of two classes, label by label. What concerns all labels of an image is measured beside that: scores by label
and in the mean, whether any label falls, and one perturbation against all of them.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
import torch
from torch import Tensor

from audit.classifiers.bridge import two_classes
from audit.classifiers.classifier import Classifier
from audit.classifiers.slices import sparing
from audit.config import eps_value
from audit.data.audit_set import AuditSet
from audit.data.multilabel import absent, label_view
from audit.metrics.intervals import bootstrap_mean, paired_difference, wilson_interval
from audit.metrics.labels import LabelAnswers, LabelScores, calibration, rank_scores
from audit.pipeline.answers import answers_of
from audit.pipeline.attribution import Attributions
from audit.pipeline.context import Context
from audit.pipeline.images import Images
from audit.pipeline.meaningfulness import Meaningfulness
from audit.pipeline.networks import Networks
from audit.pipeline.reliance import Relied
from audit.pipeline.robustness import (
    Measured,
    Robustness,
    differences,
    measure_models,
    model_notices,
    nothing_measured,
    notices_of_answers,
    unreliable,
)
from audit.results import (
    MEANINGFULNESS,
    PGD,
    UNKNOWN_LABEL,
    AnyLabel,
    Difference,
    Failure,
    Interval,
    JointAttack,
    LabelCounts,
    LabelResult,
    LabelSummary,
    NotComputed,
    Notice,
)
from audit.robustness.attacks.registry import radii_of
from audit.robustness.balls import attacked_rows
from audit.robustness.joint import Aim, Budget, Harmed, joint_attack
from audit.runtime.faults import stage_kept, tried
from audit.runtime.progress import stage_progress
from audit.runtime.seeds import stage_generator

WHOLE_IMAGE = "labels do not exclude each other, so that they are measured one by one: see labels.NAME"
"""Why a multi-label model has no accuracy over classes."""


@dataclass(frozen=True)
class LabelExplained:
    """The counterfactuals towards one label; `missing` says by model why it has none, `why` why no model has any."""

    found: Meaningfulness | None = None
    missing: Mapping[str, NotComputed] = field(default_factory=dict)
    why: NotComputed | None = None


@dataclass(frozen=True)
class LabelRun:
    """One label: the images of which it is known, as two classes, and what was measured of the models on them.

    `explained` is None where no counterfactuals were asked for.
    """

    name: str
    images: Images
    models: tuple[Measured, ...]
    explained: LabelExplained | None = None
    relied: Relied = field(default_factory=Relied)
    attributions: Attributions = field(default_factory=Attributions)

    @property
    def second(self) -> Meaningfulness | None:
        """What was found of the counterfactuals towards this label."""
        return None if self.explained is None else self.explained.found

    @property
    def notes(self) -> list[NotComputed]:
        """What could not be computed of this label for all models alike."""
        why = () if self.explained is None or self.explained.why is None else (self.explained.why,)
        return [*why, *(_of_label(note, self.name) for note in (() if self.second is None else self.second.notes))]

    @property
    def lost(self) -> list[NotComputed]:
        """The stages that failed as a whole."""
        second = () if self.second is None else self.second.lost
        return [_of_label(note, self.name) for note in (*self.relied.lost, *second, *self.attributions.lost)]

    def failure(self, name: str) -> Failure | None:
        """Return what ended the audit of the model `name` on this label."""
        first = next(one.failed for one in self.models if one.name == name)
        found = first or (None if self.second is None else self.second.failed.get(name))
        return None if found is None else found.model_copy(update={"stage": f"{found.stage} of label '{self.name}'"})


@dataclass(frozen=True)
class LabelledModel:
    """One multi-label classifier: its answers on all audited images, its scores, and what hits all labels at once."""

    classifier: Classifier
    answers: LabelAnswers | None = None
    scores: tuple[LabelScores, LabelScores, LabelScores] | None = None
    joint: Mapping[str, JointAttack] = field(default_factory=dict)
    failed: Failure | None = None

    @property
    def name(self) -> str:
        return self.classifier.name


@dataclass(frozen=True)
class Labelled:
    """What was measured of all models; every run holds those of `models` that answered at all, in their order.

    `networks` are those behind the counterfactuals; None: there are none.
    """

    images: Images
    models: tuple[LabelledModel, ...]
    runs: tuple[LabelRun, ...]
    lost: tuple[NotComputed, ...]
    networks: Networks | None = None

    @property
    def answered(self) -> list[LabelledModel]:
        return [model for model in self.models if model.answers is not None]

    def of(self, name: str) -> list[tuple[LabelRun, Measured]]:
        """Return what was measured of the model `name`, label by label."""
        return [(run, one) for run in self.runs for one in run.models if one.name == name]

    @property
    def overview(self) -> Robustness:
        """Return the models with nothing but what ended their audit: all numbers are those of labels."""
        rows = []
        for model in self.models:
            failures = [model.failed, *(run.failure(model.name) for run, _ in self.of(model.name))]
            failed = next((one for one in failures if one is not None), None)
            explained = () if self.networks is None else MEANINGFULNESS
            paths = ["clean", "robust", "sanity", "reliance", "attributions", *explained]
            note = NotComputed(what="numbers over all classes", why=WHOLE_IMAGE, paths=paths)
            nothing = nothing_measured(self.images.audited.class_names)
            rows.append(Measured(model.classifier, nothing, not_computed=(note,), failed=failed))
        return Robustness(tuple(rows), (*self.lost, *(note for run in self.runs for note in run.lost)))


def measure_labels(context: Context, images: Images, classifiers: Sequence[Classifier]) -> Labelled:
    """Measure every classifier on the audited images, label by label and all labels together.

    Raises what ends the first stage, such as DataError for an image that cannot be read.
    """
    names = images.audited.class_names
    with context.watch.stage("clean accuracy"):
        models = tuple(_answered(context, images.audited, classifier) for classifier in classifiers)
    known = [(one.classifier, one.answers) for one in models if one.answers is not None]
    runs, lost = [], []
    for label in range(len(names)) if known else ():
        of_label = _images_of_label(context, images, label)
        rows = torch.from_numpy(np.flatnonzero(images.audited.row_labels[:, label] != UNKNOWN_LABEL))
        views, logits = [], {}
        for classifier, answers in known:
            views.append(view_of(classifier, label))
            logits[classifier.name] = two_classes(answers.logits[rows], label, limit_of(classifier, label))
        found = measure_models(context, of_label, views, logits)
        runs.append(LabelRun(names[label], of_label, found.models))
        lost += [_of_label(note, names[label]) for note in found.lost]
    with context.watch.stage("all labels together"):
        models = tuple(_jointly(context, images.audited, model, lost) for model in models)
    return Labelled(images, models, tuple(runs), tuple(lost))


def limit_of(classifier: Classifier, label: int) -> float:
    """Return the logit from which on a label is said to be there."""
    return classifier.limits[label] if classifier.limits else 0.0


def view_of(classifier: Classifier, label: int) -> Classifier:
    """Return a classifier of labels as one of the two classes "no LABEL" and "LABEL"."""
    name = classifier.class_names[label]
    return classifier.of_label(label, (absent(name), name), limit_of(classifier, label))


def _answered(context: Context, audited: AuditSet, classifier: Classifier) -> LabelledModel:
    def scored() -> LabelledModel:
        logits = answers_of(context, classifier, audited)
        limits = torch.tensor(classifier.limits or [0.0] * logits.shape[1])
        answers = LabelAnswers(logits, audited.row_labels, limits)
        # The same images are drawn for every model.
        return LabelledModel(classifier, answers, rank_scores(answers, context.rng("labels/bootstrap")))

    found = tried("clean accuracy", scored)
    return LabelledModel(classifier, failed=found) if isinstance(found, Failure) else found


def _images_of_label(context: Context, images: Images, label: int) -> Images:
    """Return the images of which `label` is known; all labels are attacked on the same ones."""
    audited, known = images.audited, bool((images.audited.row_labels != UNKNOWN_LABEL).all())
    attacked = None if known else attacked_rows(audited, context.config.robustness.n, context.config.seed)
    return replace(
        images,
        all=label_view(images.all, label),
        audited=label_view(audited, label),
        attacked=None if attacked is None else label_view(attacked, label),
        calibration=None if images.calibration is None else label_view(images.calibration, label),
        foreign=None if images.foreign is None else label_view(images.foreign, label),
    )


def _of_label(note: NotComputed, name: str) -> NotComputed:
    paths = [f"labels.{name}.{path}" for path in note.paths]
    return NotComputed(what=f"{note.what} of label '{name}'", why=note.why, paths=paths)


def label_weights(given: Mapping[str, float], names: Sequence[str]) -> Tensor:
    """Return what the fall of each label counts `[L]`: as configured, else 1 for each."""
    return torch.tensor([given.get(name, 0.0) if given else 1.0 for name in names])


def _jointly(context: Context, audited: AuditSet, model: LabelledModel, lost: list[NotComputed]) -> LabelledModel:
    """Attack all labels of an image by one perturbation, at every radius."""
    config = context.config.robustness
    if model.answers is None or PGD not in config.attacks or len(audited.class_names) < 2:
        return model
    name, joint = model.name, {}
    with stage_kept(f"attack on all labels of {name}", lost, ["label_summary.joint"]):
        chosen = attacked_rows(audited, config.n, context.config.seed)
        balls = [(norm, radius) for norm, radii in radii_of(config).items() for radius in sorted(radii, key=eps_value)]
        with stage_progress(f"attack on all labels of {name}", len(chosen) * len(balls)) as advance:
            for norm, radius in balls:
                budget = Budget(eps_value(radius), norm, config.steps)
                key = radius if norm == "Linf" else f"l2.{radius}"
                right = []
                for images, truth, rows in chosen.batches(config.batch_size):
                    device = context.device
                    weights = label_weights(config.label_weights, audited.class_names)
                    aim = Aim(truth.to(device), weights.to(device), model.answers.limits.to(device))
                    rng = stage_generator(context.config.seed, f"robustness/joint/{key}/{int(rows[0])}")
                    attack = partial(joint_attack, model.classifier, images.to(device), aim, budget, rng)
                    logits = context.of(model.classifier).kept(
                        "attack on all labels", partial(_harmed, model.classifier, attack), (joint_attack.__module__,),
                        images=chosen.select(rows).content, aim=aim, budget=budget, seed=context.config.seed,
                        first=int(rows[0]),
                    )  # fmt: skip
                    right.append(aim.right(logits.to(device)).cpu())
                    advance(len(images))
                before = model.answers.right[_places(audited, chosen)]
                joint[key] = _joint_row(context, chosen, budget, torch.cat(right), before)
    return replace(model, joint=joint)


def _harmed(classifier: Classifier, attack: Callable[[], Harmed]) -> Tensor:
    return sparing(classifier, attack).logits.cpu()


def _places(audited: AuditSet, some: AuditSet) -> Tensor:
    """Return where the rows of `some` stand among the `audited` ones, int64 `[n]`."""
    place = {row: i for i, row in enumerate(audited.row_numbers.tolist())}
    return torch.tensor([place[row] for row in some.row_numbers.tolist()])


def _joint_row(context: Context, chosen: AuditSet, budget: Budget, right: Tensor, before: Tensor) -> JointAttack:
    known = chosen.row_labels != UNKNOWN_LABEL
    weights = label_weights(context.config.robustness.label_weights, chosen.class_names)
    total = (weights * known).sum(dim=1)

    def kept(standing: Tensor) -> Tensor:
        return ((weights * (standing & known)).sum(dim=1) / total)[total > 0]

    return JointAttack(
        eps=budget.eps,
        norm=budget.norm,
        steps=budget.steps,
        weights=dict(zip(chosen.class_names, weights.tolist(), strict=True)),
        kept=bootstrap_mean(kept(right), context.rng("labels/joint")),
        before=float(kept(before).mean()),
        by_label={
            name: wilson_interval(int((right & known)[:, i].sum()), int(known[:, i].sum()))
            for i, name in enumerate(chosen.class_names)
        },
    )


def label_counts(audited: AuditSet) -> LabelCounts:
    """Count how often labels occur in the audited images, alone and together."""
    truth, names = audited.row_labels, audited.class_names
    has = (truth == 1).double()
    return LabelCounts(
        n=len(truth),
        positives=dict(zip(names, (truth == 1).sum(dim=0).tolist(), strict=True)),
        unknown=dict(zip(names, (truth == UNKNOWN_LABEL).sum(dim=0).tolist(), strict=True)),
        together=(has.T @ has).long().tolist(),
    )


def label_rows(labelled: Labelled, name: str) -> dict[str, LabelResult]:
    """Return what was measured of the model `name`, by label."""
    model = next(one for one in labelled.models if one.name == name)
    if model.answers is None or model.scores is None:
        return {}
    auroc, precision, f1 = model.scores
    errors, briers = calibration(model.answers)
    rows = {}
    for place, (run, one) in enumerate(labelled.of(name)):
        labels = run.images.audited.row_labels
        rows[run.name] = LabelResult(
            n=len(labels),
            positives=int(labels.sum()),
            threshold=float(model.answers.limits[place].sigmoid()),
            auroc=auroc.by_label[place],
            average_precision=precision.by_label[place],
            f1=f1.by_label[place],
            ece=errors[place],
            brier=briers[place],
            clean=one.clean,
            robust=one.robust,
            unreliable=unreliable(one),
            failed=one.failed,
            not_computed=list(one.not_computed),
        )
    return rows


def label_summary(context: Context, labelled: Labelled, name: str) -> LabelSummary | None:
    """Return what was measured of all labels of the model `name` together; None if it did not answer."""
    model = next(one for one in labelled.models if one.name == name)
    if model.answers is None or model.scores is None:
        return None
    answers, (auroc, precision, f1) = model.answers, model.scores
    errors, briers = calibration(answers)
    known = answers.truth != UNKNOWN_LABEL
    shares = (answers.right & known).sum(dim=0) / known.sum(dim=0)
    return LabelSummary(
        auroc=auroc.macro,
        average_precision=precision.macro,
        f1=f1.macro,
        accuracy=_macro_accuracy(answers, shares, context),
        ece=_mean(errors),
        brier=_mean(briers),
        exact=wilson_interval(int(answers.right.all(dim=1).sum()), len(known)),
        any_label=_any_label(context, labelled, model),
        joint=dict(model.joint),
    )


def _macro_accuracy(answers: LabelAnswers, shares: Tensor, context: Context) -> Interval:
    """Return the mean over labels of the share of known images that are decided rightly."""
    known = answers.truth != UNKNOWN_LABEL
    # Each image's part of the mean over labels: its own mean is that macro mean.
    parts = ((answers.right & known) * len(known) / known.sum(dim=0)).nanmean(dim=1)
    found = bootstrap_mean(parts, context.rng("labels/accuracy"))
    return found.model_copy(update={"value": float(shares.nanmean())})


def _mean(values: Sequence[float | None]) -> float | None:
    there = [value for value in values if value is not None]
    return sum(there) / len(there) if there else None


def _any_label(context: Context, labelled: Labelled, model: LabelledModel) -> dict[str, AnyLabel]:
    """Join what the attacks on the single labels did to each image, for every attack that was made on all of them."""
    assert model.answers is not None
    audited, seed = labelled.images.audited, context.config.seed
    chosen = attacked_rows(audited, context.config.robustness.n, seed)
    clean = model.answers.right[_places(audited, chosen)]
    place = {row_id: i for i, row_id in enumerate(chosen.row_ids)}
    runs = labelled.of(model.name)
    paths = [path for path in runs[0][1].outcomes if path.startswith("robust.") and path != "robust.corruptions"]
    found = {}
    for path in paths:
        if not all(path in one.outcomes for _, one in runs):
            continue
        standing = torch.ones_like(clean)
        for label, (run, one) in enumerate(runs):
            ids = attacked_rows(run.images.attacked or run.images.audited, context.config.robustness.n, seed).row_ids
            rows = torch.tensor([place[row_id] for row_id in ids], dtype=torch.int64)
            standing[rows, label] = one.outcomes[path]
        right, falls = standing.all(dim=1), (clean & ~standing).any(dim=1)
        found[path.removeprefix("robust.")] = AnyLabel(
            right=wilson_interval(int(right.sum()), len(right)), falls=wilson_interval(int(falls.sum()), len(falls))
        )
    return found


def label_differences(labelled: Labelled, seed: int) -> list[Difference]:
    """Compare every pair of models, label by label, in every number that both have, and in whole images."""
    rows = [
        row.model_copy(update={"metric": f"labels.{run.name}.{row.metric}"})
        for run in labelled.runs
        for row in differences(run.models, seed)
    ]
    exact = {one.name: one.answers.right.all(dim=1) for one in labelled.answered if one.answers is not None}
    names = list(exact)
    rows += [
        Difference(a=a, b=b, metric="label_summary.exact", difference=paired_difference(exact[a], exact[b]))
        for i, a in enumerate(names)
        for b in names[i + 1 :]
    ]
    return rows


def label_notices(labelled: Labelled) -> list[Notice]:
    """Return what a reader has to know of a model's answers about a label before its numbers."""
    found = []
    for model in labelled.answered:
        name = model.name
        for run, one in labelled.of(name):
            for notice in (*notices_of_answers(one, run.images.audited), *model_notices(one)):
                text = f"Label '{run.name}': {notice.text}"
                found.append(Notice(subject=name, kind=notice.kind, text=text))
    return found
