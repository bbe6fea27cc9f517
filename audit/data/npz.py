"""Arrays in one `.npz` of MedMNIST layout: `{split}_images` and `{split}_labels` for train, val, test or others.

Images are `[N, H, W]`, `[N, H, W, 1]` or `[N, H, W, 3]`, uint8 or floating point in [0, 1]; with `data.white` also
other integers and floating point up to that number. Labels are `[N]` or `[N, 1]`, or `[N, L]` of 0 and 1 where an
image may have any number of L labels, as in ChestMNIST.
Images are mapped (`audit.data.npz_arrays`) and converted row by row.
Layout: Yang et al. 2023, MedMNIST v2, https://medmnist.com.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from audit.config import DataConfig
from audit.data.audit_set import AuditSet
from audit.data.depth import Stored, chosen_white, stored_array, to_unit
from audit.data.images import Conversion
from audit.data.listing import MOST_CLASSES, check_every_class, default_names, natural_key
from audit.data.multilabel import check_every_label, is_multi_hot, multi_hot, notices
from audit.data.npz_arrays import read_arrays
from audit.data.reading import Look, Reading, digest, left_out, look_at
from audit.data.regions import is_region_name
from audit.errors import DataError
from audit.results import MAIN_REGION, LeftOut, Notice

CHUNK = 2**24
"""Bytes of an array that are looked at together."""


def read_row(row: int, arrays: tuple[np.ndarray, ...], starts: np.ndarray, conversion: Conversion) -> np.ndarray:
    """Return the converted image of `row`; `starts[k]` is the first row of `arrays[k]`."""
    return conversion.pixels(_stored(row, arrays, starts), f"Image {row}")


def _stored(row: int, arrays: tuple[np.ndarray, ...], starts: np.ndarray) -> Stored:
    part = int(np.searchsorted(starts, row, side="right")) - 1
    values = arrays[part][row - starts[part]]
    return stored_array(values.astype(np.float32, copy=False) if values.dtype.kind == "f" else values)


def examine_row(
    row: int, keep: bool, arrays: tuple[np.ndarray, ...], starts: np.ndarray, white: float | None
) -> tuple[Look, bytes]:
    """What the numbers of `row` are like, and a hash of its pixels; nothing is decoded that might be kept."""
    stored = _stored(row, arrays, starts)
    return look_at(stored, white, f"Image {row}"), digest(to_unit(stored, white, f"Image {row}"))


def _parts(array: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """Yield the rows of `array` in parts, each with the number of its first row."""
    step = max(1, CHUNK * len(array) // max(array.nbytes, 1))
    for start in range(0, len(array), step):
        yield start, array[start : start + step]


def _check_images(images: np.ndarray, name: str, path: Path, white: float | None) -> np.ndarray:
    """Return images `[N, H, W]` or `[N, H, W, 3]` of a type that `data.white` gives a meaning; raises DataError."""
    if images.ndim == 4 and images.shape[3] == 1:
        images = images[..., 0]
    if images.ndim not in (3, 4) or (images.ndim == 4 and images.shape[3] != 3) or 0 in images.shape[1:]:
        raise DataError(f"Array '{name}' of '{path}' has shape {images.shape}: it must be [N, H, W] or [N, H, W, 3].")
    if images.dtype.kind not in "uif" or (images.dtype.kind != "f" and images.dtype != np.uint8 and white is None):
        raise DataError(
            f"Array '{name}' of '{path}' is of type {images.dtype}: save uint8 or floats in [0, 1]"
            + (", or set data.white to the number that means white." if images.dtype.kind in "ui" else ".")
        )
    if len(images):
        chosen_white(stored_array(images[0]), white, f"Array '{name}' of '{path}'")
    if images.dtype.kind == "u":
        return images
    for start, part in _parts(images):
        inside = (part >= 0) & (part <= (1 if white is None else np.inf))  # false for NaN
        if not inside.all():
            row = start + int(np.argmin(inside.reshape(len(part), -1).all(axis=1)))
            range_ = "[0, 1]" if white is None else f"[0, {white:g}]"
            mend = "scale it or set data.white to the number that means white" if white is None else "scale it"
            raise DataError(f"Image {row} of array '{name}' in '{path}' holds NaN or numbers outside {range_}: {mend}.")
    return images


def _check_labels(labels: np.ndarray, name: str, path: Path, count: int, classes: tuple[str, ...] | None) -> np.ndarray:
    """Return labels as int64 `[N]`; raises DataError naming the array and the first bad row."""
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim == 2 and ((labels == 0) | (labels == 1)).all() and (labels.sum(axis=1) == 1).all():
        raise DataError(
            f"Array '{name}' of '{path}' has shape {labels.shape}, one column per class: store "
            'labels.argmax(axis=1), one whole number per image, or set data.task to "multi-label" if an image may '
            "have several."
        )
    if labels.ndim != 1:
        raise DataError(f"Array '{name}' of '{path}' has shape {labels.shape}: it must hold one label per image, [N].")
    if len(labels) != count:
        raise DataError(f"Array '{name}' of '{path}' has {len(labels)} labels for {count} images: make them as many.")
    if labels.dtype.kind not in "iuf":
        raise DataError(f"Array '{name}' of '{path}' is of type {labels.dtype}: labels must be whole numbers.")
    whole = np.isfinite(labels) & (np.floor(labels) == labels)
    if not whole.all():
        row = int(np.argmin(whole))
        raise DataError(f"Label {labels[row]} in row {row} of array '{name}' in '{path}' is not a whole number.")
    limit = len(classes) if classes is not None else MOST_CLASSES
    inside = (labels >= 0) & (labels < limit)
    if not inside.all():
        row = int(np.argmin(inside))
        names = "" if classes is None else f" ({', '.join(classes)})"
        raise DataError(
            f"Label {labels[row]} in row {row} of array '{name}' in '{path}' is out of range: "
            f"it must lie between 0 and {limit - 1}{names}."
        )
    return labels.astype(np.int64)


def _is_multi_label(arrays: Sequence[np.ndarray], config: DataConfig) -> bool:
    """Whether images have any number of labels; where every one has exactly one, the data must say it."""
    if config.task != "auto":
        return config.task == "multi-label"
    return all(map(is_multi_hot, arrays)) and any((array.sum(axis=1) != 1).any() for array in arrays)


def _label_sets(
    arrays: Mapping[str, np.ndarray], counts: Sequence[int], config: DataConfig, path: Path
) -> tuple[np.ndarray, tuple[str, ...], tuple[Notice, ...]]:
    """Return multi-hot labels int64 `[N, L]`, their names, and notices; raises DataError naming the array.

    `counts` are the images that each of the `arrays` tells the labels of.
    """
    tables = {
        name: multi_hot(array, count, f"Array '{name}' of '{path}'")
        for (name, array), count in zip(arrays.items(), counts, strict=True)
    }
    widths = {name: table.shape[1] for name, table in tables.items()}
    count = len(config.classes) if config.classes is not None else next(iter(widths.values()))
    for name, width in widths.items():
        if width != count:
            raise DataError(f"Array '{name}' of '{path}' has {width} columns where there are {count} labels.")
    labels = np.concatenate(list(tables.values()))
    names = config.classes or tuple(f"label {column}" for column in range(count))
    check_every_label(labels, names, f"'{path}'")
    told = "Its label arrays have several columns of 0 and 1" if config.task == "auto" else None
    return labels, names, notices(labels, names, told)


def _split_names(arrays: Mapping[str, np.ndarray], path: Path) -> list[str]:
    splits = sorted({name.rpartition("_")[0] for name in arrays}, key=natural_key)
    for split in splits:
        for part in ("images", "labels"):
            if f"{split}_{part}" not in arrays:
                raise DataError(f"File '{path}' has no array '{split}_{part}': images and labels must come in pairs.")
    return [split for split in splits if len(arrays[f"{split}_images"])]


def load_npz(config: DataConfig, seed: int) -> AuditSet:
    """Load `config.path` as an .npz in MedMNIST layout; the splits are its own, so `seed` is not used.

    Class names are those of `config.classes`, else 'class 0', 'class 1', ... Raises DataError.
    """
    path = Path(config.path)
    arrays, others = read_arrays(path, lambda name: name.endswith(("_images", "_labels")))
    if not arrays:
        raise DataError(
            f"File '{path}' has no arrays '<split>_images' and '<split>_labels' (it has: {', '.join(others) or 'none'})"
            ": name them as MedMNIST does, for instance test_images and test_labels."
        )
    splits = _split_names(arrays, path)
    if not splits:
        raise DataError(f"File '{path}' holds no images: its arrays are empty.")
    images = tuple(_check_images(arrays[f"{split}_images"], f"{split}_images", path, config.white) for split in splits)
    for split, array in zip(splits, images, strict=True):
        if array.shape[1:] != images[0].shape[1:]:
            raise DataError(
                f"Array '{split}_images' of '{path}' has images of shape {array.shape[1:]}, not "
                f"{images[0].shape[1:]} as in '{splits[0]}_images': give all splits one shape."
            )
    counts = [len(array) for array in images]
    of_splits = {f"{split}_labels": arrays[f"{split}_labels"] for split in splits}
    found: tuple[Notice, ...] = ()
    if _is_multi_label(list(of_splits.values()), config):
        labels, names, found = _label_sets(of_splits, counts, config, path)
    else:
        labels = np.concatenate(
            [
                _check_labels(array, name, path, count, config.classes)
                for (name, array), count in zip(of_splits.items(), counts, strict=True)
            ]
        )
        names = config.classes or default_names(labels)
        check_every_class(labels, names, f"'{path}'")
    channels = config.channels or (3 if images[0].ndim == 4 else 1)
    height, width = (config.image_size,) * 2 if config.image_size else images[0].shape[1:3]
    starts = np.concatenate([[0], np.cumsum(counts)[:-1]])
    return AuditSet(
        read_image=partial(
            read_row,
            arrays=images,
            starts=starts,
            conversion=Conversion(config.image_size, channels, config.white),
        ),
        labels=labels,
        class_names=names,
        ids=tuple(f"{split}/{row:05d}" for split, count in zip(splits, counts, strict=True) for row in range(count)),
        splits=np.repeat(np.array(splits), counts),
        image_shape=(channels, height, width),
        source=f"'{path}'",
        reading=Reading(
            examine=partial(examine_row, arrays=images, starts=starts, white=config.white),
            sizes=np.tile(images[0].shape[1:3], (len(labels), 1)),
            kinds=tuple(kind for array in images for kind in [_kind(array)] * len(array)),
            left_out=tuple(_left_out(_without_masks(others, config.mask_arrays, splits), arrays, splits)),
            white=config.white,
        ),
        notices=found,
    )


def _mask_of(name: str, ending: str, splits: Collection[str]) -> tuple[str, str] | None:
    """Return split and region of a mask array, called `{split}_{ending}` or `{split}_{ending}_{region}`; else None."""
    for split in splits:
        start = f"{split}_{ending}"
        if name == start or name.startswith(f"{start}_"):
            return split, name[len(start) + 1 :] or MAIN_REGION
    return None


def _without_masks(names: Sequence[str], ending: str | None, splits: Collection[str]) -> list[str]:
    return [name for name in names if ending is None or _mask_of(name, ending, splits) is None]


def read_masks(path: Path, ending: str, sizes: Mapping[str, np.ndarray]) -> dict[str, dict[str, np.ndarray]]:
    """Read the mask arrays of an .npz, `[N, H, W]` and not 0 inside, by region and split.

    They are called `{split}_{ending}` (the region that carries the class's meaning) or `{split}_{ending}_{region}`;
    `sizes` are height and width of the images of every split. Raises DataError if there are none or one does not fit.
    """
    arrays, others = read_arrays(path, lambda name: _mask_of(name, ending, sizes) is not None)
    if not arrays:
        raise DataError(
            f"File '{path}' has no array '<split>_{ending}' for data.masks = \"{ending}\" (other arrays: "
            f"{', '.join(others)}): give the end that the names of the mask arrays share, after the split."
        )
    masks: dict[str, dict[str, np.ndarray]] = {}
    for name, array in arrays.items():
        found = _mask_of(name, ending, sizes)
        assert found is not None
        split, region = found
        if not is_region_name(region):
            raise DataError(
                f"Array '{name}' of '{path}' names a region '{region}': a region's name becomes part of file names; "
                "use letters, digits, spaces and . + - _ only."
            )
        masks.setdefault(region, {})[split] = _check_masks(array, name, path, sizes[split])
    return masks


def _check_masks(masks: np.ndarray, name: str, path: Path, sizes: np.ndarray) -> np.ndarray:
    if masks.ndim == 4 and masks.shape[3] == 1:
        masks = masks[..., 0]
    wanted = (len(sizes), *sizes[0].tolist())
    if masks.shape != wanted:
        raise DataError(
            f"Array '{name}' of '{path}' has shape {masks.shape} where {wanted} is needed: one mask per image, "
            "each of the size of its image."
        )
    if masks.dtype.kind not in "buif" or (
        masks.dtype.kind == "f" and any(np.isnan(part).any() for _, part in _parts(masks))
    ):
        what = "holds NaN" if masks.dtype.kind == "f" else f"is of type {masks.dtype}"
        raise DataError(f"Array '{name}' of '{path}' {what}: save masks as bool or uint8, zero outside.")
    return masks


def _kind(array: np.ndarray) -> str:
    return f"{'float32' if array.dtype.kind == 'f' else array.dtype} {'colour' if array.ndim == 4 else 'grey'}"


def _left_out(others: list[str], arrays: Mapping[str, np.ndarray], splits: list[str]) -> list[LeftOut]:
    empty = [name for name in arrays if name.endswith("_images") and name.rpartition("_")[0] not in splits]
    found = {"array that holds neither images nor labels": others, "array without images": empty}
    return [left_out(reason, names) for reason, names in found.items() if names]
