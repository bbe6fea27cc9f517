"""The images that an audit works on, read in batches so that memory is bounded by the batch and not by the set."""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from audit.data.reading import Reading
from audit.errors import DataError
from audit.results import MAIN_REGION, Notice

ImageReader = Callable[[int], np.ndarray]
"""Maps a row to its image: uint8 `[H, W]` or `[H, W, C]`, or float in [0, 1] of the same shapes."""
MaskReader = Callable[[int], "np.ndarray | None"]
"""Maps a row to its boolean mask `[H, W]`, or None where the row has none."""


@dataclass(frozen=True)
class AuditSet:
    """Images with labels, ids, splits and optional regions; the pixel contract is float32 `[N, C, H, W]` in [0, 1].

    `labels` are `[N]`, the place of each image's class in `class_names`. Of a multi-label set they are `[N, L]`, and
    `class_names` are the names of the L labels, of which an image may have any number (`audit.data.multilabel`).
    `regions` maps a region's name to a reader of masks. The region called `"region"` is the one that carries the
    class's meaning (a lesion, a cell); any other name is a further place worth measuring (such as a marker).
    `reading` says how the images were read and what was left out; None where they were made in memory.
    `groups` are columns of metadata by name, a value for each image and '' where it is not known.
    `notices` are what else a reader of its numbers has to know, found by its loader. Of a set with a `lot` only the
    batch of that number is worked on.
    """

    read_image: ImageReader
    labels: np.ndarray
    class_names: tuple[str, ...]
    ids: tuple[str, ...]
    splits: np.ndarray
    image_shape: tuple[int, int, int]
    regions: Mapping[str, MaskReader] = field(default_factory=dict)
    rows: np.ndarray | None = None
    source: str = "memory"
    reading: Reading | None = None
    notices: tuple[Notice, ...] = ()
    groups: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    lot: int | None = None
    _digests: dict[ImageReader, np.ndarray] = field(default_factory=dict, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.rows is None:
            object.__setattr__(self, "rows", np.arange(len(self.ids)))

    def _rows(self) -> np.ndarray:
        assert self.rows is not None
        return self.rows

    @property
    def row_numbers(self) -> np.ndarray:
        """Where the selected rows stand in the whole set, int `[N]`."""
        return self._rows()

    @property
    def is_multi_label(self) -> bool:
        """Whether an image may have any number of labels."""
        return np.ndim(self.labels) == 2

    def __len__(self) -> int:
        return len(self._rows())

    def has(self, label: int) -> np.ndarray:
        """Which images of the whole set are of class `label`, or have it among their labels: bool `[N]`."""
        found: np.ndarray = self.labels[:, label] == 1 if self.is_multi_label else self.labels == label
        return found

    @property
    def row_labels(self) -> Tensor:
        """Labels of the selected rows, int64 `[N]`; of a multi-label set `[N, L]`."""
        return torch.from_numpy(np.asarray(self.labels)[self._rows()].astype(np.int64))

    @property
    def row_ids(self) -> tuple[str, ...]:
        """Ids of the selected rows."""
        return tuple(self.ids[row] for row in self._rows())

    @property
    def row_groups(self) -> dict[str, list[str]]:
        """Columns of metadata of the selected rows."""
        return {name: [values[row] for row in self._rows()] for name, values in self.groups.items()}

    def select(self, indices: Sequence[int] | np.ndarray | Tensor) -> "AuditSet":
        """Return the rows at `indices` (positions in this set), sharing storage."""
        return replace(self, rows=self._rows()[np.asarray(indices, dtype=np.int64)])

    def split(self, name: str) -> "AuditSet":
        """Return the rows of split `name`; raises DataError if there is none."""
        chosen = np.flatnonzero(np.asarray(self.splits)[self._rows()] == name)
        if len(chosen) == 0:
            present = ", ".join(sorted({str(s) for s in np.asarray(self.splits)[self._rows()]})) or "none"
            raise DataError(f"Split '{name}' of {self.source} is empty; splits present: {present}.")
        return self.select(chosen)

    def images(self, indices: Sequence[int] | np.ndarray | Tensor | None = None) -> Tensor:
        """Read the images at `indices` (all when None): float32 `[N, C, H, W]` in [0, 1]."""
        channels, height, width = self.image_shape
        rows = self._rows() if indices is None else self._rows()[np.asarray(indices, dtype=np.int64)]
        out = torch.empty(len(rows), channels, height, width)
        for position, row in enumerate(rows):
            array = np.asarray(self.read_image(int(row)))
            pixels = torch.from_numpy(np.array(array))
            pixels = pixels.float() / 255 if array.dtype == np.uint8 else pixels.float()
            pixels = pixels[None] if pixels.ndim == 2 else pixels.permute(2, 0, 1)
            if tuple(pixels.shape) != self.image_shape:
                raise DataError(
                    f"Image '{self.ids[int(row)]}' of {self.source} is {tuple(pixels.shape)} (channels, height, width) "
                    f"where {self.image_shape} is expected; give all images one size or set data.image_size."
                )
            out[position] = pixels
        return out

    def region(self, name: str = MAIN_REGION, indices: Sequence[int] | np.ndarray | Tensor | None = None) -> Tensor:
        """Read masks `[N, H, W]` of bool for region `name`; a row without a mask is all False."""
        _, height, width = self.image_shape
        rows = self._rows() if indices is None else self._rows()[np.asarray(indices, dtype=np.int64)]
        out = torch.zeros(len(rows), height, width, dtype=torch.bool)
        reader = self.regions.get(name)
        if reader is not None:
            for position, row in enumerate(rows):
                mask = reader(int(row))
                if mask is None:
                    continue
                if np.shape(mask) != (height, width):
                    raise DataError(
                        f"The mask of region '{name}' of image '{self.ids[int(row)]}' of {self.source} is "
                        f"{np.shape(mask)} (height, width) where the image is {(height, width)}: make them one size."
                    )
                out[position] = torch.from_numpy(np.asarray(mask, dtype=bool))
        return out

    @property
    def content(self) -> str:
        """SHA-256 of pixels (to the bit), labels, ids and class names, which stands for the set in keys of a store.

        An image is read for it once, whichever selections it is in.
        """
        whole = hashlib.sha256("\0".join(self.class_names).encode("utf-8", "surrogateescape"))
        known = self._digests.setdefault(self.read_image, np.zeros((len(self.ids), 32), np.uint8))
        for row, label in zip(self._rows().tolist(), self.row_labels.tolist(), strict=True):
            if not known[row].any():
                pixels = np.ascontiguousarray(self.read_image(row))
                head = f"{pixels.dtype}{pixels.shape}".encode()
                known[row] = np.frombuffer(hashlib.sha256(head + pixels.tobytes()).digest(), np.uint8)
            whole.update(f"\0{self.ids[row]}\0{label}\0".encode("utf-8", "surrogateescape"))
            whole.update(known[row])
        return whole.hexdigest()

    def batches(self, batch_size: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Yield `(images, labels, indices)` in order, `batch_size` rows at a time; with a `lot` that batch, if any."""
        labels = self.row_labels
        for indices in self.places(batch_size):
            yield self.images(indices), labels[indices], indices

    def places(self, batch_size: int) -> Iterator[Tensor]:
        """Yield the indices of `batches`; no image is read."""
        starts = range(0, len(self), batch_size)
        for start in starts if self.lot is None else starts[self.lot : self.lot + 1]:
            yield torch.arange(start, min(start + batch_size, len(self)))
