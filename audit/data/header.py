"""What an image file says of itself before its pixels are decoded; common to all readers of image files."""

import io
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from audit.data.archive import Member


@dataclass(frozen=True)
class Cell:
    """An image file that is a cell of a table; stands where a `Path` to an image file may stand."""

    read: Callable[[int], bytes]
    row: int
    called: str

    def __str__(self) -> str:
        return self.called

    @property
    def name(self) -> str:
        """Name without what holds it."""
        return PurePosixPath(self.called).name

    @property
    def suffix(self) -> str:
        """Cells have no ending."""
        return ""

    def open(self) -> io.BytesIO:
        """Read the cell into memory; raises DataError naming it."""
        return io.BytesIO(self.read(self.row))

    def quick_key(self) -> tuple[int, int]:
        """Length and checksum: equal for equal contents."""
        content = self.read(self.row)
        return len(content), zlib.crc32(content)


ImageFile = Path | Member | Cell
"""Where an encoded image lies: a file, a member of an archive, or a cell of a table."""


T = TypeVar("T")


class Files(Sequence[T]):
    """Files in order. A `Path` takes some 400 bytes, so what is kept of one is its text, from which it is made anew."""

    def __init__(self, files: Iterable[T]) -> None:
        self._held = tuple(str(file) if isinstance(file, Path) else file for file in files)

    def __len__(self) -> int:
        return len(self._held)

    def __getitem__(self, place: Any) -> Any:  # a file, or a tuple of files
        found = self._held[place]
        return tuple(map(_path, found)) if isinstance(place, slice) else _path(found)


def _path(held: object) -> object:
    return Path(held) if isinstance(held, str) else held


@dataclass(frozen=True, slots=True)
class Header:
    """Height and width (after EXIF orientation), channels, and depth and colour in words.

    `turned`: an EXIF orientation was applied.
    """

    height: int
    width: int
    channels: int
    kind: str = "8-bit grey"
    turned: bool = False
