"""Load the images that a configuration names, of whatever format: those in `FORMATS`, or another package's.

Formats of this package are a folder or `.zip`, a CSV manifest, an `.npz` of MedMNIST layout, a folder that `datasets`
of Hugging Face has saved, and the phantom.
"""

from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from audit.config import DataConfig
from audit.data.audit_set import AuditSet, ImageReader, MaskReader
from audit.data.folder import load_folder
from audit.data.hugging_face import is_saved, load_saved
from audit.data.images import KeepingReader, convert_image
from audit.data.listing import check_classes, nearest
from audit.data.manifest import load_manifest
from audit.data.masks import with_masks
from audit.data.medmnist_names import load_medmnist
from audit.data.multilabel import without_labels
from audit.data.npz import load_npz
from audit.data.outside import Loader, load_outside
from audit.data.phantom import phantom_set
from audit.data.regions import resize_mask
from audit.errors import DataError
from audit.runtime.registry import Registry

CALIBRATION_SPLITS = ("calibration", "val", "valid", "validation", "dev", "train")


def detect_format(path: str) -> str:
    """Tell which of the formats of this package lies at a path; raises DataError if missing or unknown."""
    if path == "phantom":
        return "phantom"
    file = Path(path)
    if file.is_dir():
        return "datasets" if is_saved(file) else "folder"
    if not file.exists():
        raise DataError(f"Data path '{path}' does not exist: check data.path (relative to the configuration file).")
    kinds = {".csv": "manifest", ".npz": "npz", ".zip": "zip"}
    if file.suffix.lower() not in kinds:
        raise DataError(
            f"Data path '{path}' is neither a folder, a .csv, an .npz nor a .zip: set data.format to say what it is."
        )
    return kinds[file.suffix.lower()]


def _converted_image(row: int, read: ImageReader, side: int | None, channels: int | None) -> np.ndarray:
    return convert_image(read(row), side, channels)


def _converted_mask(row: int, read: MaskReader, side: int | None) -> np.ndarray | None:
    mask = read(row)
    return None if mask is None else resize_mask(np.asarray(mask, dtype=bool), side)


def converted(dataset: AuditSet, side: int | None, channels: int | None) -> AuditSet:
    """Return `dataset` with images and masks brought to a square `side` and to `channels`; None leaves either."""
    old_channels, height, width = dataset.image_shape
    if side is None and channels in (None, old_channels):
        return dataset
    return replace(
        dataset,
        read_image=partial(_converted_image, read=dataset.read_image, side=side, channels=channels),
        regions={name: partial(_converted_mask, read=read, side=side) for name, read in dataset.regions.items()},
        image_shape=(channels or old_channels, side or height, side or width),
    )


def _load_phantom(config: DataConfig, seed: int) -> AuditSet:
    phantom = config.phantom
    dataset = phantom_set(phantom.calibration, phantom.audit, seed, phantom.marker_correlation)
    if config.classes is not None and config.classes != dataset.class_names:
        raise DataError(f"data.classes must be absent or {', '.join(dataset.class_names)} for the phantom: correct it.")
    return converted(dataset, config.image_size, config.channels)


FORMATS: Registry[Loader] = Registry(
    "datasets",
    "data set",
    {
        "folder": load_folder,
        "zip": load_folder,
        "manifest": load_manifest,
        "npz": load_npz,
        "medmnist": load_medmnist,
        "datasets": load_saved,
        "phantom": _load_phantom,
    },
)
"""How data are read, by `data.format`."""


def _splits(dataset: AuditSet) -> list[str]:
    return sorted({str(split) for split in dataset.splits})


def _check_split(name: str, key: str, dataset: AuditSet) -> None:
    present = _splits(dataset)
    if name not in present:
        raise DataError(
            f"Split '{name}' of data.{key} is not in {dataset.source} (its splits: {', '.join(present)}): "
            f"{nearest(name, present)}"
        )


def calibration_split(config: DataConfig, dataset: AuditSet) -> str:
    """Name of the split to calibrate on: as configured, else the first there is of CALIBRATION_SPLITS.

    Images that a model was trained on flatter its confidence, so 'train' comes last.

    Raises DataError if there is no such split or it is the audited one, for the two must be disjoint.
    """
    name = config.calibration_split
    if name is None:
        present = _splits(dataset)
        found = [split for split in CALIBRATION_SPLITS if split in present and split != config.audit_split]
        if not found:
            raise DataError(
                f"{dataset.source[:1].upper()}{dataset.source[1:]} has no split 'calibration', 'val' or 'train' beside "
                f"the audited one (its splits: {', '.join(present)}): set data.calibration_split."
            )
        return found[0]
    _check_split(name, "calibration_split", dataset)
    if name == config.audit_split:
        raise DataError(f"data.calibration_split and data.audit_split are both '{name}': they must be disjoint.")
    return name


def training_split(config: DataConfig, dataset: AuditSet, wanted: str | None) -> str:
    """Name of the split to train on: `wanted`, else data.calibration_split, else 'train', else the calibration split.

    Raises DataError if there is no such split.
    """
    name = wanted or config.calibration_split or ("train" if "train" in _splits(dataset) else None)
    if name is None:
        return calibration_split(config, dataset)
    _check_split(name, "split", dataset)
    return name


def _check_masks_lie_outside(config: DataConfig, kind: str) -> None:
    """Raise DataError for a mask folder that would be taken for one of the classes."""
    if kind == "folder" and config.masks is not None:
        inside = Path(config.masks).resolve()
        if inside.is_relative_to(Path(config.path).resolve()):
            raise DataError(
                f"Mask folder '{inside}' lies in data.path, whose folders are classes: move it beside that."
            )


def _load(config: DataConfig, seed: int, labelled: bool) -> AuditSet:
    check_classes(config.classes, fewest=1 if config.task == "multi-label" else 2)
    kind = detect_format(config.path) if config.format == "auto" else config.format
    load, package = FORMATS.get(kind, "data.format"), FORMATS.origin(kind)
    if config.task == "multi-label" and kind in ("folder", "zip", "phantom"):
        raise DataError(
            f"Data of format '{kind}' give every image one class, and data.task is \"multi-label\": give a CSV "
            "manifest or an .npz, or remove data.task."
        )
    _check_masks_lie_outside(config, kind)
    if config.groups and kind != "manifest" and package is None:
        raise DataError(f"data.groups names columns of a CSV manifest, and '{kind}' has none: remove it.")
    if config.window is not None and kind not in ("folder", "zip", "manifest", "datasets"):
        raise DataError(f"data.window is for DICOM files, and data of format '{kind}' have none: remove it.")
    if package is not None:
        dataset = converted(load_outside(load, config, seed, package), config.image_size, config.channels)
        return with_masks(replace(dataset, read_image=KeepingReader(dataset.read_image)), config)
    if config.options:
        raise DataError(f"data.options are for the formats of other packages and would do nothing for '{kind}'.")
    # Of a folder alone, images can be taken that have no label.
    dataset = load_folder(config, seed, labelled) if load is load_folder else load(config, seed)
    return with_masks(dataset, config)


def load_images(config: DataConfig, seed: int) -> AuditSet:
    """Load what `config` describes for a training that looks at images only: one class or none will do.

    Splits are checked when one is asked for. Raises DataError.
    """
    found = _load(config, seed, labelled=False)
    return without_labels(found) if found.is_multi_label else found


def look_at_data(config: DataConfig, seed: int) -> AuditSet:
    """Load what `config` describes before it is known which splits and classes there are. Raises DataError."""
    return _load(config, seed, labelled=True)


def load_data(config: DataConfig, seed: int) -> AuditSet:
    """Load what `config` describes as an AuditSet of all its splits; images are decoded only when asked for.

    Labels, splits, files and sizes are checked for every row at once. `seed` decides the 50/50 split of data that has
    none, and draws the phantom. Raises DataError with one sentence naming file or row and the remedy.
    """
    dataset = _load(config, seed, labelled=True)
    if len(dataset.class_names) < 2 and not dataset.is_multi_label:
        raise DataError(f"There is one class only in {dataset.source}: an audit needs at least two.")
    _check_split(config.audit_split, "audit_split", dataset)
    if config.calibration_split is not None:
        calibration_split(config, dataset)
    return dataset


def load_shift(config: DataConfig, seed: int, like: AuditSet) -> AuditSet:
    """Load the audit split of `config.shift`: images of the classes and the shape of `like` from another source.

    Raises DataError if its classes differ or its images cannot be brought to that shape.
    """
    assert config.shift is not None
    read_by_another = FORMATS.origin(config.format) is not None
    other = config.model_copy(
        update={
            "path": config.shift,
            "shift": None,
            "format": config.format if read_by_another else "auto",
            "masks": None,
            "calibration_split": None,
            "image_size": None,
        }
    )
    loaded = load_data(other, seed)
    if loaded.class_names != like.class_names:
        raise DataError(
            f"The classes of data.shift, {', '.join(loaded.class_names)}, are not those of data.path, "
            f"{', '.join(like.class_names)}: set data.classes to the names both have."
        )
    channels, height, width = like.image_shape
    if loaded.image_shape != like.image_shape and height == width and channels in (1, 3):
        loaded = converted(loaded, height, channels)
    if loaded.image_shape != like.image_shape:
        raise DataError(
            f"Images of data.shift have shape {loaded.image_shape} where data.path has {like.image_shape}: set "
            "data.image_size and data.channels."
        )
    return loaded.split(config.audit_split)
