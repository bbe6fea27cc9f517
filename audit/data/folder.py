"""Images in folders: `DIR/<split>/<class>/*.png`, or `DIR/<class>/*.png` with a seeded 50/50 split.

The layout is told by depth: sub-folders that hold images are classes, those that hold folders with images are splits.
A `.zip` with the same layout inside is read as if it were the folder. Images without class folders, `DIR/*.png`, are
unlabelled: enough to train a generator on, not to audit.
"""

from collections.abc import Sequence
from pathlib import Path

from audit.config import DataConfig
from audit.data.archive import ArchiveFolder, Member, archive_root
from audit.data.audit_set import AuditSet
from audit.data.images import EXTENSIONS, ImageFile
from audit.data.listing import Listing, natural_key, to_audit_set
from audit.errors import DataError

Folder = Path | ArchiveFolder
Group = tuple[str | None, str, Sequence[ImageFile]]
UNLABELLED = "unlabelled"


def _folders(path: Folder) -> list[Folder]:
    # Names with a leading dot or '__' are leftovers of tools (.ipynb_checkpoints, __MACOSX), not classes.
    found = [p for p in path.iterdir() if not isinstance(p, Member) and p.is_dir()]
    return sorted((p for p in found if not p.name.startswith((".", "__"))), key=lambda p: natural_key(p.name))


def _images(path: Folder) -> list[ImageFile]:
    found = [p for p in path.iterdir() if p.suffix.lower() in EXTENSIONS and not p.name.startswith(".") and p.is_file()]
    files = [p for p in found if not isinstance(p, ArchiveFolder)]
    return sorted(files, key=lambda p: natural_key(p.name))


def _classes_of(root: Folder) -> list[Group]:
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


def _inside(path: ImageFile, root: Folder) -> str:
    """Path of an image below `root`, with '/' on every system."""
    whole = path.inner if isinstance(path, Member) else path
    return whole.relative_to(root.inner if isinstance(root, ArchiveFolder) else root).as_posix()


def _list(root: Folder, groups: Sequence[Group], source: str, split: str | None) -> Listing:
    rows = [(split or own, name, path) for own, name, paths in groups for path in paths]
    ids = tuple(_inside(path, root) for _, _, path in rows)
    return Listing(
        source=source,
        paths=tuple(path for _, _, path in rows),
        labels=tuple(name for _, name, _ in rows),
        ids=ids,
        where=tuple(f"folder '{Path(str(root)) / Path(name).parent}'" for name in ids),
        splits=None if rows[0][0] is None else tuple(str(split) for split, _, _ in rows),
    )


def list_folder(root: Folder, labelled: bool = True) -> Listing:
    """List the images below `root` in natural order; raises DataError if there are none or a class has none.

    Unless `labelled`, images that lie in `root` itself are taken where there are no class folders: one class, all in
    the split 'train'.
    """
    kind = "folder" if isinstance(root, Path) else "archive"
    groups = _classes_of(root)
    if not any(images for _, _, images in groups):
        loose = _images(root)
        if loose and not labelled:
            return _list(root, [(None, UNLABELLED, loose)], f"{kind} '{root}' (without labels)", "train")
        endings = " ".join(EXTENSIONS)
        raise DataError(
            f"{kind.capitalize()} '{root}' holds no images ({endings}) in class folders: lay it out as <class>/ or "
            "<split>/<class>/."
        )
    filled = {name for _, name, images in groups if images}
    for _, name, _ in groups:
        if name not in filled:
            raise DataError(f"Class '{name}' has no image in {kind} '{root}': add images or remove its folder.")
    has_splits = groups[0][0] is not None
    return _list(root, groups, f"{kind} '{root}'" + (" (laid out as <split>/<class>/)" if has_splits else ""), None)


def load_folder(config: DataConfig, seed: int, labelled: bool = True) -> AuditSet:
    """Load `config.path`, a folder or a `.zip`, as class folders; unless `labelled`, also as loose images.

    Raises DataError.
    """
    path = Path(config.path)
    kind = "zip" if config.format == "zip" or (config.format == "auto" and path.is_file()) else "folder"
    if kind == "folder" and not path.is_dir():
        raise DataError(f"Data folder '{path}' is not a folder: check data.path and data.format.")
    root = archive_root(path) if kind == "zip" else path
    return to_audit_set(list_folder(root, labelled), config, seed, numbers=False)
