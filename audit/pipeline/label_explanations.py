"""Counterfactuals of labels, and what the decisions about them rely on: each label as a question of two classes.

All models and labels share the inversions. An edit that is meant for one label may change what the model says of the
others, which is measured as off-target change and costs validity. A label that cannot be explained is left out, with
the reason.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
import torch

from audit.classifiers.bridge import two_classes
from audit.classifiers.classifier import Classifier
from audit.counterfactual.methods import ChosenMethod
from audit.data.multilabel import absent
from audit.errors import ClassifierError
from audit.pipeline.attribution import attribute_models
from audit.pipeline.calibrate import Calibrated, Seen, calibrate, check_target, look_at
from audit.pipeline.context import Context
from audit.pipeline.explain import OtherLabels, Subject
from audit.pipeline.labels import LabelExplained, Labelled, LabelRun, limit_of, view_of
from audit.pipeline.meaningfulness import STAGE, explain_models
from audit.pipeline.networks import Networks
from audit.pipeline.pairing import LEAST
from audit.pipeline.queries import Queries, asked_classes, choose_queries, invert_queries, source_classes, sure_targets
from audit.pipeline.reliance import measure_reliance
from audit.pipeline.robustness import Measured
from audit.reliance.spec import Intervention
from audit.results import MEANINGFULNESS, UNKNOWN_LABEL, Failure, NotComputed
from audit.runtime.faults import stage_kept, tried


@dataclass(frozen=True)
class _Prepared:
    """One label: how it is asked for, the models that can be explained on it, and why the others cannot.

    `rows` are the images to invert, by their numbers in the whole set.
    """

    place: int
    run: LabelRun
    context: Context
    subjects: tuple[Subject, ...] = ()
    rows: tuple[int, ...] = ()
    missing: Mapping[str, NotComputed] = field(default_factory=dict)
    why: NotComputed | None = None


def explain_labels(
    context: Context, labelled: Labelled, networks: Networks, methods: Sequence[ChosenMethod]
) -> Labelled:
    """Explain all models on every label that the configuration asks for; return what was known with what was found."""
    wanted = context.config.queries.labels or labelled.images.audited.class_names
    lost: list[NotComputed] = []
    found: dict[str, LabelExplained] = {}
    with stage_kept(STAGE, lost, [f"labels.{name}.{path}" for name in wanted for path in MEANINGFULNESS]):
        with context.watch.stage("calibration"):
            calibration = labelled.images.calibration
            assert calibration is not None
            seen = {
                one.name: tried("calibration", partial(look_at, context, one.classifier, calibration))
                for one in labelled.answered
            }
            prepared = [
                _prepared(context, labelled, seen, place)
                for place, run in enumerate(labelled.runs)
                if run.name in wanted
            ]
        with context.watch.stage("inversion"):
            pool = _pool(context, labelled, networks, prepared)
        for one in prepared:
            second = None
            if one.subjects and pool is not None:
                judges = tuple(view_of(judge, one.place) for judge in networks.judges)
                # What is missing of the canonical networks is missing for all labels alike, and told once.
                own = replace(networks, judges=judges, missing=[])
                second = explain_models(one.context, one.run.images, one.subjects, own, methods, pool)
            found[one.run.name] = LabelExplained(second, one.missing, one.why)
    runs = tuple(replace(run, explained=found.get(run.name)) for run in labelled.runs)
    return replace(labelled, runs=runs, networks=networks, lost=(*labelled.lost, *lost))


def rely_on_labels(context: Context, labelled: Labelled, interventions: Mapping[str, Intervention]) -> Labelled:
    """Measure what the decisions about every label react to, and draw their attribution maps, where that is asked."""
    runs = []
    for run in labelled.runs:
        second = None if run.explained is None else run.explained.found
        relied = measure_reliance(context, run.images, run.models, interventions)
        attributions = attribute_models(context, run.images, run.models, second)
        runs.append(replace(run, relied=relied, attributions=attributions))
    return replace(labelled, runs=tuple(runs))


def context_of(context: Context, name: str) -> Context:
    """Return the context in which the label `name` is explained as a question of two classes."""
    config = context.config
    here, gone = name, absent(name)
    classes, target = {"present": ((here,), gone), "absent": ((gone,), here), "both": ((gone, here), "nearest")}[
        config.queries.label_is
    ]
    # The region that is called as the label carries its meaning, and is no confounder of it.
    confounder = tuple(region for region in config.regions.confounder if region != name)
    own = config.model_copy(
        update={
            "queries": config.queries.model_copy(update={"classes": classes, "target": target}),
            "regions": config.regions.model_copy(update={"confounder": confounder}),
        }
    )
    return replace(context, config=own)


def _prepared(context: Context, labelled: Labelled, seen: Mapping[str, Seen | Failure], place: int) -> _Prepared:
    """Find out which models can be explained on a label, and on which images."""
    run = labelled.runs[place]
    own, audited = context_of(context, run.name), run.images.audited
    few = _too_few(own, run)
    if few is not None:
        paths = [f"labels.{run.name}.{path}" for path in MEANINGFULNESS]
        why = NotComputed(what=f"{STAGE} of label '{run.name}'", why=few, paths=paths)
        return _Prepared(place, run, own, why=why)
    subjects: dict[str, Subject] = {}
    reasons: dict[str, str] = {}
    for base, one in zip(labelled.answered, run.models, strict=True):
        if one.failed is not None or one.logits is None:
            continue
        known = tried("calibration", partial(_calibrated, own, labelled, place, one, seen[base.name]))
        if isinstance(known, Failure):
            reasons[one.name] = known.why
        else:
            others = _others(own, base.classifier, run.name)
            subjects[one.name] = Subject(known, one.logits, one.clean, others)
    selection = choose_queries(own, audited, {name: subject.logits.argmax(1) for name, subject in subjects.items()})
    reasons |= {name: failure.why for name, failure in selection.failed.items()} | selection.nothing
    return _Prepared(
        place=place,
        run=run,
        context=own,
        subjects=tuple(subject for name, subject in subjects.items() if name not in reasons),
        rows=tuple(audited.row_numbers[selection.indices].tolist()),
        missing={name: NotComputed(what=STAGE, why=why, paths=list(MEANINGFULNESS)) for name, why in reasons.items()},
    )


def _too_few(own: Context, run: LabelRun) -> str | None:
    """Say of what there are too few images to explain a label; None: there are enough."""
    config, audited, calibration = own.config, run.images.audited, run.images.calibration
    assert calibration is not None
    names = audited.class_names
    sources = torch.tensor(source_classes(config.queries, names))
    n = int(torch.isin(audited.row_labels, sources).sum())
    if n < LEAST:
        return f"the audit split has {n} images to explain it on ({config.queries.label_is}) where {LEAST} are needed"
    for side in asked_classes(config.queries, names):
        found = int((calibration.row_labels == side).sum())
        if found < config.counterfactual.min_calibration:
            return (
                f"{found} of {len(calibration)} calibration images are '{names[side]}' where "
                f"{config.counterfactual.min_calibration} are needed (counterfactual.min_calibration)"
            )
    return None


def _calibrated(own: Context, labelled: Labelled, place: int, one: Measured, seen: Seen | Failure) -> Calibrated:
    """Calibrate the view `one` of a label by what the whole model has `seen` in all calibration images."""
    if isinstance(seen, Failure):
        raise ClassifierError(seen.why)
    whole, known = labelled.images.calibration, labelled.runs[place].images.calibration
    assert whole is not None
    assert known is not None
    rows = torch.from_numpy(np.flatnonzero(whole.row_labels[:, place] != UNKNOWN_LABEL))
    logits = two_classes(seen.logits[rows], place, limit_of(one.classifier, place))
    found = calibrate(own, one.classifier, known, Seen(seen.features[rows], logits))
    queries, names = own.config.queries, one.classifier.class_names
    for target in sure_targets(queries, names) or asked_classes(queries, names):
        check_target(found, target)
    return found


def _others(own: Context, classifier: Classifier, name: str) -> OtherLabels | None:
    """Return the labels that an edit towards the label `name` is to leave as they are; None: there are none."""
    follows = own.config.queries.label_follows
    places = {other: i for i, other in enumerate(classifier.class_names) if other != name and other not in follows}
    return OtherLabels(classifier, places) if places and name not in follows else None


def _pool(context: Context, labelled: Labelled, networks: Networks, prepared: Sequence[_Prepared]) -> Queries | None:
    """Invert the images that any label is explained on, once for all labels; None: there are none."""
    audited = labelled.images.audited
    rows = sorted({row for one in prepared for row in one.rows})
    places = {row: place for place, row in enumerate(audited.row_numbers.tolist())}
    indices = torch.tensor([places[row] for row in rows], dtype=torch.int64)
    return invert_queries(context, networks, audited, indices) if rows else None
