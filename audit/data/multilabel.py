"""Images with any number of labels: multi-hot arrays `[N, L]` of 1 (present), 0 (absent) and UNKNOWN.

What nobody knows - an empty cell, NaN, -1 as CheXpert writes "uncertain" - is left out of the numbers of that label
alone. All that asks one question about an image works on the view of one label: the same images, with the two classes
"no LABEL" and "LABEL".
"""

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from audit.data.audit_set import AuditSet
from audit.errors import DataError
from audit.results import MAIN_REGION, Notice
from audit.results import UNKNOWN_LABEL as UNKNOWN

SEPARATOR = ";"
_MEANINGS = {1.0: 1, 0.0: 0, -1.0: UNKNOWN}


def is_multi_hot(values: np.ndarray) -> bool:
    """Whether `values` can only be multi-hot labels: `[N, L]`, L > 1, of 0, 1, -1 and NaN."""
    if values.ndim != 2 or values.shape[1] < 2 or values.dtype.kind not in "biuf":
        return False
    return bool(_known_values(values).all())


def _known_values(values: np.ndarray) -> np.ndarray:
    found: np.ndarray = np.isin(values, [0, 1, -1])
    return found | np.isnan(values) if values.dtype.kind == "f" else found


def multi_hot(values: np.ndarray, count: int, what: str) -> np.ndarray:
    """Return labels `[N]`, `[N, 1]` or `[N, L]` of `count` images as int64 `[N, L]`; raises DataError naming `what`."""
    if values.ndim not in (1, 2) or values.dtype.kind not in "biuf":
        raise DataError(
            f"{what} has shape {values.shape} and type {values.dtype} where multi-hot numbers [N, L] are needed, one "
            "column per label."
        )
    if len(values) != count:
        raise DataError(f"{what} has {len(values)} rows for {count} images: make them as many.")
    table = values.reshape(count, -1)
    good = _known_values(table)
    if not good.all():
        row, column = np.argwhere(~good)[0].tolist()
        raise DataError(
            f"{what} holds {table[row, column]} in row {row}, column {column}: write 1 (present), 0 (absent), or -1 or "
            "NaN (unknown)."
        )
    return np.where(table == 1, 1, np.where(table == 0, 0, UNKNOWN)).astype(np.int64)


def cells_to_labels(columns: Sequence[Sequence[str]], names: Sequence[str], where: Sequence[str]) -> np.ndarray:
    """Return labels int64 `[N, L]` of L columns of cells; raises DataError naming the first that is none."""

    def meaning(cell: str, name: str, place: str) -> int:
        try:
            number = float(cell or "nan")
        except ValueError:
            number = 2.0
        if math.isnan(number):
            return UNKNOWN
        if number not in _MEANINGS:
            raise DataError(
                f"The cell '{cell}' of label '{name}' in {place} is none of 1 (present), 0 (absent) and -1 or empty "
                "(unknown): correct it."
            )
        return _MEANINGS[number]

    table = [
        [meaning(cell, name, place) for cell, place in zip(cells, where, strict=True)]
        for name, cells in zip(names, columns, strict=True)
    ]
    return np.array(table, dtype=np.int64).T.reshape(len(where), len(names))


def lists_to_labels(cells: Sequence[Sequence[str]], names: Sequence[str]) -> np.ndarray:
    """Return labels int64 `[N, L]` of the lists of those that every image has, all of which are among `names`."""
    table = np.zeros((len(cells), len(names)), dtype=np.int64)
    for row, present in enumerate(cells):
        table[row, [names.index(name) for name in present]] = 1
    return table


def check_every_label(labels: np.ndarray, names: Sequence[str], source: str) -> None:
    """Raise DataError unless every label is present in one image and absent in another."""
    for name, column in zip(names, labels.T, strict=True):
        for value, what in ((1, "present in"), (0, "absent from")):
            if not (column == value).any():
                raise DataError(
                    f"Label '{name}' is {what} no image of {source}, so that nothing can be measured of it: add images "
                    "or leave the label out."
                )


def strata(labels: np.ndarray) -> np.ndarray:
    """Return `[N]` the rarest label that each image has, L for none: what a division by chance should keep in balance.

    Combinations of labels are too many for that.
    """
    count = labels.shape[1]
    rarest_first = np.argsort((labels == 1).sum(axis=0), kind="stable")
    found = np.full(len(labels), count)
    for label in rarest_first[::-1]:
        found[labels[:, label] == 1] = label
    return found


def combinations(labels: np.ndarray) -> np.ndarray:
    """Return `[N]` a number for every image that is equal for equal labels."""
    return labels if labels.ndim == 1 else np.unique(labels, axis=0, return_inverse=True)[1].reshape(-1)


def without_labels(data: AuditSet) -> AuditSet:
    """Return `data` as images of one class, for whoever looks at images only."""
    return replace(data, labels=np.zeros(len(data.labels), dtype=np.int64), class_names=("unlabelled",))


def absent(name: str) -> str:
    """Return what the class without the label is called."""
    return f"no {name}"


def label_view(data: AuditSet, label: int) -> AuditSet:
    """Return the images of which it is known whether they have `label`, as a set of two classes: without and with it.

    A region that is called as the label is the one that carries its meaning.
    """
    name = data.class_names[label]
    column = data.labels[:, label]
    regions = {key: mask for key, mask in data.regions.items() if key != name}
    if name in data.regions:
        regions = {**regions, MAIN_REGION: data.regions[name]}
    view = replace(data, labels=np.where(column == 1, 1, 0), class_names=(absent(name), name), regions=regions)
    return view.select(np.flatnonzero(column[view.row_numbers] != UNKNOWN))


def notices(labels: np.ndarray, names: Sequence[str], told: str | None) -> tuple[Notice, ...]:
    """Return that the data are read as multi-label where `told` says by what, and how many labels are unknown."""
    found = []
    if told is not None:
        text = (
            f"{told}, so that every image may have any number of the {len(names)} labels: set data.task to "
            '"multi-label" to confirm it, or to "single-label" if that is wrong.'
        )
        found.append(Notice(subject="data", kind="multi-label", text=text))
    unknown = (labels == UNKNOWN).sum(axis=0)
    if unknown.any():
        counts = ", ".join(f"{name} {count}" for name, count in zip(names, unknown.tolist(), strict=True) if count)
        text = (
            f"Of {len(labels)} images it is not known (-1, NaN or an empty cell) whether they have a label: {counts}. "
            "They are left out of the numbers of that label; where an empty cell means that it is absent, write 0."
        )
        found.append(Notice(subject="data", kind="unknown-labels", text=text))
    return tuple(found)
