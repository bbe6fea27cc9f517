"""The report's tables of classes: recall, precision and F1 with and without an attack, and which are confused."""

from collections.abc import Sequence
from dataclasses import dataclass

from audit.report.robustness import Column
from audit.report.text import finite
from audit.results import AuditResult, ClassScores, Interval, ModelResult

MOST_ROWS = 30
"""Classes shown; of more, those that are hardest to recognise."""
LARGEST_MATRIX = 20
MISTAKES = 3


@dataclass(frozen=True)
class Mistake:
    """How often images of one class are taken for another: `count` of the class's `n` images."""

    label: str
    answer: str
    count: int
    n: int


def shown_classes(result: AuditResult) -> list[str]:
    """Return the classes in their order; of very many, those of the lowest mean recall first."""
    if len(result.classes) <= MOST_ROWS:
        return result.classes

    def recall(name: str) -> float:
        found = [value for m in result.models if (value := m.clean.recall.get(name)) is not None and finite(value)]
        return sum(found) / len(found) if found else 2.0

    return sorted(result.classes, key=recall)[:MOST_ROWS]


def class_counts(model: ModelResult, classes: Sequence[str]) -> dict[str, int]:
    """Return how many images of each class a model was asked about; empty where the results do not say."""
    rows = model.clean.confusion or []
    return {name: sum(row) for name, row in zip(classes, rows, strict=False)}


def told_of_classes(models: Sequence[ModelResult], column: Column | None) -> Column | None:
    """Return `column` where its accuracy is known class by class, else None: older results do not say it."""
    known = column is not None and any(
        attack.recall for model in models if (attack := column.attack(model)) is not None
    )
    return column if known else None


def attacked_recall(model: ModelResult, column: Column | None, name: str) -> Interval | None:
    """Return a class's accuracy under an attack, None where it is not known."""
    attack = column.attack(model) if column is not None else None
    found = attack.recall.get(name) if attack is not None else None
    return found if found is not None and finite(found.value) else None


def attacked_counts(models: Sequence[ModelResult], column: Column | None, name: str) -> list[int]:
    """Return on how many images of a class the attack was made, once for each count that differs."""
    found = [attacked_recall(model, column, name) for model in models]
    return sorted({interval.n for interval in found if interval is not None})


def answered(model: ModelResult, column: Column | None) -> list[tuple[str, ClassScores]]:
    """Return what is known class by class of a model's answers: to clean images, and to attacked ones where told."""
    attack = column.attack(model) if column is not None else None
    found: list[tuple[str, ClassScores]] = [("clean", model.clean)]
    return found if attack is None or attack.confusion is None else [*found, ("attacked", attack)]


def score_kinds(models: Sequence[ModelResult]) -> list[tuple[str, str]]:
    """Return (field, heading) of the scores that the results hold: none in those of earlier versions."""
    kinds = [("precision", "Precision: share of the answers of each class that are right"), ("f1", "F1 of each class")]
    return [(field, title) for field, title in kinds if any(getattr(model.clean, field) for model in models)]


def mistakes(scores: ClassScores, classes: Sequence[str]) -> list[Mistake]:
    """Return the commonest confusions, the most frequent first."""
    rows = scores.confusion or []
    found = [
        Mistake(classes[i], classes[j], count, sum(row))
        for i, row in enumerate(rows[: len(classes)])
        for j, count in enumerate(row[: len(classes)])
        if i != j and count
    ]
    return sorted(found, key=lambda one: -one.count)[:MISTAKES]
