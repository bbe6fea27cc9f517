"""Regions: where the class's meaning lies, given as mask files or as boxes, brought to the image's final size.

A pixel of a mask is inside where it is not zero (of a palette: where its index is not zero). A box is half-open in
pixels of the original image, `x0 <= x < x1`. After resizing, a pixel belongs to a box if its centre does; for
whole-numbered boxes this is exactly what nearest-neighbour resizing of the drawn box gives, so that masks and boxes
mean the same.
"""

import math
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from audit.data.dicom import is_dicom
from audit.data.images import OF_PILLOW, open_upright, read_header
from audit.errors import DataError

Box = tuple[float, float, float, float]
"""`(x0, y0, x1, y1)` in pixels of the original image; x1 and y1 are the first column and row outside."""


def is_region_name(name: str) -> bool:
    """Whether a region may be called so: its name becomes part of file names."""
    return re.fullmatch(r"[\w .+-]+", name) is not None


def _refuse_kind(path: Path) -> None:
    if path.suffix.lower() in {".jpg", ".jpeg"}:
        raise DataError(f"Mask file '{path}' is a JPEG, whose compression leaves non-zero noise: save it as PNG.")
    if is_dicom(path, OF_PILLOW):
        raise DataError(f"Mask file '{path}' is DICOM: save it as PNG, zero outside.")


def check_mask_file(path: Path, height: int, width: int, place: str = "") -> None:
    """Raise DataError unless a mask file has the size of its image, which stands in `place`; no pixel is decoded."""
    _refuse_kind(path)
    mask = read_header(path)
    if (mask.height, mask.width) != (height, width):
        raise DataError(
            f"Mask file '{path}'{place and f' in {place}'} is {mask.width} x {mask.height} pixels but its image is "
            f"{width} x {height}: a mask must have the size of its image."
        )


def decode_mask(path: Path) -> np.ndarray:
    """Decode a mask file to bool `[H, W]`, non-zero inside; raises DataError for damaged or lossy (JPEG) files.

    Of a file with transparency, only pixels that are both visible and not black are inside.
    """
    _refuse_kind(path)
    image = open_upright(path)
    try:
        return _inside(image)
    except MemoryError:
        raise DataError(
            f"Mask file '{path}' has {image.width} x {image.height} pixels, which memory does not suffice to decode: "
            "store it smaller, together with its image."
        ) from None


def _inside(image: Image.Image) -> np.ndarray:
    if image.mode in {"1", "L", "P", "I", "F"} or image.mode.startswith("I;16"):
        return np.asarray(image) != 0
    if image.mode == "LA":
        return (np.asarray(image) != 0).all(axis=2)
    rgba = np.asarray(image.convert("RGBA"))
    return (rgba[..., :3] != 0).any(axis=2) & (rgba[..., 3] != 0)


def _nearest(source: int, size: int) -> np.ndarray:
    # Source pixel that holds the centre of each pixel, in whole numbers: Pillow accumulates rounding errors at ties.
    return (2 * np.arange(size) + 1) * source // (2 * size)


def resize_mask(mask: np.ndarray, side: int | None) -> np.ndarray:
    """Resize bool `[H, W]` to `side` x `side` by nearest neighbour; None leaves it."""
    if side is None or mask.shape == (side, side):
        return mask
    rows, columns = (_nearest(length, side) for length in mask.shape)
    return mask[rows[:, None], columns[None, :]]


def parse_boxes(text: str) -> tuple[Box, ...]:
    """Parse `"x0 y0 x1 y1"`, several boxes separated by `;`; raises ValueError with the reason."""
    boxes = []
    for part in text.split(";"):
        words = re.split(r"[\s,]+", part.strip())
        try:
            numbers = [float(word) for word in words]
        except ValueError:
            raise ValueError("it must be four numbers 'x0 y0 x1 y1'") from None
        if len(numbers) != 4 or not all(map(math.isfinite, numbers)):
            raise ValueError("it must be four numbers 'x0 y0 x1 y1'")
        x0, y0, x1, y1 = numbers
        if not (x0 < x1 and y0 < y1):
            raise ValueError("x0 < x1 and y0 < y1 must hold")
        boxes.append((x0, y0, x1, y1))
    return tuple(boxes)


def check_boxes(boxes: tuple[Box, ...], height: int, width: int) -> None:
    """Raise ValueError with the reason unless every box lies inside an image of `height` x `width` pixels."""
    for x0, y0, x1, y1 in boxes:
        if x0 < 0 or y0 < 0 or x1 > width or y1 > height:
            raise ValueError(f"it must lie inside the image of width {width} and height {height}")


def _covered(start: float, stop: float, source: int, size: int) -> np.ndarray:
    # The order of operations keeps whole-numbered edges exact: no division happens before the comparison.
    centres = (2 * np.arange(size) + 1) * source
    return (centres >= start * 2 * size) & (centres < stop * 2 * size)


def boxes_mask(boxes: tuple[Box, ...], source: tuple[int, int], size: tuple[int, int]) -> np.ndarray:
    """Draw the union of `boxes`, given in an image of `source` (height, width), as bool mask of `size`."""
    mask = np.zeros(size, dtype=bool)
    for x0, y0, x1, y1 in boxes:
        rows = _covered(y0, y1, source[0], size[0])
        columns = _covered(x0, x1, source[1], size[1])
        mask |= rows[:, None] & columns[None, :]
    return mask


def read_mask(row: int, paths: Sequence[Path | None], side: int | None) -> np.ndarray | None:
    """Decode the mask of `row`, or None; bound with `functools.partial` it is a picklable `MaskReader`."""
    path = paths[row]
    return None if path is None else resize_mask(decode_mask(path), side)


def read_region(
    row: int,
    paths: Sequence[Path | None],
    boxes: tuple[tuple[Box, ...] | None, ...],
    sizes: tuple[tuple[int, int], ...],
    side: int | None,
) -> np.ndarray | None:
    """Return the mask of `row` from its file or else its boxes, or None; `sizes` are the original (height, width)."""
    drawn = boxes[row]
    if drawn is None:
        return read_mask(row, paths, side)
    return boxes_mask(drawn, sizes[row], sizes[row] if side is None else (side, side))
