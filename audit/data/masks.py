"""Masks that lie beside the images: a folder of mask files, or arrays of the images' `.npz`, added to any data set.

Folder: the mask of `test/opacity/7.png` is `MASKS/test/opacity/7.png`, of whatever ending; a shorter path such as
`opacity/7.png` or `7.png` will do where only one image ends so. Several regions have a folder each above that:
`MASKS/marker/test/opacity/7.png`; without one the masks are those of the region "region", which carries the class's
meaning. Of these two layouts the one that gives more files an image is taken.

Arrays: for `data.masks = "masks"`, `{split}_masks` `[N, H, W]` holds the region "region" of all images of a split, and
`{split}_masks_marker` that of the region "marker".

A mask has the size of its image and is resized with it; inside is what is not zero, as in a manifest.
"""

import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path, PurePosixPath

import numpy as np

from audit.config import DataConfig
from audit.data.audit_set import AuditSet, MaskReader
from audit.data.data_notices import of_mask_folder
from audit.data.folder import is_hidden
from audit.data.header import Files
from audit.data.images import EXTENSIONS
from audit.data.listing import natural_key
from audit.data.npz import read_masks
from audit.data.regions import check_mask_file, is_region_name, read_mask, resize_mask
from audit.errors import DataError, readable
from audit.results import MAIN_REGION
from audit.runtime.progress import track

Parts = tuple[str, ...]
"""Folders and name of an image or of a mask, without the name's ending."""
Places = dict[PurePosixPath, list[int]]
"""The rows whose mask a file may be."""


def with_masks(dataset: AuditSet, config: DataConfig) -> AuditSet:
    """Return `dataset` with the regions of `config.masks` beside its own; raises DataError if one is in both."""
    if config.masks is None:
        return dataset
    added = _of_arrays(dataset, config) if config.mask_arrays else _of_folder(dataset, config)
    twice = next((name for name in added.regions if name in dataset.regions), None)
    if twice is not None:
        raise DataError(f"Region '{twice}' is given by {dataset.source} and by data.masks: remove or rename one.")
    return replace(added, regions={**dataset.regions, **added.regions})


def _sizes(dataset: AuditSet) -> np.ndarray:
    """Height and width of every image before it is resized, `[N, 2]`."""
    if dataset.reading is not None:
        return dataset.reading.sizes
    return np.tile(dataset.image_shape[1:], (len(dataset.ids), 1))


def _of_folder(dataset: AuditSet, config: DataConfig) -> AuditSet:
    """Return `dataset` with the regions of the folder alone, and notices of masks that may be missing."""
    assert config.masks is not None
    root = Path(config.masks)
    if not root.is_dir():
        arrays = "; for arrays of the .npz, give the end of their names, such as masks" if config.is_npz else ""
        raise DataError(f"Mask folder '{root}' is not a folder: check data.masks{arrays}.")
    files = _files(root)
    images = [file for file in files if file.suffix.lower() in EXTENSIONS]
    rows = _rows_by_path(dataset.ids)
    flat, nested = _placed(images, rows, 0), _placed(images, rows, 1)
    if not flat and not nested:
        there = f"such as {images[0]}" if images else f"which holds no image ({' '.join(EXTENSIONS)})"
        raise DataError(
            f"No file of mask folder '{root}' is called as an image is, {there} where an image is called "
            f"{dataset.ids[0]}: give every mask the path of its image below data.masks."
        )
    placed = {MAIN_REGION: flat} if len(flat) >= len(nested) else _by_first_folder(nested)
    regions = {name: _one_each(name, places, root, dataset.ids) for name, places in placed.items()}
    sizes = _sizes(dataset)
    for paths in regions.values():
        for row, path in track(list(enumerate(paths)), "Reading mask headers", len(paths)):
            if path is not None:
                check_mask_file(path, *sizes[row].tolist())
    given = {name: np.array([path is not None for path in paths]) for name, paths in regions.items()}
    used = {file for places in placed.values() for file in places}
    unused = [readable(file) for file in files if file not in used]
    return replace(
        dataset,
        regions={
            name: partial(read_mask, paths=Files(paths), side=config.image_size) for name, paths in regions.items()
        },
        notices=(*dataset.notices, *of_mask_folder(dataset, config.audit_split, given, unused)),
    )


def _by_first_folder(places: Places) -> dict[str, Places]:
    found: dict[str, Places] = defaultdict(dict)
    for file, rows in places.items():
        found[file.parts[0]][file] = rows
    return found


def _one_each(name: str, places: Places, root: Path, ids: Sequence[str]) -> tuple[Path | None, ...]:
    """Return the mask file of every image, or None, for region `name`; raises DataError if that is not clear."""
    if not is_region_name(name):
        raise DataError(
            f"Folder '{root / name}' is called '{readable(name)}': a region's name becomes part of file names; use "
            "letters, digits, spaces and . + - _ only."
        )
    paths: list[Path | None] = [None] * len(ids)
    for file, rows in places.items():
        if len(rows) > 1:
            both = " and ".join(f"'{ids[row]}'" for row in rows[:2])
            raise DataError(
                f"Mask file '{root / file}' may belong to {both}: give it the whole path of its image below data.masks."
            )
        (row,) = rows
        if paths[row] is not None:
            raise DataError(
                f"Mask files '{paths[row]}' and '{root / file}' are both of region '{name}' in image '{ids[row]}': "
                "remove one."
            )
        paths[row] = root / file
    return tuple(paths)


def _files(root: Path) -> list[PurePosixPath]:
    """Every file below `root` that is not hidden, relative to it, in natural order; links to folders are followed."""
    found = []
    for name, inner, files in os.walk(root, followlinks=True):
        folder = Path(name)
        if any(folder.samefile(above) for above in folder.parents):
            inner.clear()  # a link upwards
            continue
        inner[:] = [one for one in inner if not is_hidden(one)]
        found += [folder / one for one in files if not is_hidden(one) and (folder / one).is_file()]
    inside = (PurePosixPath(path.relative_to(root).as_posix()) for path in found)
    return sorted(inside, key=lambda file: natural_key(str(file)))


def _parts(path: PurePosixPath) -> Parts:
    whole = path.with_suffix("") if path.suffix.lower() in EXTENSIONS else path
    return tuple(map(readable, whole.parts))


def _rows_by_path(ids: Sequence[str]) -> dict[Parts, list[int]]:
    """Return the rows that are meant by a path: the image of that very path, else all whose path ends so."""
    whole: dict[Parts, list[int]] = defaultdict(list)
    ends: dict[Parts, list[int]] = defaultdict(list)
    for row, name in enumerate(ids):
        parts = _parts(PurePosixPath(name))
        whole[parts].append(row)
        for start in range(1, len(parts)):
            ends[parts[start:]].append(row)
    return {**ends, **whole}


def _placed(files: Sequence[PurePosixPath], rows: Mapping[Parts, list[int]], above: int) -> Places:
    """Return the rows of every file that has some, where `above` folders stand before the path of an image."""
    return {file: rows[parts] for file in files if (parts := _parts(file)[above:]) in rows}


def _of_arrays(dataset: AuditSet, config: DataConfig) -> AuditSet:
    """Return `dataset`, read from an `.npz`, with the regions of that file's mask arrays alone."""
    assert config.mask_arrays is not None
    sizes = {split: _sizes(dataset)[dataset.splits == split] for split in map(str, np.unique(dataset.splits))}
    arrays = read_masks(Path(config.path), config.mask_arrays, sizes)
    places = np.zeros(len(dataset.ids), dtype=np.int64)
    for split, of_split in sizes.items():
        places[dataset.splits == split] = np.arange(len(of_split))
    regions: dict[str, MaskReader] = {
        name: partial(_read_array, arrays=by_split, splits=dataset.splits, places=places, side=config.image_size)
        for name, by_split in arrays.items()
    }
    return replace(dataset, regions=regions)


def _read_array(
    row: int, arrays: Mapping[str, np.ndarray], splits: np.ndarray, places: np.ndarray, side: int | None
) -> np.ndarray | None:
    """Return the mask at `places[row]` of the array of its split, or None; a picklable `MaskReader` when bound."""
    array = arrays.get(str(splits[row]))
    return None if array is None else resize_mask(array[places[row]] != 0, side)
