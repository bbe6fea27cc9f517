"""Images in folders: `DIR/<split>/<class>/*.png`, or `DIR/<class>/*.png` with a seeded 50/50 split.

The layout is told by depth: sub-folders that hold images are classes, those that hold folders with images are splits.
"""

from pathlib import Path

from audit.config import DataConfig
from audit.data.audit_set import AuditSet
from audit.data.images import EXTENSIONS
from audit.data.listing import Listing, natural_key, to_audit_set
from audit.errors import DataError


def _folders(path: Path) -> list[Path]:
    # Names with a leading dot or '__' are leftovers of tools (.ipynb_checkpoints, __MACOSX), not classes.
    found = [p for p in path.iterdir() if p.is_dir() and not p.name.startswith((".", "__"))]
    return sorted(found, key=lambda p: natural_key(p.name))


def _images(path: Path) -> list[Path]:
    found = [p for p in path.iterdir() if p.suffix.lower() in EXTENSIONS and not p.name.startswith(".") and p.is_file()]
    return sorted(found, key=lambda p: natural_key(p.name))


def _classes_of(root: Path) -> list[tuple[str | None, str, list[Path]]]:
    """Return (split or None, class, images) of every class folder; raises DataError if two layouts are mixed."""
    direct = [(folder, _images(folder)) for folder in _folders(root)]
    nested = [(folder, inner, _images(inner)) for folder, _ in direct for inner in _folders(folder)]
    with_images = [folder for folder, images in direct if images]
    if not any(images for _, _, images in nested):
        return [(None, folder.name, images) for folder, images in direct]
    if with_images:
        raise DataError(
            f"Folder '{root}' mixes two layouts, for '{with_images[0].name}' holds images and another folder holds "
            "folders with images: use either <class>/ or <split>/<class>/ throughout."
        )
    return [(folder.name, inner.name, images) for folder, inner, images in nested]


def list_folder(root: Path) -> Listing:
    """List the images below `root` in natural order; raises DataError if there are none or a class has none."""
    groups = _classes_of(root)
    if not any(images for _, _, images in groups):
        endings = " ".join(EXTENSIONS)
        raise DataError(
            f"Folder '{root}' holds no images ({endings}) in class folders: lay it out as <class>/ or <split>/<class>/."
        )
    filled = {name for _, name, images in groups if images}
    for _, name, _ in groups:
        if name not in filled:
            raise DataError(f"Class '{name}' has no image in folder '{root}': add images or remove its folder.")
    rows = [(split, name, path) for split, name, images in groups for path in images]
    has_splits = groups[0][0] is not None
    ids = tuple(path.relative_to(root).as_posix() for _, _, path in rows)
    return Listing(
        source=f"folder '{root}'" + (" (laid out as <split>/<class>/)" if has_splits else ""),
        paths=tuple(path for _, _, path in rows),
        labels=tuple(name for _, name, _ in rows),
        ids=ids,
        where=tuple(f"folder '{root / Path(name).parent}'" for name in ids),
        splits=tuple(str(split) for split, _, _ in rows) if has_splits else None,
    )


def load_folder(config: DataConfig, seed: int) -> AuditSet:
    """Load `config.path` as a folder of class folders; raises DataError."""
    root = Path(config.path)
    if not root.is_dir():
        raise DataError(f"Data folder '{root}' is not a folder: check data.path and data.format.")
    return to_audit_set(list_folder(root), config, seed, numbers=False)
