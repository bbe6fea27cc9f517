"""The gallery: every query image with the counterfactuals of all models, in as many files as they need."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from pathlib import Path

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from audit.report import accounts, attribution, figures, text
from audit.results import AuditResult, ModelResult, Query, QueryRow

VISIBLE_QUERIES = 6
"""Query images shown at once; the others open on demand."""
GALLERY_BYTES = 18_000_000
"""Size that the query images of one file may have: a browser opens a file of 20 MB in less than two seconds."""


@dataclass(frozen=True)
class Cell:
    """One model on one query image."""

    model: str
    row: QueryRow
    counterfactual: str | None
    semifactual: str | None
    edit: str | None
    trace: Markup
    attributions: list[tuple[str, str]]

    @property
    def outcome(self) -> str:
        """What came of it, as the gallery's filter calls it."""
        if self.row.ruined:
            return "no edit in range"
        if not self.row.flipped:
            return "not flipped"
        if self.row.moved:
            return "changes other labels"
        return "as sure as asked" if self.row.reached else "less sure than asked"

    @property
    def measures(self) -> dict[str, float]:
        """The numbers that the gallery can be sorted by."""
        row = self.row
        found = {"l1": row.l1, "confidence": row.confidence, "steps": row.steps, "mass": row.mass.get(text.MAIN_REGION)}
        return {key: value for key, value in found.items() if value is not None and text.finite(value)}


@dataclass(frozen=True)
class QueryView:
    """One query image with every model's counterfactual."""

    query: Query
    number: int
    image: str
    inversion: str
    shape: tuple[int, int]
    outlines: list[tuple[str, str]]
    cells: list[Cell | None]

    @property
    def size(self) -> int:
        """Letters of its pictures, about all that it adds to a file."""
        pictures = [self.image, self.inversion]
        for cell in self.cells:
            if cell is not None:
                pictures += [cell.counterfactual or "", cell.semifactual or "", cell.edit or "", str(cell.trace)]
                pictures += [uri for _, uri in cell.attributions]
        return sum(map(len, pictures))


def files_of(views: Sequence[QueryView]) -> list[list[QueryView]]:
    """Return the query images file by file, one at least in each; one empty file where there are none."""
    groups: list[list[QueryView]] = [[]]
    room = GALLERY_BYTES
    for view in views:
        if view.size > room and groups[-1]:
            groups.append([])
            room = GALLERY_BYTES
        groups[-1].append(view)
        room -= view.size
    return groups


def read_edits(models: Sequence[ModelResult], folder: Path) -> dict[str, NDArray[np.uint8]]:
    """Read all edit maps once, as bytes by file name: the common scale needs them before the first one is drawn."""
    names = [
        row.edit_image for model in models for row in model.queries if row.edit_image is not None and not row.ruined
    ]
    return {name: np.asarray(figures.read_image(folder, name).convert("L")) for name in names}


def query_views(
    result: AuditResult,
    models: Sequence[ModelResult],
    folder: Path,
    edits: dict[str, NDArray[np.uint8]],
    scale: float,
) -> list[QueryView]:
    """Return the query images of `result`, each with what was made of it for `models`, drawn to one `scale`."""
    rows = {(model.name, row.query): row for model in models for row in model.queries}
    views = []
    for number, query in enumerate(result.queries, start=1):
        if query.image is None or query.inversion_image is None:  # the audit ended before its pictures were written
            continue
        image = figures.read_image(folder, query.image)
        cells: list[Cell | None] = []
        for model in models:
            row = rows.get((model.name, query.id))
            if row is None:
                cells.append(None)
                continue
            pictures = (row.counterfactual_image, row.semifactual_image, row.edit_image)
            made, last, edit = pictures if not row.ruined else (None, None, None)
            cells.append(
                Cell(
                    model=model.name,
                    row=row,
                    counterfactual=None if made is None else figures.file_uri(folder, made),
                    semifactual=None if last is None else figures.file_uri(folder, last),
                    trace=accounts.trace_of(row, model),
                    edit=None if edit is None else figures.heat_uri(edits[edit] / 255 * figures.EDIT_FULL_SCALE, scale),
                    attributions=attribution.maps_of(model, query.id, folder),
                )
            )
        masks = {
            name: np.asarray(figures.read_image(folder, file).convert("L").resize(image.size, 0)) > 127
            for name, file in query.region_images.items()
        }
        views.append(
            QueryView(
                query=query,
                number=number,
                image=figures.image_uri(image),
                inversion=figures.file_uri(folder, query.inversion_image),
                shape=image.size,
                outlines=_outlines(masks),
                cells=cells,
            )
        )
    return views


def in_turn(groups: Sequence[Sequence[QueryView]]) -> list[QueryView]:
    """Return the views of all groups, the first of each before the second of any, numbered anew."""
    views = [view for row in zip_longest(*groups) for view in row if view is not None]
    return [replace(view, number=number) for number, view in enumerate(views, start=1)]


def _outlines(masks: dict[str, NDArray[np.bool_]]) -> list[tuple[str, str]]:
    """Return the paths of the masks that are not empty; the main region last, on top, and never drawn twice."""
    paths = {name: figures.outline_path(mask) for name, mask in masks.items()}
    main = paths.pop(text.MAIN_REGION, "")
    rest = [(name, path) for name, path in paths.items() if path and path != main]
    return [*rest, (text.MAIN_REGION, main)] if main else rest
