"""What an image file says of itself before its pixels are decoded; common to all readers of image files."""

from dataclasses import dataclass
from pathlib import Path

from audit.data.archive import Member

ImageFile = Path | Member
"""Where an encoded image lies: a file, or a member of an archive."""


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
