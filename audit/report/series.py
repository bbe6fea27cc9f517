"""Several audits of one series beside each other: every number, and what changed since the first audit.

A change is told only where both audits measured the same thing. Whether they did, and by how much a number changed, is
the gate's to say: its function is given to the page. What is not compared has its reason.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from markupsafe import Markup

from audit.report import trend
from audit.report.baseline import signed
from audit.report.jinja import environment
from audit.report.series_lines import Line, measured_lines
from audit.report.text import bounds, finite
from audit.results import AuditResult, Interval, ModelResult

MARK = '<meta name="generator" content="spruce-audit series">'
"""By which a page of several audits is known, and told from the report of one."""
MOST_CHARTS = 12
"""Numbers that have a chart; with many labels, the tables alone hold the others."""

Compare = Callable[[str, ModelResult, ModelResult, AuditResult, AuditResult], Interval | str]
"""A number of a model in one audit less the same of the model in an earlier one, or why the two are not compared."""


@dataclass(frozen=True)
class Listed:
    """One audit of a series: what it is called, what it found, and where its own report lies, seen from the page."""

    name: str
    result: AuditResult
    report: str | None = None

    def model(self, name: str) -> ModelResult | None:
        """Return the model of that name, None where this audit has none."""
        return next((model for model in self.result.models if model.name == name), None)


@dataclass(frozen=True)
class Cell:
    """One number in one audit, with its doubts as (word, why)."""

    number: Interval
    note: str | None
    doubts: list[tuple[str, str]]
    change: Interval | None = None
    """Since the first audit."""
    why: int | None = None
    """Number of the reason for which it is not compared with the first audit."""
    joined: bool = False
    """It may be compared with the audit before it, so that a line leads from there to here."""

    @property
    def is_sure(self) -> bool:
        """Whether it changed by more than chance."""
        found = self.change
        return found is not None and ((found.low or 0.0) > 0 or (found.high or 0.0) < 0)


@dataclass
class Reasons:
    """Why numbers are not compared with the first audit: each once, with the audits and numbers that it concerns."""

    found: dict[str, dict[tuple[str, str], None]] = field(default_factory=dict)

    def add(self, why: str, audit: str, what: str) -> int:
        """Note that `what` of an audit is not compared; returns the number of the reason, from 1."""
        self.found.setdefault(why, {})[audit, what] = None
        return list(self.found).index(why) + 1

    def rows(self) -> list[tuple[str, list[tuple[str, list[str]]]]]:
        """Return every reason with the numbers that it concerns, audit by audit."""
        return [
            (why, [(audit, [w for a, w in where if a == audit]) for audit in dict.fromkeys(a for a, _ in where)])
            for why, where in self.found.items()
        ]


Rows = list[tuple[Line, list[Cell | None]]]


def series_page(audits: Sequence[Listed], compare: Compare) -> str:
    """Return the page of several audits, the first of which the others are compared with."""
    models = list(dict.fromkeys(model.name for audit in audits for model in audit.result.models))
    lines = measured_lines([model for audit in audits for model in audit.result.models])
    reasons = Reasons()
    tables: dict[str, Rows] = {}
    for name in models:
        rows = [(line, _row(line, [(one, one.model(name)) for one in audits], compare, reasons)) for line in lines]
        tables[name] = [(line, cells) for line, cells in rows if any(cells)]
    page = environment().get_template("series.html.j2").render(
        mark=Markup(MARK),  # noqa: S704 - a constant
        title=f"{len(audits)} audits: {', '.join(audit.name for audit in audits)}",
        views=[],
        audits=audits,
        tables=tables,
        weights={name: [_weights(one.model(name)) for one in audits] for name in models},
        verdict=_verdict(tables, audits),
        findings=_findings(tables, audits),
        changed_text=changed_text,
        bounds=bounds,
        charts=[(line, chart) for line in lines[:MOST_CHARTS] if (chart := _chart(line, tables, audits))],
        legend=[(trend.swatch(place), name) for place, name in enumerate(models)],
        reasons=reasons.rows(),
    )  # fmt: skip
    return str(page)


def _weights(model: ModelResult | None) -> str:
    return "" if model is None else (model.weights_sha256 or "")[:8]


def _row(
    line: Line, audits: Sequence[tuple[Listed, ModelResult | None]], compare: Compare, reasons: Reasons
) -> list[Cell | None]:
    """Return one number of one model in every audit; None where it was not measured."""
    known = [(audit, model, line.number(model)) for audit, model in audits]
    first, old, _ = known[0]
    cells: list[Cell | None] = []
    for place, (audit, model, number) in enumerate(known):
        if model is None or number is None:
            cells.append(None)
            continue
        found: Interval | str | None = None
        if place and old is not None and known[0][2] is not None:
            found = compare(line.metric, model, old, audit.result, first.result)
        before, earlier, there = known[place - 1] if place else (audit, None, None)
        joined = isinstance(found, Interval) if place == 1 else (
            earlier is not None
            and there is not None
            and isinstance(compare(line.metric, model, earlier, audit.result, before.result), Interval)
        )  # fmt: skip
        cells.append(
            Cell(
                number,
                _note(line, model, audit.result),
                _doubts(line, model),
                change=found if isinstance(found, Interval) else None,
                why=reasons.add(found, audit.name, line.title) if isinstance(found, str) else None,
                joined=joined,
            )
        )
    return cells


def changed_text(line: Line, change: Interval) -> Markup:
    """Return a change with its sign and interval, in the unit of its number; bold where it is more than chance."""
    if (change.value, change.low, change.high) == (0.0, 0.0, 0.0):
        return Markup("none")
    if finite(change.low) and finite(change.high):
        return signed(change, line.kind.factor, line.kind.digits)
    text = f"{line.kind.factor * (change.value or 0.0):+.{line.kind.digits}f}".replace("-", "\N{MINUS SIGN}")
    return Markup('<span class="value">{}</span> <span class="bounds">no interval</span>').format(text)


def _note(line: Line, model: ModelResult, result: AuditResult) -> str | None:
    if line.metric != "index" or model.rank is None:
        return line.note(model)
    ranks = [one.rank for one in result.models if one.rank is not None]
    tiers = sorted(set(ranks))
    shared = ", shared" if ranks.count(model.rank) > 1 else ""
    return f"tier {tiers.index(model.rank) + 1} of {len(tiers)}{shared}"


def _doubts(line: Line, model: ModelResult) -> list[tuple[str, str]]:
    attack = line.attack(model)
    found = [
        ("unreliable", model.unreliable),
        ("untrusted", [] if attack is None else attack.untrusted),
        ("unchecked", [] if attack is None or attack.untrusted else attack.unchecked),
        ("vetoed", [model.veto] if line.metric == "index" and model.veto is not None else []),
    ]
    return [(word, " ".join(why)) for word, why in found if why]


def _verdict(tables: dict[str, Rows], audits: Sequence[Listed]) -> Markup:
    """Say how many numbers of the last audit changed since the first, of those that may be compared."""
    last = [cells[-1] for rows in tables.values() for _, cells in rows]
    compared = [cell for cell in last if cell is not None and cell.change is not None]
    apart = sum(cell is not None and cell.why is not None for cell in last)
    since = Markup("From <strong>{}</strong> to <strong>{}</strong>, ").format(audits[0].name, audits[-1].name)
    if not compared and not apart:
        return since + Markup("no model has a number in both.")
    rest = Markup("; {} may not be compared").format(apart) if apart else Markup("")
    if not compared:
        return since + Markup("no number may be compared: the audits did not measure the same thing.")
    sure = sum(cell.is_sure for cell in compared)
    told = "{} of {} comparable numbers changed by more than chance{}."
    return since + Markup(told).format(sure or "none", len(compared), rest)  # noqa: S704 - a constant


def _findings(tables: dict[str, Rows], audits: Sequence[Listed]) -> list[Markup]:
    """Return a sentence on every model whose numbers changed by more than chance, and on audits that did not finish."""
    notes = [
        Markup("<strong>The audit {} did not finish</strong>: what it lacks is in its own report.").format(one.name)
        for one in audits
        if not one.result.complete
    ]
    for name, rows in tables.items():
        told = [
            Markup("{} {}{}").format(line.title, changed_text(line, cells[-1].change), line.kind.step)
            for line, cells in rows
            if cells[-1] is not None and cells[-1].change is not None and cells[-1].is_sure
        ]
        if told:
            notes.append(Markup("<strong>{}</strong>: {}.").format(name, Markup("; ").join(told)))
    return notes


def _chart(line: Line, tables: dict[str, Rows], audits: Sequence[Listed]) -> Markup:
    """Return the chart of one number over the audits, a curve a model."""
    curves = []
    for place, rows in enumerate(tables.values()):
        cells = next((cells for one, cells in rows if one.metric == line.metric), [])
        curves.append((place, [None if cell is None else _point(cell, line.kind.full) for cell in cells]))
    label = f"{line.title} in {len(audits)} audits; the tables hold the numbers"
    return trend.trend_chart(curves, len(audits), line.kind.top, label)


def _point(cell: Cell, full: float) -> trend.Point:
    ends = [None if end is None else end / full for end in (cell.number.low, cell.number.high)]
    return trend.Point((cell.number.value or 0.0) / full, ends[0], ends[1], cell.joined)
