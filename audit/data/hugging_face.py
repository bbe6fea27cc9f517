"""Data sets of Hugging Face that were stored by `save_to_disk`, read by `datasets` (the extra `datasets`).

An image is the bytes that its cell holds, read as an image file of any other source is. A cell that names a file or an
address instead is refused: it could be any file of this machine.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from audit.config import DataConfig
from audit.data.audit_set import AuditSet
from audit.data.header import Cell
from audit.data.listing import Listing, to_audit_set
from audit.data.multilabel import SEPARATOR
from audit.errors import DataError

MARKS = ("dataset_dict.json", "state.json")
"""One of these lies in a folder that `save_to_disk` has written."""
WHOLE = "all"
"""The split of a data set that has none."""


@dataclass(frozen=True)
class _Table:
    """The images of one split, as `datasets` holds them."""

    rows: Any
    name: str
    column: str

    def __call__(self, row: int) -> bytes:
        try:
            cell = self.rows[row][self.column]
        except Exception as error:  # noqa: BLE001 - damaged bytes fail in whatever way they like
            said = " ".join(str(error).split()) or type(error).__name__
            raise DataError(f"Row {row} of {self.name} cannot be read ({said}): save the data set again.") from None
        content = None if cell is None else cell["bytes"]
        if content is None:
            raise DataError(
                f"Row {row} of {self.name} holds no image but at most the name of a file, which may be any: load the "
                "data set where its files are, and save it again by save_to_disk."
            )
        return bytes(content)


def is_saved(folder: Path) -> bool:
    """Whether `save_to_disk` has written `folder`."""
    return any((folder / mark).is_file() for mark in MARKS)


def _splits(path: Path) -> Mapping[str, Any]:
    """The tables of a folder by their split; raises DataError."""
    if not is_saved(path):
        raise DataError(f"Folder '{path}' is not one that save_to_disk of `datasets` writes: check data.path.")
    try:
        from datasets import DatasetDict, load_from_disk
    except ImportError:
        raise DataError(
            f"'{path}' is a data set of Hugging Face, which needs `datasets`: run `pip install "
            "'spruce-audit[datasets]'`."
        ) from None
    try:
        found = load_from_disk(str(path))
    except Exception as error:  # noqa: BLE001 - as above
        said = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"Data set '{path}' cannot be read ({said}): save it again by save_to_disk.") from None
    splits: dict[str, Any] = dict(found) if isinstance(found, DatasetDict) else {WHOLE: found}
    files = (Path(file["filename"]) for table in splits.values() for file in table.cache_files)
    if not all(file.resolve().is_relative_to(path.resolve()) for file in files):
        raise DataError(f"Data set '{path}' names files outside its folder, which may be any: save it anew.")
    if not sum(map(len, splits.values())):
        raise DataError(f"Data set '{path}' has no rows: check data.path.")
    return {name: table for name, table in splits.items() if len(table)}


def _column(features: Mapping[str, Any], kind: type, usual: tuple[str, ...], path: Path) -> str:
    """The column of images or labels: the one called as usual, else the only one of its kind."""
    named = [name for name in usual if name in features]
    found = named[:1] or [name for name, feature in features.items() if isinstance(feature, kind)]
    if len(found) != 1:
        columns = ", ".join(features)
        raise DataError(
            f"Data set '{path}' has {len(found)} columns that may be '{usual[0]}' (its columns: {columns}): call the "
            "right one so."
        )
    return found[0]


def load_saved(config: DataConfig, seed: int) -> AuditSet:
    """Load `config.path`, a folder of `save_to_disk`, with its splits, or one that the seed makes. Raises DataError.

    The order of classes is that of the label column, where it names them; a column of lists makes the set multi-label.
    """
    path = Path(config.path)
    splits = _splits(path)
    from datasets import ClassLabel, Image, List

    features = next(iter(splits.values())).features
    if any(table.features != features for table in splits.values()):
        raise DataError(f"The splits of data set '{path}' have different columns: give all the same ones.")
    image, label = _column(features, Image, ("image",), path), _column(features, ClassLabel, ("label", "labels"), path)
    if not isinstance(features[image], Image):
        raise DataError(f"Column '{image}' of data set '{path}' holds no images: cast it to `datasets.Image()`.")
    kind = features[label].feature if isinstance(features[label], List) else features[label]
    names = tuple(kind.names) if isinstance(kind, ClassLabel) else None

    def text(value: Any, place: str) -> str:
        if value is None or (names is not None and not 0 <= value < len(names)):
            raise DataError(f"The label in {place} is missing ({value}): take such rows out of the data set.")
        return str(value) if names is None else names[value]

    listing = Listing(f"data set '{path}'", (), (), (), (), () if WHOLE not in splits or len(splits) > 1 else None)
    for split, table in splits.items():
        bytes_of = _Table(
            table.select_columns([image]).cast_column(image, Image(decode=False)), f"split '{split}' of '{path}'", image
        )
        where = tuple(f"row {row} of split '{split}' of '{path}'" for row in range(len(table)))
        cells = zip(table[label][:], where, strict=True)
        listing = replace(
            listing,
            paths=listing.paths + tuple(Cell(bytes_of, row, f"{path}/{split}/{row:05d}") for row in range(len(table))),
            labels=listing.labels
            + tuple(
                SEPARATOR.join(text(one, place) for one in value) if isinstance(value, list) else text(value, place)
                for value, place in cells
            ),
            ids=listing.ids + tuple(f"{split}/{row:05d}" for row in range(len(table))),
            where=listing.where + where,
            splits=None if listing.splits is None else listing.splits + (split,) * len(table),
        )
    told: dict[str, Any] = {"classes": config.classes or names}
    if isinstance(features[label], List) and config.task == "auto":
        told["task"] = "multi-label"
    return to_audit_set(listing, config.model_copy(update=told), seed, numbers=True)
