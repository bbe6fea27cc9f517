"""What an image file says of itself before its pixels are decoded; common to all readers of image files."""

import io
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

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


@dataclass(frozen=True)
class Header:
    """Height and width (after EXIF orientation), channels, and depth and colour in words.

    `turned`: an EXIF orientation was applied.
    """

    height: int
    width: int
    channels: int
    kind: str = "8-bit grey"
    turned: bool = False
