"""Images in folders: `DIR/<split>/<class>/*.png`, or `DIR/<class>/*.png` with a seeded 50/50 split.

The layout follows from depth: sub-folders that hold images are classes, those that hold folders with images are splits.
A `.zip` with the same layout inside is read as if it were the folder. Images without class folders, `DIR/*.png`, are
unlabelled: enough to train a generator on, not to audit.

Whatever else lies there is counted by reason and named (`Listing.left_out`), except names with a leading dot or '__'
and the leftovers of desktops: files of other endings, images beside the class folders or in folders below them (which
`torchvision.datasets.ImageFolder` takes: whether `healthy/followup/` holds more healthy images or something else only
the user knows), broken links. Bytes of a name that are no UTF-8 are shown escaped, in ids and class names, too.
"""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from audit.config import DataConfig
from audit.data import dicom
from audit.data.archive import ArchiveFolder, Member, archive_root
from audit.data.audit_set import AuditSet
from audit.data.images import EXTENSIONS
from audit.data.listing import Listing, natural_key, to_audit_set
from audit.data.reading import left_out
from audit.errors import DataError, readable
from audit.results import LeftOut

Folder = Path | ArchiveFolder
Group = tuple[str | None, str, Sequence[Path | Member]]
UNLABELLED = "unlabelled"
MOST_ENTRIES = 1_000_000
"""Files and folders that are looked at in search of what was left out; a link may lead to a whole disk."""
DESKTOP_FILES = frozenset({"thumbs.db", "desktop.ini"})


def _folders(path: Folder) -> list[Folder]:
    found = [p for p in _entries(path) if not isinstance(p, Member) and p.is_dir()]
    return sorted((p for p in found if not is_hidden(p.name)), key=lambda p: natural_key(p.name))


def _entries(path: Folder) -> list[Path | ArchiveFolder | Member]:
    try:
        return list(path.iterdir())
    except OSError as error:
        raise DataError(f"Folder '{path}' cannot be read ({error.strerror}): allow it or remove the folder.") from None


def is_hidden(name: str) -> bool:
    """Whether a name is a leftover of tools (.ipynb_checkpoints, __MACOSX) or desktops: neither class nor image."""
    return name.startswith((".", "__")) or name.lower() in DESKTOP_FILES


def _images(path: Folder) -> list[Path | Member]:
    found = [p for p in _entries(path) if p.suffix.lower() in EXTENSIONS and not is_hidden(p.name) and p.is_file()]
    files = [p for p in found if not isinstance(p, ArchiveFolder) and (not _called_dicom(p) or dicom.is_marked(p))]
    if not dicom.is_installed():
        # Beside other images DICOM is left out, and said to be; alone it is refused, with the remedy.
        files = [p for p in files if not _called_dicom(p)] or files
    return sorted(files, key=lambda p: natural_key(p.name))


def _called_dicom(path: Path | Member) -> bool:
    return path.suffix.lower() in dicom.EXTENSIONS


def _classes_of(root: Folder) -> list[Group]:
    """Return (split or None, class, images) of every class folder; raises DataError if two layouts are mixed."""
    direct = [(folder, _images(folder)) for folder in _folders(root)]
    nested = [(folder, inner, _images(inner)) for folder, _ in direct for inner in _folders(folder)]
    with_images = [folder for folder, images in direct if images]
    if not any(images for _, _, images in nested):
        return [(None, readable(folder.name), images) for folder, images in direct]
    if with_images:
        raise DataError(
            f"Folder '{root}' mixes two layouts, for '{with_images[0].name}' holds images and another folder holds "
            "folders with images: use either <class>/ or <split>/<class>/ throughout."
        )
    return [(readable(folder.name), readable(inner.name), images) for folder, inner, images in nested]


def _inside(path: Folder | Member, root: Folder) -> str:
    """Path of an image below `root`, with '/' on every system; valid Unicode."""
    whole = path if isinstance(path, Path) else path.inner
    return readable(whole.relative_to(root.inner if isinstance(root, ArchiveFolder) else root).as_posix())


def _reason(path: Path | Member, depth: int, levels: int) -> str:
    """Why a file is not part of the data; it lies in `depth` folders where images lie in `levels`."""
    if isinstance(path, Path) and not path.is_file():
        return "broken link" if path.is_symlink() else "neither file nor folder"
    if path.suffix.lower() not in EXTENSIONS:
        return f"ending {readable(path.suffix.lower())}" if path.suffix else "no ending"
    if _called_dicom(path) and not dicom.is_marked(path):
        return f"ending {path.suffix.lower()}, but no DICOM file"
    if _called_dicom(path) and not dicom.is_installed():
        return "DICOM, which needs pip install 'spruce-audit[dicom]'"
    return "image in a folder below a class folder" if depth > levels else "image outside the class folders"


def _passed_over(root: Folder, taken: set[str], levels: int) -> tuple[LeftOut, ...]:
    """Everything below `root` that is no image of the set and not hidden, by reason; links to folders are followed."""
    found: dict[str, list[str]] = {}
    seen: set[Path] = set()
    waiting: list[tuple[Folder, int]] = [(root, 0)]
    left = MOST_ENTRIES
    while waiting:
        folder, depth = waiting.pop(0)
        if isinstance(folder, Path):
            if folder.resolve() in seen:
                continue
            seen.add(folder.resolve())
        try:
            entries = sorted((p for p in folder.iterdir() if not is_hidden(p.name)), key=lambda p: natural_key(p.name))
        except OSError:
            found.setdefault("folder that cannot be read", []).append(_inside(folder, root))
            continue
        left -= len(entries)
        if left < 0:
            found["folder that was not looked into, for there are too many files"] = [_inside(folder, root)]
            break
        for entry in entries:
            if not isinstance(entry, Member) and entry.is_dir():
                waiting.append((entry, depth + 1))
            elif not isinstance(entry, ArchiveFolder) and (name := _inside(entry, root)) not in taken:
                found.setdefault(_reason(entry, depth, levels), []).append(name)
    if isinstance(root, ArchiveFolder) and root.unplaced:
        found["second member of one name"] = list(root.unplaced)
    return tuple(left_out(reason, names) for reason, names in found.items())


def _above(name: str) -> str:
    return name.rpartition("/")[0]


def _list(root: Folder, groups: Sequence[Group], source: str, levels: int, split: str | None = None) -> Listing:
    rows = [(split or own, name, path) for own, name, paths in groups for path in paths]
    ids = tuple(_inside(path, root) for _, _, path in rows)
    check_unique(ids, f"{source}, once bytes that are no UTF-8 are written as text")
    where = {above: f"folder '{Path(str(root)) / above}'" for above in set(map(_above, ids))}
    return Listing(
        source=source,
        paths=tuple(path for _, _, path in rows),
        labels=tuple(name for _, name, _ in rows),
        ids=ids,
        where=tuple(where[_above(name)] for name in ids),
        splits=None if rows[0][0] is None else tuple(str(split) for split, _, _ in rows),
        left_out=_passed_over(root, set(ids), levels),
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
            return _list(root, [(None, UNLABELLED, loose)], f"{kind} '{root}' (without labels)", 0, "train")
        endings = " ".join(EXTENSIONS)
        raise DataError(
            f"{kind.capitalize()} '{root}' holds no images ({endings}) in class folders{_what_lies_there(root)}: "
            "lay it out as <class>/ or <split>/<class>/."
        )
    filled = {name for _, name, images in groups if images}
    for _, name, _ in groups:
        if name not in filled:
            there = _what_lies_there(root)
            raise DataError(f"Class '{name}' has no image in {kind} '{root}'{there}: add images or remove its folder.")
    has_splits = groups[0][0] is not None
    return _list(
        root,
        groups,
        f"{kind} '{root}'" + (" (laid out as <split>/<class>/)" if has_splits else ""),
        2 if has_splits else 1,
    )


def _what_lies_there(root: Folder) -> str:
    """Return, in brackets, what `root` holds beside class folders; it may be what the user takes for the images."""
    reasons = (row for row in _passed_over(root, set(), 1) if not row.reason.startswith("image "))
    there = "; ".join(f"{row.n} x {row.reason}, as {row.examples[0]}" for row in reasons)
    return f" (there: {there})" if there else ""


def check_unique(ids: Sequence[str], place: str) -> None:
    """Raise DataError if two images have one id."""
    twice = next((name for name, count in Counter(ids).items() if count > 1), None)
    if twice is not None:
        raise DataError(f"Two images are called '{twice}' in {place}: rename one.")


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
