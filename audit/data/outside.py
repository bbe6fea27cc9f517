"""Load a data set by the loader of another package, and check it: rows and labels at once, images when they are read.

`AuditSet.read_image` of such a set gives numbers as they are stored, which are divided by white here. A set with a
`reading` was made by a loader of this package, which has divided them already.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from audit.config import DataConfig
from audit.data.audit_set import AuditSet
from audit.data.depth import Stored, stored_array, to_unit
from audit.data.folder import check_unique
from audit.data.listing import check_every_class
from audit.data.multilabel import check_every_label
from audit.data.reading import Look, Reading, digest, look_at
from audit.data.regions import is_region_name
from audit.errors import AuditError, DataError, Terminated
from audit.results import UNKNOWN_LABEL
from audit.runtime.faults import reason

Loader = Callable[[DataConfig, int], AuditSet]
"""Lists the rows of all splits that a configuration names, by its seed; raises DataError with one sentence."""


@contextmanager
def _foreign(what: str, mend: str) -> Iterator[None]:
    """Turn whatever foreign code raises into a DataError; our own sentences pass, as an interruption does."""
    try:
        yield
    except (AuditError, KeyboardInterrupt, Terminated, GeneratorExit):
        raise
    except BaseException as error:
        raise DataError(f"{what} cannot be read ({reason(error).rstrip('.')}): {mend}.") from error


def load_outside(load: Loader, config: DataConfig, seed: int, package: str) -> AuditSet:
    """Return what `load` of another `package` lists, checked; images stay at their own size. Raises DataError."""
    what = f"The data set '{config.format}' ({package})"
    with _foreign(what, "correct data.path or data.options, or mend the package"):
        dataset = load(config, seed)
    if not isinstance(dataset, AuditSet):
        raise DataError(f"{what} is a {type(dataset).__name__} where an AuditSet is needed: mend the package.")
    dataset = replace(dataset, ids=tuple(dataset.ids), class_names=tuple(dataset.class_names))
    _check(dataset, what)
    if config.classes not in (None, dataset.class_names):
        raise DataError(f"data.classes must be absent or {', '.join(dataset.class_names)} for {what}: correct it.")
    rows = _Rows(dataset, config.white if dataset.reading is None else None)
    first = rows.stored(0).values
    reading = dataset.reading or Reading(
        examine=rows.examine,
        sizes=np.tile(dataset.image_shape[1:], (len(dataset.ids), 1)),
        kinds=(f"{first.dtype} {'colour' if first.ndim == 3 else 'grey'}",) * len(dataset.ids),
        white=config.white,
    )
    return replace(
        dataset,
        read_image=rows.read,
        regions={name: partial(rows.mask, region=name) for name in dataset.regions},
        reading=replace(reading, origin=package),
    )


def _check(dataset: AuditSet, what: str) -> None:
    """Raise DataError unless rows, labels, names and shape fit together."""
    rows = len(dataset.ids)
    if rows == 0:
        raise DataError(f"{what} has no image: correct data.path or data.options.")
    labels, classes = dataset.labels, len(dataset.class_names)
    for name, values, wanted in (
        ("labels", labels, (rows, classes) if dataset.is_multi_label else (rows,)),
        ("splits", dataset.splits, (rows,)),
    ):
        if not isinstance(values, np.ndarray) or values.shape != wanted:
            raise DataError(f"{what} needs an array '{name}' of shape {wanted}, one for every id: mend the package.")
    check_unique(dataset.ids, dataset.source)
    smallest, largest = (UNKNOWN_LABEL, 1) if dataset.is_multi_label else (0, classes - 1)
    if labels.dtype.kind not in "iu" or labels.min() < smallest or labels.max() > largest:
        raise DataError(f"{what} needs labels that are whole numbers from {smallest} to {largest}: mend the package.")
    check = check_every_label if dataset.is_multi_label else check_every_class
    check(labels, dataset.class_names, dataset.source)
    shape = dataset.image_shape
    if len(shape) != 3 or shape[0] not in (1, 3) or min(shape) < 1:
        raise DataError(f"{what} has image_shape {shape} where (1 or 3, height, width) is needed: mend the package.")
    for name in dataset.regions:
        if not is_region_name(name):
            raise DataError(f"{what} has a region '{name}': use letters, digits, spaces and . + - _ only in its name.")


@dataclass(frozen=True)
class _Rows:
    """Images and masks of `dataset` as another package reads them, checked; `white` as in `data.white`."""

    dataset: AuditSet
    white: float | None

    def _called(self, row: int) -> str:
        return f"Image '{self.dataset.ids[row]}' of {self.dataset.source}"

    def stored(self, row: int) -> Stored:
        """Return the numbers of one image, `[H, W]` or `[H, W, 3]`."""
        with _foreign(self._called(row), "mend the data or the package"):
            values = np.asarray(self.dataset.read_image(row))
        if values.ndim == 3 and values.shape[2] == 1:
            values = values[..., 0]
        if values.ndim not in (2, 3) or (values.ndim == 3 and values.shape[2] != 3) or values.dtype.kind not in "uif":
            raise DataError(
                f"{self._called(row)} is an array of shape {values.shape} and type {values.dtype}: give numbers as "
                "[H, W] or [H, W, 3]."
            )
        return stored_array(values)

    def read(self, row: int) -> np.ndarray:
        """Return the pixels of one image: uint8, or float32 in [0, 1]."""
        return to_unit(self.stored(row), self.white, self._called(row))

    def examine(self, row: int, _keep: bool) -> tuple[Look, bytes]:
        """What the numbers of `row` are like, and a hash of its pixels (see `Reading`)."""
        stored, what = self.stored(row), self._called(row)
        return look_at(stored, self.white, what), digest(to_unit(stored, self.white, what))

    def mask(self, row: int, region: str) -> np.ndarray | None:
        """Return the mask of one image, bool `[H, W]`, or None."""
        what = f"The mask of region '{region}' of {self._called(row)}"
        with _foreign(what, "mend the data or the package"):
            mask = self.dataset.regions[region](row)
        if mask is not None and np.ndim(mask) != 2:
            raise DataError(f"{what} has shape {np.shape(mask)}: give [H, W], of the size of its image.")
        return None if mask is None else np.asarray(mask) != 0
