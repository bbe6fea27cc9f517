"""The report of models whose images have any number of labels: what is told first, and the tables of labels."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup

from audit.report import figures
from audit.report.robustness import Column, HasRobust, strongest_columns
from audit.report.text import bounds, finite, in_order, names, percent
from audit.results import (
    MAIN_REGION,
    AdversarialExample,
    AuditResult,
    Corruptions,
    Interval,
    LabelResult,
    ModelResult,
    MovedLabel,
    OffTarget,
    RegionShare,
    TrustCheck,
)

_SPACE = "\N{NO-BREAK SPACE}"
MOST_EXAMPLES = 2
"""Attacked images shown of every label."""


def verdict(result: AuditResult) -> Markup:
    """Return the outcome in one sentence: how well labels are told, and how often an attack makes one fall."""
    known = [model for model in in_order(result) if model.label_summary is not None]
    sound = [model for model in known if model.failed is None and finite(_auroc(model).value)]
    if not sound:
        return Markup("No model could be measured on all labels.")
    best = max(sound, key=lambda model: _auroc(model).value or 0.0)
    rivals = [model for model in sound if model is not best and not _apart(_auroc(best), _auroc(model))]
    count = len(result.classes)
    told = f"{count} label{'s' if count != 1 else ''}"
    if len(sound) == 1:
        text = Markup("{} tells {} with a mean area under the ROC curve of {}").format(
            names([best]), told, _number(_auroc(best))
        )
    elif rivals:
        text = Markup("{} tell {} best, with no difference beyond chance (mean area under the ROC curve {})").format(
            names([best, *rivals]), told, ", ".join(_number(_auroc(model)) for model in (best, *rivals))
        )
    else:
        text = Markup("{} tells {} best (mean area under the ROC curve {})").format(
            names([best]), told, _number(_auroc(best))
        )
    text += _fall(sound)
    if result.label_explanations:
        return text + Markup(". What they decide by is told label by label.")
    whose = "they decide as they do" if len(sound) > 1 else "it decides as it does"
    return text + Markup(". Why {} was not examined.").format(whose)


def parts(result: AuditResult) -> list[tuple[str, AuditResult]]:
    """Return every label of which there are counterfactuals, and the audit of it; of single labels '' and all of it."""
    if result.label_counts is None:
        return [("", result)]
    return [(name, result.of_label(name)) for name in result.label_explanations]


def apart(models: Sequence[ModelResult]) -> list[ModelResult]:
    """Return what was measured of every label of the `models` as a model of its own, called after both."""
    names = dict.fromkeys(name for model in models for name in model.labels)
    return [called(model, name) for name in names for model in models if name in model.labels]


def called(model: ModelResult, name: str) -> ModelResult:
    """Return the model as one of the label `name`, called after both; itself where it is one of single labels."""
    return model.of_label(name).model_copy(update={"name": f"{name}: {model.name}"}) if name else model


def moved_most(found: OffTarget) -> tuple[str, MovedLabel]:
    """Return the other label about which most edits change the decision; of equals the one whose probability moves."""
    return max(found.labels.items(), key=lambda one: (one[1].flips.value or 0.0, one[1].change.value or 0.0))


def main_region(label: LabelResult) -> RegionShare | None:
    """Return where the edits lie with respect to the region that carries the label's meaning."""
    rows = [] if label.counterfactuals is None else label.counterfactuals.regions
    return next((row for row in rows if row.region == MAIN_REGION), None)


def entangled(models: Sequence[ModelResult]) -> list[Markup]:
    """Return a sentence for every model and label that most edits of which change other labels as well."""
    notes = []
    for model in models:
        for name, label in model.labels.items():
            edits = label.counterfactuals
            if edits is None or edits.off_target is None:
                continue
            flipped, valid = edits.flip_ratio.value or 0.0, edits.off_target.valid.value or 0.0
            other, most = moved_most(edits.off_target)
            if valid < flipped / 2:
                notes.append(
                    Markup(
                        "<strong>{} does not keep “{}” apart:</strong> most edits that flip it change what is said of "
                        "another label as well, “{}” on {} of {} images."
                    ).format(model.name, name, other, percent(most.flips.value, 0), most.flips.n)
                )
    return notes


def _auroc(model: ModelResult) -> Interval:
    assert model.label_summary is not None
    return model.label_summary.auroc


def _apart(a: Interval, b: Interval) -> bool:
    return a.low is not None and b.high is not None and a.low > b.high


def _number(interval: Interval) -> str:
    if interval.value is None:
        return "\N{EN DASH}"
    return f"{interval.value:.3f} {bounds(interval.low, interval.high, 1, 3)}".strip().replace(" ", _SPACE)


def _fall(models: Sequence[ModelResult]) -> Markup:
    """Say on how many images the largest attack makes some label fall."""
    column = max(any_columns(models), key=lambda one: one.eps, default=None)
    if column is None:
        return Markup("")
    shares = [
        Markup("{}{}").format(percent(found.falls.value, 0), f" ({model.name})" if len(models) > 1 else "")
        for model in models
        if model.label_summary is not None
        and (found := model.label_summary.any_label.get(column.metric.removeprefix("robust."))) is not None
    ]
    return Markup("; under {} at eps{}{} some label falls on {} of the images").format(
        column.title, _SPACE, column.radius, Markup(", ").join(shares)
    )


def columns(models: Sequence[ModelResult]) -> list[Column]:
    """Return one attack for each radius, the strongest that was made of the labels."""
    found: list[HasRobust] = [label for model in models for label in model.labels.values()]
    return strongest_columns(found)


def any_columns(models: Sequence[ModelResult]) -> list[Column]:
    """Return the attacks that were made on all labels of some model."""
    summaries = [model.label_summary for model in models if model.label_summary is not None]
    return [
        column
        for column in columns(models)
        if any(column.metric.removeprefix("robust.") in summary.any_label for summary in summaries)
    ]


def joint_keys(models: Sequence[ModelResult]) -> list[str]:
    """Return the radii of the attacks on all labels together."""
    return list(dict.fromkeys(key for m in models if m.label_summary is not None for key in m.label_summary.joint))


def recall(label: LabelResult, column: Column, name: str, present: bool) -> Interval | None:
    """Return the share of the images with the label `name`, or of those without, that an attack leaves right."""
    attack = column.attack(label)
    if attack is None:
        return None
    found = [interval for key, interval in attack.recall.items() if (key == name) is present]
    return found[0] if found else None


def clean_recall(label: LabelResult, name: str, present: bool) -> float | None:
    """Return the share of the images with the label `name`, or of those without, that are decided rightly."""
    return next((value for key, value in label.clean.recall.items() if (key == name) is present), None)


def doubts(models: Sequence[ModelResult]) -> list[tuple[str, str, TrustCheck]]:
    """Return (model, label, check) of every trust check that failed or could not be made."""
    return [
        (model.name, name, check)
        for model in models
        for name, label in model.labels.items()
        for check in label.robust.checks
        if check.passed is not True
    ]


def distrust(result: AuditResult) -> list[Markup]:
    """Return a sentence for every model of which some label's robust accuracy failed a check."""
    notes = []
    for model in in_order(result):
        failed = [name for name, label in model.labels.items() if label.robust.trusted is False]
        if failed:
            notes.append(
                Markup("<strong>The robust accuracy of {} is untrusted for {}.</strong> {}").format(
                    model.name, ", ".join(failed), Markup('<a href="#labels-trust">Why</a>.')
                )
            )
    return notes


def corruptions(models: Sequence[ModelResult]) -> list[tuple[str, str, Corruptions]]:
    """Return (model, label, accuracy under corruptions) where it was measured."""
    return [
        (model.name, name, label.robust.corruptions)
        for model in models
        for name, label in model.labels.items()
        if label.robust.corruptions is not None
    ]


@dataclass(frozen=True)
class Attacked:
    """One attacked image, with its three pictures and what they show."""

    example: AdversarialExample
    pictures: list[tuple[str, str]]


def attacked(models: Sequence[ModelResult], folder: Path) -> list[tuple[str, list[Attacked]]]:
    """Return every model's first attacked images, label by label."""
    rows = []
    for model in models:
        cells = [
            Attacked(one, figures.attacked_pictures(folder, one))
            for label in model.labels.values()
            for one in [one for one in label.robust.examples if one.distance is None][:MOST_EXAMPLES]
        ]
        if cells:
            rows.append((model.name, cells))
    return rows


def together(result: AuditResult) -> list[tuple[str, list[float | None]]]:
    """Return for every label the share of its images that have each other label as well; None where it has no image."""
    counts = result.label_counts
    if counts is None:
        return []
    return [
        (name, [both / row[i] if row[i] else None for both in row])
        for i, (name, row) in enumerate(zip(counts.positives, counts.together, strict=True))
    ]
