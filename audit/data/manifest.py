"""A CSV manifest: `image,label[,mask|box][,split][,id][,mask:NAME ...]`, one row an image.

Images with any number of labels have a list in `label`, divided by ';', or a column for every label: `label:NAME`, or
any column that `data.classes` names. In those 1 is present, 0 absent, and -1 or nothing unknown.

Paths are relative to the CSV, and lie in its folder, links followed, unless `data.allow_outside` says otherwise: a
table that comes with data must not bring other images of this machine into a report. `mask` or `box` ("x0 y0 x1 y1",
half-open pixels, several separated by ';') is the region that carries the class's meaning; `mask:NAME` gives further
named regions; an empty cell means none. Row numbers in messages count as a spreadsheet does: the header is row 1.
Columns of other names are ignored but for those that `data.groups` names, unless they look like a misspelling of one of
these.
"""

import csv
import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from audit.config import DataConfig
from audit.data.audit_set import AuditSet
from audit.data.listing import Listing, to_audit_set
from audit.data.multilabel import SEPARATOR
from audit.data.regions import Box, is_region_name, parse_boxes
from audit.errors import DataError
from audit.results import MAIN_REGION

OPTIONAL = ("mask", "box", "split")
LABEL = "label:"
"""What the column of one label begins with."""
MISSPELT = 0.8


def _read_rows(path: Path) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """Return the header and (row number, cells) of every row that is not blank; raises DataError."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = [[cell.strip() for cell in row] for row in csv.reader(file, strict=True)]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"Manifest '{path}' cannot be read as UTF-8 CSV ({error}): save it as CSV again.") from None
    if not rows:
        raise DataError(f"Manifest '{path}' is empty: give it the columns image and label.")
    header = rows[0]
    filled = [(number, row) for number, row in enumerate(rows[1:], start=2) if any(row)]
    for number, row in filled:
        if len(row) > len(header):
            raise DataError(
                f"Row {number} of '{path}' has {len(row)} cells where the header has {len(header)}: "
                "put cells that contain a comma in double quotes."
            )
        row.extend([""] * (len(header) - len(row)))
    return header, filled


def _check_header(header: Sequence[str], of_labels: Mapping[str, str], path: Path) -> None:
    present = ", ".join(header) or "none"
    if "image" not in header:
        raise DataError(f"Manifest '{path}' has no column 'image' (its columns: {present}): add it.")
    if "label" not in header and not of_labels:
        raise DataError(
            f"Manifest '{path}' has no column 'label' (its columns: {present}): add it, or name the columns of labels "
            "in data.classes if an image may have several."
        )
    if "label" in header and of_labels:
        raise DataError(
            f"Manifest '{path}' has a column 'label' and columns for single labels ({', '.join(of_labels.values())}): "
            "remove one or the others."
        )
    for name in header:
        if header.count(name) > 1 and name:
            raise DataError(f"Manifest '{path}' has the column '{name}' twice: remove one.")
        near = difflib.get_close_matches(name.lower(), OPTIONAL, n=1, cutoff=MISSPELT)
        if near and near[0] not in header and not name.startswith("mask:"):
            raise DataError(f"Manifest '{path}' has a column '{name}': did you mean '{near[0]}'?")
        if name == "mask:" or name == f"mask:{MAIN_REGION}":
            raise DataError(f"Manifest '{path}' has a column '{name}': call the class's own region 'mask'.")
        if name.startswith("mask:") and not is_region_name(name.removeprefix("mask:")):
            raise DataError(
                f"Manifest '{path}' has a column '{name}': a region's name becomes part of file names; use letters, "
                "digits, spaces and . + - _ only."
            )


@dataclass(frozen=True)
class _Files:
    """Turns cells into files: `base` is the folder of the manifest, `inside` whether all have to lie in it."""

    base: Path
    inside: bool

    def existing(self, cell: str, column: str, place: str) -> Path:
        """Return the file that `cell` names; raises DataError if it is not there or must not be taken."""
        try:
            path = self.base / Path(cell).expanduser()
            there, real = path.is_file(), path.resolve()
        except (OSError, RuntimeError, ValueError):  # a name that is too long, or with a NUL; a home folder of nobody
            there, real = False, self.base
        # Said of files that are not there as well, so that a table cannot ask which are.
        if self.inside and not real.is_relative_to(self.base.resolve()):
            raise DataError(
                f"File '{cell}' of column '{column}' in {place} lies outside the manifest's folder, so that it may be "
                "any image of this machine: move it there, or set data.allow_outside = true if the table is your own."
            )
        if not there:
            raise DataError(
                f"File '{cell}' of column '{column}' in {place} does not exist: correct the path or the row."
            )
        return path


def _boxes(cell: str, place: str) -> tuple[Box, ...] | None:
    try:
        return parse_boxes(cell) if cell else None
    except ValueError as error:
        raise DataError(f"The box '{cell}' in {place} is not valid: {error}.") from None


def _check_pixels(boxes: Sequence[tuple[Box, ...] | None], path: Path) -> None:
    edges = [edge for drawn in boxes for box in drawn or () for edge in box]
    if edges and max(edges) <= 1:
        raise DataError(
            f"No box of '{path}' reaches beyond 1: boxes are in pixels, so multiply shares of a side by its length."
        )


def _check_unique(values: Sequence[object], what: str, where: Sequence[str]) -> None:
    first: dict[object, str] = {}
    for value, place in zip(values, where, strict=True):
        if value in first:
            raise DataError(f"The {what} '{value}' in {place} is already that of {first[value]}: remove one.")
        first[value] = place


def _check_filled(cells: Sequence[str], column: str, where: Sequence[str]) -> None:
    for cell, place in zip(cells, where, strict=True):
        if not cell:
            raise DataError(f"The cell '{column}' is empty in {place}: fill it or remove the row.")


def _label_columns(header: Sequence[str], config: DataConfig) -> dict[str, str]:
    """Return the columns that hold a label each, by its name; none where every image is of one class."""
    if config.task == "single-label":
        return {}
    marked = {name.removeprefix(LABEL): name for name in header if name.startswith(LABEL)}
    named = {name: name for name in config.classes or () if name in header and name not in marked}
    return marked | (named if "label" not in header else {})


def list_manifest(path: Path, config: DataConfig) -> Listing:
    """List the rows of a manifest; raises DataError naming the row for anything missing, misspelt or doubled."""
    header, rows = _read_rows(path)
    of_labels = _label_columns(header, config)
    _check_header(header, of_labels, path)
    if not rows:
        raise DataError(f"Manifest '{path}' has no rows below its header: add one row per image.")
    where = tuple(f"row {number} of '{path}'" for number, _ in rows)
    columns = {name: tuple(row[index] for _, row in rows) for index, name in enumerate(header) if name}
    # An image of a list of labels may have none.
    lists = config.task != "single-label" and (
        config.task == "multi-label" or any(SEPARATOR in cell for cell in columns.get("label", ()))
    )
    for column in ("image", "label", "split", "id"):
        if column in columns and not (column == "label" and lists):
            _check_filled(columns[column], column, where)

    for name in config.groups:
        if name not in columns:
            raise DataError(
                f"Manifest '{path}' has no column '{name}', which data.groups names: add it or name one of "
                f"{', '.join(columns)}."
            )

    named = _Files(path.parent, inside=not config.allow_outside)

    def files(column: str) -> tuple[Path | None, ...]:
        cells = zip(columns[column], where, strict=True)
        return tuple(named.existing(cell, column, place) if cell else None for cell, place in cells)

    images = tuple(named.existing(cell, "image", place) for cell, place in zip(columns["image"], where, strict=True))
    _check_unique([image.resolve() for image in images], "image", where)
    ids = columns.get("id", columns["image"])
    _check_unique(ids, "id", where)
    masks = {
        MAIN_REGION if name == "mask" else name.removeprefix("mask:"): files(name)
        for name in columns
        if name == "mask" or name.startswith("mask:")
    }
    boxes = tuple(map(_boxes, columns["box"], where)) if "box" in columns else None
    for mask, box, place in zip(masks.get(MAIN_REGION, ()), boxes or (), where, strict=False):
        if mask is not None and box is not None:
            raise DataError(f"Both mask and box are given in {place}: leave one of the two cells empty.")
    _check_pixels(boxes or (), path)
    return Listing(
        source=f"manifest '{path}'",
        paths=images,
        labels=columns.get("label", ()),
        label_columns={label: columns[name] for label, name in of_labels.items()},
        ids=ids,
        where=where,
        splits=columns.get("split"),
        masks=masks,
        boxes=boxes,
        groups={name: columns[name] for name in config.groups},
    )


def load_manifest(config: DataConfig, seed: int) -> AuditSet:
    """Load `config.path` as a CSV manifest; raises DataError."""
    path = Path(config.path)
    if not path.is_file():
        raise DataError(f"Manifest '{path}' does not exist: check data.path and data.format.")
    return to_audit_set(list_manifest(path, config), config, seed, numbers=True)
