"""What is otherwise than of the baseline that was audited beside the other models, on the same images."""

from collections.abc import Iterator
from dataclasses import dataclass

from markupsafe import Markup

from audit.report.robustness import difference_metrics, difference_of, metric_title
from audit.report.text import finite
from audit.results import COMPONENTS, AuditResult, Interval


@dataclass(frozen=True)
class Changes:
    """One model less the baseline, by the heading of a number."""

    model: str
    baseline: str
    cells: dict[str, Markup]


def changes(result: AuditResult) -> list[Changes]:
    """Return the changes of every model but the baseline; none where the audit has no baseline."""
    old = next((model.name for model in result.models if model.role == "baseline"), None)
    if old is None:
        return []
    names = [model.name for model in result.models if model.name != old]
    return [Changes(name, old, dict(_cells(result, name, old))) for name in names]


def _cells(result: AuditResult, new: str, old: str) -> Iterator[tuple[str, Markup]]:
    for row in result.comparisons:
        if {row.a, row.b} == {new, old}:
            sign = 1 if row.a == new else -1
            if row.difference is not None:
                yield "Index", signed(row.difference, sign, 1)
            for name in COMPONENTS:
                if name in row.components:
                    yield name.capitalize(), signed(row.components[name], sign, 2)
    for metric in difference_metrics(result.differences):
        found = difference_of(result, new, old, metric)
        if found is not None and finite(found.value):
            title = metric_title(metric, result.models)
            yield f"{title[:1].upper()}{title[1:]}, points", signed(found, 100, 1)


def signed(difference: Interval, factor: float, digits: int) -> Markup:
    """Return `factor` times a difference with its interval; bold where that does not hold 0."""
    value, *ends = (factor * (number or 0.0) for number in (difference.value, difference.low, difference.high))
    low, high = sorted(ends)
    shown = [f"{number:+.{digits}f}".replace("-", "\N{MINUS SIGN}") for number in (value, low, high)]
    middle = Markup("<b>{}</b>") if low > 0 or high < 0 else Markup("{}")
    told = Markup('<span class="value">{}</span> <span class="bounds">[{}, {}]</span>')
    return told.format(middle.format(shown[0]), *shown[1:])
