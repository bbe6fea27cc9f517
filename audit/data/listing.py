"""A list of image files with labels, before any pixel is decoded: what folders and manifests have in common.

Everything that can be checked without decoding is checked here, for all rows, so that a set either loads or is refused
at once: labels against the class list, headers of images and masks, sizes, boxes. Decoding stays lazy.
"""

import difflib
import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import torch

from audit.config import DataConfig
from audit.data.audit_set import AuditSet, MaskReader
from audit.data.header import Files, Header, ImageFile
from audit.data.images import Conversion, KeepingReader, decode_stored, read_header, read_image
from audit.data.multilabel import SEPARATOR, cells_to_labels, check_every_label, lists_to_labels, notices, strata
from audit.data.reading import Look, Reading, digest, look_at
from audit.data.regions import Box, check_boxes, check_mask_file, read_mask, read_region
from audit.errors import DataError
from audit.results import MAIN_REGION, LeftOut
from audit.runtime.progress import track
from audit.runtime.seeds import stage_generator
from audit.storage.files import hash_file

MIDDLE = 256
"""Bytes of a file's middle that tell most files of one length apart."""
MOST_CLASSES = 10_000
"""A larger label is taken for a mistake (an id, a year) where no class list says otherwise."""
MOST_DIGITS = 300
"""Of a number in a name or a cell; Python refuses to read those of thousands."""


@dataclass(frozen=True)
class Listing:
    """Image files in order; `where[i]` tells a person where row i comes from, `splits` is None if the data has none."""

    source: str
    paths: tuple[ImageFile, ...]
    labels: tuple[str, ...]
    ids: tuple[str, ...]
    where: tuple[str, ...]
    splits: tuple[str, ...] | None = None
    masks: Mapping[str, tuple[Path | None, ...]] = field(default_factory=dict)
    boxes: tuple[tuple[Box, ...] | None, ...] | None = None
    left_out: tuple[LeftOut, ...] = ()
    label_columns: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Of multi-label data with a column for every label: its cells, by the label. `labels` are empty then."""
    groups: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


def natural_key(text: str) -> tuple[list[tuple[int, int, str]], str]:
    """Sort key that puts `img2` before `img10`; equal for no two different texts."""
    parts = re.split(r"(\d+)", text.casefold())
    numbers = [part.isdecimal() and len(part) <= MOST_DIGITS for part in parts]
    return [(0, int(p), "") if is_number else (1, 0, p) for p, is_number in zip(parts, numbers, strict=True) if p], text


def nearest(name: str, valid: Sequence[str]) -> str:
    """Return the hint `did you mean 'x'?` for the valid name most like `name`."""
    near = difflib.get_close_matches(name, valid, n=1, cutoff=0.0)
    return f"did you mean '{near[0]}'?" if near else "none is known."


def seeded_split(labels: np.ndarray, ids: Sequence[str], seed: int) -> np.ndarray:
    """Divide rows into 'calibration' and 'test', 50/50 within each class (the odd one goes to 'test').

    Of labels `[N, L]` the rarest that an image has counts as its class. Depends on the seed, the labels and the set of
    ids, not on the order of rows.
    """
    if labels.ndim == 2:
        labels = strata(labels)
    generator = stage_generator(seed, "data/split")
    splits = np.full(len(labels), "test", dtype="<U11")
    order = np.array(sorted(range(len(ids)), key=lambda row: natural_key(ids[row])), dtype=np.int64)
    for label in np.unique(labels):
        members = order[labels[order] == label]
        shuffled = members[torch.randperm(len(members), generator=generator).numpy()]
        splits[shuffled[: len(members) // 2]] = "calibration"
    return splits


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _integer_labels(labels: Sequence[str], where: Sequence[str], count: int) -> np.ndarray:
    for text, place in zip(labels, where, strict=True):
        if not re.fullmatch(rf"[+-]?\d{{1,{MOST_DIGITS}}}", text):
            raise DataError(f"Label '{text}' in {place} is not a whole number: write class names or 0, 1, 2, ...")
        if not 0 <= int(text) < count:
            raise DataError(f"Label {text} in {place} is out of range: it must lie between 0 and {count - 1}.")
    return np.array([int(text) for text in labels], dtype=np.int64)


def check_every_class(labels: np.ndarray, class_names: Sequence[str], source: str) -> None:
    """Raise DataError unless every class has an image."""
    counts = np.bincount(labels, minlength=len(class_names))
    for name, count in zip(class_names, counts, strict=True):
        if count == 0:
            raise DataError(f"Class '{name}' has no image in {source}: add images or take it out of data.classes.")


def default_names(labels: np.ndarray) -> tuple[str, ...]:
    """Names 'class 0', 'class 1', ... for integer labels that come without names."""
    return tuple(f"class {label}" for label in range(int(labels.max()) + 1))


def resolve_labels(
    listing: Listing, classes: tuple[str, ...] | None, numbers: bool
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Return labels int64 `[N]` and class names in label order.

    Without `classes` the names are those found, in natural order, or 'class 0', ... if `numbers` is set and every
    label is a number. With `classes`, whole numbers count as positions unless a class is itself called a number.
    Raises DataError with row, label and the nearest valid name.
    """
    texts = listing.labels
    named_by_number = classes is not None and any(_is_number(name) for name in classes)
    if (numbers or classes is not None) and not named_by_number and all(map(_is_number, texts)):
        labels = _integer_labels(texts, listing.where, MOST_CLASSES if classes is None else len(classes))
        names = default_names(labels) if classes is None else classes
    else:
        names = tuple(sorted(set(texts), key=natural_key)) if classes is None else classes
        position = {name: index for index, name in enumerate(names)}
        for text, place in zip(texts, listing.where, strict=True):
            if text not in position:
                raise DataError(f"Label '{text}' in {place} is not in the class list: {nearest(text, names)}")
        labels = np.array([position[text] for text in texts], dtype=np.int64)
    check_every_class(labels, names, listing.source)
    return labels, names


def _is_multi_label(listing: Listing, config: DataConfig) -> bool:
    if config.task != "auto":
        return config.task == "multi-label"
    named = any(SEPARATOR in name for name in config.classes or ())
    return bool(listing.label_columns) or (not named and any(SEPARATOR in text for text in listing.labels))


def _resolve_label_sets(listing: Listing, config: DataConfig) -> tuple[np.ndarray, tuple[str, ...], str]:
    """Return multi-hot labels int64 `[N, L]`, the labels' names, and what tells that there may be several."""
    if listing.label_columns:
        names = config.classes or tuple(listing.label_columns)
        for name in names:
            if name not in listing.label_columns:
                columns = ", ".join(listing.label_columns)
                raise DataError(f"Label '{name}' of data.classes has no column in {listing.source}: it has {columns}.")
        cells_of = [listing.label_columns[name] for name in names]
        labels, told = cells_to_labels(cells_of, names, listing.where), "It has a column for every label"
    else:
        cells = [[part for one in text.split(SEPARATOR) if (part := one.strip())] for text in listing.labels]
        names = config.classes or tuple(sorted({name for cell in cells for name in cell}, key=natural_key))
        for cell, place in zip(cells, listing.where, strict=True):
            for name in cell:
                if name not in names:
                    raise DataError(f"Label '{name}' in {place} is not in the class list: {nearest(name, names)}")
        labels, told = lists_to_labels(cells, names), f"Its labels are lists, divided by '{SEPARATOR}'"
    check_every_label(labels, names, listing.source)
    return labels, names, told


def check_classes(classes: tuple[str, ...] | None, fewest: int = 2) -> None:
    """Raise DataError if a configured class list is too short or names a class twice."""
    if classes is None:
        return
    twice = sorted({name for name in classes if classes.count(name) > 1})
    if twice:
        raise DataError(f"data.classes names '{twice[0]}' twice: every class needs its own name.")
    if len(classes) < fewest:
        raise DataError("data.classes names fewer than two classes: an audit needs at least two.")


def _check_headers(listing: Listing, headers: Sequence[Header], config: DataConfig) -> None:
    first = headers[0]
    if config.window is not None and not any(header.kind.startswith("DICOM") for header in headers):
        raise DataError(f"data.window is for DICOM files, and there is none in {listing.source}: remove it.")
    for path, header in zip(listing.paths, headers, strict=True):
        if config.image_size is None and (header.height, header.width) != (first.height, first.width):
            raise DataError(
                f"Image file '{path}' is {header.width} x {header.height} pixels where '{listing.paths[0].name}' is "
                f"{first.width} x {first.height}: set data.image_size or give all images one size."
            )
        if config.channels is None and header.channels != first.channels:
            kinds = {1: "grey", 3: "in colour"}
            raise DataError(
                f"Image file '{path}' is {kinds[header.channels]} where '{listing.paths[0].name}' is "
                f"{kinds[first.channels]}: set data.channels to 1 or 3."
            )


def _check_regions(listing: Listing, headers: Sequence[Header]) -> None:
    for paths in listing.masks.values():
        for row, path in enumerate(paths):
            if path is not None:
                check_mask_file(path, headers[row].height, headers[row].width, listing.where[row])
    for row, boxes in enumerate(listing.boxes or ()):
        if boxes is None:
            continue
        try:
            check_boxes(boxes, headers[row].height, headers[row].width)
        except ValueError as error:
            raise DataError(f"The box in {listing.where[row]} is not valid: {error}.") from None


def _region_readers(listing: Listing, headers: Sequence[Header], side: int | None) -> dict[str, MaskReader]:
    readers: dict[str, MaskReader] = {
        name: partial(read_mask, paths=Files(paths), side=side) for name, paths in listing.masks.items()
    }
    if listing.boxes is not None:
        none: tuple[Path | None, ...] = (None,) * len(listing.paths)
        sizes = tuple((header.height, header.width) for header in headers)
        readers[MAIN_REGION] = partial(
            read_region, paths=Files(listing.masks.get(MAIN_REGION, none)), boxes=listing.boxes, sizes=sizes, side=side
        )
    return readers


def to_audit_set(listing: Listing, config: DataConfig, seed: int, numbers: bool) -> AuditSet:
    """Check every row of `listing` and return the lazy AuditSet; `numbers`: labels may be integers without names."""
    told = None
    if _is_multi_label(listing, config):
        labels, names, told = _resolve_label_sets(listing, config)
    else:
        labels, names = resolve_labels(listing, config.classes, numbers)
    headers = [
        read_header(path, config.window) for path in track(listing.paths, "Reading image headers", len(listing.paths))
    ]
    _check_headers(listing, headers, config)
    _check_regions(listing, headers)
    files = Files(listing.paths)
    channels = config.channels or headers[0].channels
    height, width = (config.image_size,) * 2 if config.image_size else (headers[0].height, headers[0].width)
    conversion = Conversion(config.image_size, channels, config.white, config.window)
    reader = KeepingReader(partial(read_image, paths=files, conversion=conversion))
    return AuditSet(
        read_image=reader,
        labels=labels,
        class_names=names,
        ids=listing.ids,
        splits=seeded_split(labels, listing.ids, seed) if listing.splits is None else np.array(listing.splits),
        image_shape=(channels, height, width),
        regions=_region_readers(listing, headers, config.image_size),
        source=listing.source if listing.splits is not None else f"{listing.source} (divided 50/50 by the seed)",
        reading=Reading(
            examine=partial(examine_file, paths=files, reader=reader, conversion=conversion),
            sizes=np.array([(header.height, header.width) for header in headers]),
            kinds=tuple(header.kind for header in headers),
            turned=tuple(row for row, header in enumerate(headers) if header.turned),
            left_out=listing.left_out,
            bytes_key=partial(bytes_key, paths=files),
            white=config.white,
        ),
        notices=() if told is None else notices(labels, names, told if config.task == "auto" else None),
        groups=listing.groups,
    )


def examine_file(
    row: int, keep: bool, paths: Sequence[ImageFile], reader: KeepingReader, conversion: Conversion
) -> tuple[Look, bytes]:
    """What the numbers in the file of `row` are like, and a hash of the pixels that the models see."""
    stored, what = decode_stored(paths[row], conversion.window), f"Image file '{paths[row]}'"
    pixels = conversion.pixels(stored, what)
    if keep:
        reader.keep(row, pixels)
    return look_at(stored, conversion.white, what), digest(pixels)


def bytes_key(row: int, thorough: bool, paths: Sequence[ImageFile]) -> object:
    """Hash of the encoded content of `row`: of its length and a piece of its middle, or (`thorough`) of all of it.

    Raises DataError.
    """
    path = paths[row]
    if not isinstance(path, Path):
        return hashlib.blake2b(path.open().getbuffer(), digest_size=16).digest() if thorough else path.quick_key()
    try:
        if thorough:
            return hash_file(path)
        with path.open("rb") as file:
            length = path.stat().st_size
            file.seek(length // 2)
            return hashlib.blake2b(b"%d " % length + file.read(MIDDLE), digest_size=16).digest()
    except OSError as error:
        raise DataError(f"Image file '{path}' cannot be read ({error.strerror}): replace or remove it.") from None
