"""The numbers that a page of several audits shows of every model: their paths, titles, and how they are read."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from audit.report.reliance import spoken
from audit.report.robustness import Column, strongest_columns
from audit.report.text import finite
from audit.results import COMPONENTS, Attack, Interval, Intervention, ModelResult


@dataclass(frozen=True)
class Kind:
    """How a number is written: `factor` times its value, with so many digits."""

    full: float
    """The most that it can be, where the axis of a chart ends."""
    top: str
    """What is written there."""
    factor: float
    digits: int
    unit: str = ""
    step: str = ""
    """Unit of a change."""


INDEX, PART = Kind(100, "100", 1, 1), Kind(1, "1", 1, 2)
SHARE = Kind(1, "100 %", 100, 1, "\N{NO-BREAK SPACE}%", "\N{NO-BREAK SPACE}points")
_NO_NUMBER = Interval(value=None)


def _nothing(_: ModelResult) -> None:
    return None


@dataclass(frozen=True)
class Line:
    """A number that every audit may have of a model."""

    metric: str
    title: str
    kind: Kind
    read: Callable[[ModelResult], Interval]
    attack: Callable[[ModelResult], Attack | None] = _nothing
    note: Callable[[ModelResult], str | None] = _nothing

    def number(self, model: ModelResult | None) -> Interval | None:
        """Return the number of a model, None where it was not measured."""
        found = None if model is None else self.read(model)
        return found if found is not None and finite(found.value) else None

    def of_label(self, name: str) -> "Line":
        """Return the same number of one label of a multi-label model."""
        return Line(
            f"labels.{name}.{self.metric}",
            f"{name}: {self.title}",
            self.kind,
            lambda model: self.read(model.of_label(name)),
            lambda model: self.attack(model.of_label(name)),
            lambda model: self.note(model.of_label(name)),
        )


def measured_lines(models: Sequence[ModelResult]) -> list[Line]:
    """Return every number that was measured of one of `models`; of several labels those of all, then of each one."""
    found = [
        Line(f"label_summary.{key}", title, kind, partial(_of_summary, key))
        for key, title, kind in (
            ("auroc", "AUROC, mean over labels", PART),
            ("f1", "F1, mean over labels", PART),
            ("exact", "All labels right", SHARE),
        )
    ]
    found += _of_classes(models)
    for label in dict.fromkeys(name for model in models for name in model.labels):
        found.append(Line(f"labels.{label}.auroc", f"{label}: AUROC", PART, partial(_auroc, label)))
        found += [line.of_label(label) for line in _of_classes([model.of_label(label) for model in models])]
    return [line for line in found if any(line.number(model) is not None for model in models)]


def _of_classes(models: Sequence[ModelResult]) -> list[Line]:
    return [
        Line("index", "Index", INDEX, _index),
        *(Line(f"components.{name}", name.capitalize(), PART, partial(_component, name)) for name in COMPONENTS),
        Line("clean.accuracy", "Clean accuracy", SHARE, lambda model: model.clean.accuracy),
        *(
            Line(one.metric, f"{one.title} {one.radius}", SHARE, partial(_robust, one), one.attack)
            for one in strongest_columns(models)
        ),
        Line("reliance.worst", "Decisions turned by one change", SHARE, _reliance, note=_turned_by),
    ]


def _of_summary(key: str, model: ModelResult) -> Interval:
    return _NO_NUMBER if model.label_summary is None else getattr(model.label_summary, key)


def _auroc(label: str, model: ModelResult) -> Interval:
    return model.labels[label].auroc if label in model.labels else _NO_NUMBER


def _index(model: ModelResult) -> Interval:
    low, high = model.index_interval or (None, None)
    return Interval(value=model.index, low=low, high=high)


def _component(name: str, model: ModelResult) -> Interval:
    low, high = model.component_intervals.get(name, (None, None))
    return Interval(value=getattr(model.components, name), low=low, high=high)


def _robust(column: Column, model: ModelResult) -> Interval:
    attack = column.attack(model)
    return _NO_NUMBER if attack is None else attack.robust_accuracy


def _worst(model: ModelResult) -> Intervention | None:
    """Return the intervention that turns most decisions: the gate's `reliance.worst`."""
    found = model.reliance.interventions if model.reliance is not None else []
    return max(found, key=lambda row: row.worst.hit_order, default=None)


def _reliance(model: ModelResult) -> Interval:
    worst = _worst(model)
    return _NO_NUMBER if worst is None else worst.worst.hit


def _turned_by(model: ModelResult) -> str | None:
    row = _worst(model)
    if row is None:
        return None
    towards = "" if row.worst.hit_towards is None else f", most to {row.worst.hit_towards}"
    return f"{spoken(row.name)}, {row.extent(row.worst)}{towards}"
