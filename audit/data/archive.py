"""Image files inside a `.zip`, read one at a time: nothing is unpacked to disk, and no member is run or followed.

A folder inside the archive has the same few methods as a `Path`, so that one implementation (`audit.data.folder`) tells
the layout of both. Of a member only its bytes are used; its name is never used as a path of the file system.
"""

import io
import os
import zipfile
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path, PurePosixPath

from audit.errors import DataError

LARGEST_MEMBER = 2**29
"""Bytes of one image file, unpacked; a larger one is a mistake or an attack."""


@lru_cache(maxsize=4)
def _opened(path: Path, modified: int, process: int) -> zipfile.ZipFile:
    # Reading the directory of a large archive takes seconds, so it stays open; a forked process must not share the
    # file's position, hence its number is part of the key.
    return zipfile.ZipFile(path)


def open_archive(path: Path) -> zipfile.ZipFile:
    """Open `path` once per process; raises DataError if it is missing or no zip."""
    try:
        return _opened(path, path.stat().st_mtime_ns, os.getpid())
    except FileNotFoundError:
        raise DataError(f"Data file '{path}' does not exist: check data.path and data.format.") from None
    except Exception as error:  # noqa: BLE001 - damaged bytes fail in whatever way they like
        reason = str(error) or type(error).__name__
        raise DataError(f"File '{path}' cannot be read as a .zip archive ({reason}): replace it.") from None


@dataclass(frozen=True)
class Member:
    """An image file inside an archive; stands where a `Path` to an image file may stand."""

    archive: Path
    inner: PurePosixPath
    stored_as: str

    def __str__(self) -> str:
        return f"{self.archive}/{self.inner}"

    @property
    def name(self) -> str:
        """Name without folders."""
        return self.inner.name

    @property
    def suffix(self) -> str:
        """Ending of the name."""
        return self.inner.suffix

    def is_dir(self) -> bool:
        """A member that is a file is no folder."""
        return False

    def is_file(self) -> bool:
        """Always."""
        return True

    def quick_key(self) -> tuple[int, int]:
        """Length and checksum as the archive's directory gives them: equal for equal contents."""
        info = open_archive(self.archive).getinfo(self.stored_as)
        return info.file_size, info.CRC

    def open(self) -> io.BytesIO:
        """Read the member into memory; raises DataError naming it."""
        archive = open_archive(self.archive)
        if archive.getinfo(self.stored_as).file_size > LARGEST_MEMBER:
            raise DataError(f"Image file '{self}' has more than {LARGEST_MEMBER >> 20} MiB: remove it.")
        try:
            return io.BytesIO(archive.read(self.stored_as))
        except Exception as error:  # noqa: BLE001 - as above
            reason = str(error) or type(error).__name__
            raise DataError(f"Image file '{self}' cannot be read from its archive ({reason}): replace it.") from None


@dataclass(frozen=True)
class ArchiveFolder:
    """A folder inside an archive, with what lies in it; `unplaced` (of the topmost): members whose name is taken."""

    archive: Path
    inner: PurePosixPath
    children: "dict[str, ArchiveFolder | Member]" = field(default_factory=dict)
    unplaced: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return str(self.archive) if self.inner == PurePosixPath() else f"{self.archive}/{self.inner}"

    @property
    def name(self) -> str:
        """Name without the folders above."""
        return self.inner.name

    @property
    def suffix(self) -> str:
        """Folders have no ending."""
        return ""

    def is_dir(self) -> bool:
        """Always."""
        return True

    def is_file(self) -> bool:
        """A folder is no file."""
        return False

    def iterdir(self) -> "list[ArchiveFolder | Member]":
        """What lies directly in it."""
        return list(self.children.values())


def _folder(root: ArchiveFolder, parts: tuple[str, ...]) -> ArchiveFolder | None:
    """The folder `parts` below `root`, made where it is missing; None where a file has the name of a folder."""
    folder = root
    for part in parts:
        child = folder.children.setdefault(part, ArchiveFolder(root.archive, folder.inner / part))
        if not isinstance(child, ArchiveFolder):
            return None
        folder = child
    return folder


def archive_root(path: Path) -> ArchiveFolder:
    """The folder that holds everything in the zip `path`; raises DataError if it cannot be read.

    Many programs put all in one folder called as the archive; it is passed over.
    """
    root = ArchiveFolder(path, PurePosixPath())
    for info in open_archive(path).infolist():
        inner = PurePosixPath(info.filename.lstrip("/"))
        if info.filename.endswith("/"):  # `is_dir` of a name that is empty is an error of its own
            _folder(root, inner.parts)
            continue
        folder = _folder(root, inner.parts[:-1])
        member = Member(path, inner, info.filename)
        if folder is None or folder.children.setdefault(inner.name, member) is not member:
            root.unplaced.append(info.filename)
    own = root.children.get(path.stem)
    others = [name for name in root.children if not name.startswith((".", "__")) and name != path.stem]
    return replace(own, unplaced=root.unplaced) if isinstance(own, ArchiveFolder) and not others else root
