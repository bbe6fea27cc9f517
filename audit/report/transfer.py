"""The report's table of transfer: what the images made for one model do to the others."""

from collections.abc import Sequence
from dataclasses import dataclass

from audit.report.robustness import metric_title
from audit.results import ModelResult, Transferred


@dataclass(frozen=True)
class Table:
    """One attack: its heading, and by the attacked model and the one that sees its images what is known."""

    title: str
    sources: list[str]
    cells: dict[tuple[str, str], Transferred]


def transfer_tables(models: Sequence[ModelResult]) -> list[Table]:
    """Return a table for each attack whose images were shown; the models in their order."""
    rows = [(model.name, row) for model in models for row in model.robust.transfers]
    tables = []
    for metric in dict.fromkeys(row.metric for _, row in rows):
        cells = {(row.source, name): row for name, row in rows if row.metric == metric}
        sources = [model.name for model in models if any(source == model.name for source, _ in cells)]
        tables.append(Table(metric_title(metric, models), sources, cells))
    return tables
