"""What a reader has to know of the data before trusting a number: a record of how they were read, and notices.

What headers tell is recorded of all images. Pixel values are measured on the audited images and those of the
calibration split - on all of them where they can be decoded within a bound, else on a sample that
the record counts - and what is decoded is kept for the audit.
"""

import sys
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from audit.data import data_notices as say
from audit.data.audit_set import AuditSet
from audit.data.copies import find_copies, keys_by_bytes
from audit.data.multilabel import combinations
from audit.data.reading import Look, Reading, left_out
from audit.errors import DataError
from audit.results import Copies, DataRead, Notice, PixelRange
from audit.runtime.distributed import is_first
from audit.runtime.progress import track

LOOKED_PIXELS = 2**28
"""Pixels that are decoded for the record: seconds; a set of fewer is compared pixel by pixel."""
LOOKED_ROWS = 20_000
COMPARED_ROWS = 200_000
"""Images whose files are compared: the audited ones first, then those of the calibration split, then the others."""
SAMPLE = 256
"""Images looked at where not all can be decoded."""


@dataclass(frozen=True)
class Described:
    """The record of a set, and notices on what looks wrong."""

    read: DataRead
    notices: list[Notice]


def describe(data: AuditSet, audited: str, calibration: str | None) -> Described:
    """Describe how `data` was read: split `audited` is measured, `calibration` is what the models are compared with.

    Raises DataError if an image cannot be decoded.
    """
    reading = data.reading
    read = _begun(data, audited)
    read.calibration_split = calibration
    if reading is None:
        return Described(read, [*data.notices, *say.of_names(data, read), *say.of_regions(data.split(audited))])
    read.smallest, read.largest = _extreme_sizes(reading.sizes)
    looks = _look(data, reading, read)
    read.pixels = _pixel_range(looks)
    notices = [
        *say.of_left_out(read),
        *say.of_copies(read, int((data.splits == audited).sum())),
        *say.of_pixels(read, looks),
        *say.of_shapes(data, reading),
        *say.of_headers(read, reading, data.ids),
        *say.of_names(data, read),
        *data.notices,
        *say.of_regions(data.split(audited)),
    ]
    return Described(read, notices)


def describe_shift(shift: AuditSet) -> list[Notice]:
    """Return notices on the second source, whose audited rows `shift` holds. Raises DataError."""
    found = [*_sampled(shift), *say.of_names(shift, _begun(shift, str(shift.splits[_rows(shift)[0]])))]
    texts = ((notice.kind, notice.text.replace("data.path", "data.shift")) for notice in found)
    return [Notice(subject="data", kind=kind, text=f"Second source (data.shift): {text}") for kind, text in texts]


def note_on_training_data(data: AuditSet) -> None:
    """Write notices on the images that a training learns from to standard error. Raises DataError."""
    if is_first():
        for notice in _sampled(data):
            print(f"Note on {notice.subject}: {notice.text}", file=sys.stderr)


def _rows(data: AuditSet) -> np.ndarray:
    assert data.rows is not None
    return data.rows


def _begun(data: AuditSet, split: str) -> DataRead:
    reading = data.reading
    white = None if reading is None else reading.white
    read = DataRead(audit_split=split, calibration_split=None, splits=_counts(data), white=white)
    if reading is not None:
        read.kinds = dict(Counter(reading.kinds).most_common())
        read.left_out = list(reading.left_out)
        read.origin = reading.origin
    return read


def _sampled(data: AuditSet) -> list[Notice]:
    """Return notices on `data` from a sample of its images and the headers of all."""
    reading = data.reading
    if reading is None:
        return []
    read = _begun(data, str(data.splits[_rows(data)[0]]))
    looks = [reading.examine(row, False)[0] for row in _sample(_rows(data), reading.sizes.prod(axis=1)).tolist()]
    read.pixels = _pixel_range(looks)
    return [
        *say.of_left_out(read),
        *say.of_pixels(read, looks),
        *say.of_shapes(data, reading),
        *say.of_headers(read, reading, data.ids),
    ]


def _counts(data: AuditSet) -> dict[str, dict[str, int]]:
    table = {}
    for split in dict.fromkeys(map(str, data.splits)):
        labels = data.labels[data.splits == split]
        classes = len(data.class_names)
        counts = (labels == 1).sum(axis=0) if data.is_multi_label else np.bincount(labels, minlength=classes)
        table[split] = {name: int(count) for name, count in zip(data.class_names, counts, strict=True)}
    return table


def _extreme_sizes(sizes: np.ndarray) -> tuple[tuple[int, int], tuple[int, int]]:
    areas = sizes.prod(axis=1)
    (h0, w0), (h1, w1) = sizes[areas.argmin()].tolist(), sizes[areas.argmax()].tolist()
    return (h0, w0), (h1, w1)


def _in_order(data: AuditSet, read: DataRead) -> np.ndarray:
    """All rows, the audited ones first, then those of the calibration split."""
    rank = np.where(data.splits == read.audit_split, 0, np.where(data.splits == read.calibration_split, 1, 2))
    return np.argsort(rank, kind="stable")


def _look(data: AuditSet, reading: Reading, read: DataRead) -> list[Look]:
    """Look at single images and compare contents; fills `read.copies` and what they rest on."""
    order = _in_order(data, read)
    used = np.isin(data.splits, [read.audit_split, str(read.calibration_split)])
    pixels = reading.sizes.prod(axis=1)
    everything = len(order) <= LOOKED_ROWS and pixels.sum() <= LOOKED_PIXELS
    looked = order if everything else _sample(order[used[order]], pixels)
    looks: list[Look] = []
    keys: dict[int, Hashable] = {}
    broken: list[str] = []
    for row in track(looked.tolist(), "Looking at images", len(looked)):
        try:
            look, keys[row] = reading.examine(row, bool(used[row]))
        except DataError:
            if used[row]:
                raise
            broken.append(data.ids[row])
            continue
        if used[row]:
            looks.append(look)
    if broken:
        read.left_out.append(left_out("image that cannot be decoded, in a split that is not used", broken))
    if everything:
        read.compared, read.compared_by = len(order), "pixels"
        read.copies = _copies(keys, data, read)
    elif reading.bytes_key is not None:
        rows = order[:COMPARED_ROWS].tolist()
        read.compared, read.compared_by = len(rows), "bytes"
        read.copies = _copies(keys_by_bytes(rows, reading), data, read)
    return looks


def _copies(keys: Mapping[int, Hashable], data: AuditSet, read: DataRead) -> list[Copies]:
    return find_copies(keys, data.splits, combinations(data.labels), data.ids, read.audit_split)


def _sample(rows: np.ndarray, pixels: np.ndarray) -> np.ndarray:
    """At most SAMPLE of `rows`, evenly spaced, and no more than can be decoded within the bound (but at least one)."""
    chosen = rows[np.linspace(0, len(rows) - 1, min(SAMPLE, len(rows))).round().astype(int)]
    within = int((pixels[chosen].cumsum() <= LOOKED_PIXELS).sum())
    return chosen[np.linspace(0, len(chosen) - 1, max(1, within)).round().astype(int)]


def _pixel_range(looks: Sequence[Look]) -> PixelRange:
    return PixelRange(
        n=len(looks),
        largest=max(look.largest for look in looks),
        brightest=max(look.brightest for look in looks),
        constant=sum(look.smallest == look.largest for look in looks),
        saturated=float(np.mean([look.saturated for look in looks])),
        clipped=float(np.mean([look.clipped for look in looks])),
        transparent=sum(look.transparent for look in looks),
    )
