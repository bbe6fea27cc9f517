"""From an image file to pixels: one place that decides bit depth, transparency, orientation, channels and size.

Pixels leave as uint8, or as float32 in [0, 1] where the file holds more than 8 bits; `AuditSet.images` turns both into
the float32 `[N, C, H, W]` of the pixel contract. Decisions that a reader of numbers must know:

- 16-bit grey is divided by 65535, not by its own maximum, so that exposure differences between images survive;
- transparent pixels are composited over black, the colour of "no signal";
- the EXIF orientation is applied, so that masks and boxes refer to the image as a viewer shows it;
- colour becomes grey by ITU-R 601-2 luma; grey becomes RGB by repetition;
- resizing is bilinear with antialiasing (Pillow's filter widens with the reduction) to a square; aspect is not kept.
"""

import io
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from audit.data.archive import Member
from audit.errors import DataError

ImageFile = Path | Member
"""Where an encoded image lies: a file, or a member of an archive."""

EXTENSIONS = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp")
"""Endings, in lower case, that make a file in a class folder an image."""

KEPT_BYTES = 2**28
"""How much of a set of image files stays decoded in memory."""

GREY_MODES = frozenset({"1", "L", "LA", "La", "I;16", "I;16L", "I;16B", "I;16N", "F"})
ORIENTATION_TAG = 0x0112
TRANSPOSES = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)

# What Pillow's decoders raise on damaged files, besides OSError.
DECODING_ERRORS = (
    OSError,
    ValueError,
    SyntaxError,
    EOFError,
    LookupError,
    TypeError,
    AttributeError,
    OverflowError,
    NotImplementedError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)


@dataclass(frozen=True)
class Header:
    """What an image file says of itself before its pixels are decoded; height and width after EXIF orientation."""

    height: int
    width: int
    channels: int


def _orientation(image: Image.Image) -> int:
    """EXIF orientation 1 to 8 without decoding pixels; TIFF is 1 because Pillow turns it upright by itself."""
    if image.format == "TIFF":
        return 1
    if image.format == "PNG" and "exif" not in image.info:
        return 1  # `getexif` would decode the whole file to look behind the pixels
    value = image.getexif().get(ORIENTATION_TAG, 1)
    return value if value in TRANSPOSES else 1


def _unreadable(path: ImageFile, error: BaseException) -> DataError:
    if isinstance(error, FileNotFoundError):
        return DataError(f"Image file '{path}' does not exist: check the path.")
    reason = "not an image that Pillow knows" if isinstance(error, Image.UnidentifiedImageError) else str(error)
    return DataError(f"Image file '{path}' cannot be decoded ({reason or type(error).__name__}): replace or remove it.")


def _refuse_stack(image: Image.Image, path: ImageFile) -> None:
    frames = getattr(image, "n_frames", 1)
    # MPO is a camera's JPEG with a preview behind it; the first frame is the image.
    if image.format != "MPO" and frames > 1:
        raise DataError(f"Image file '{path}' holds {frames} frames: save the one to audit as its own file.")


def _content(path: ImageFile) -> Path | io.BytesIO:
    return path.open() if isinstance(path, Member) else path


def read_header(path: ImageFile) -> Header:
    """Read size and channels of an image file without decoding it; raises DataError naming the file."""
    try:
        with Image.open(_content(path)) as image:
            _refuse_stack(image, path)
            width, height = image.size
            if _orientation(image) >= 5:
                width, height = height, width
            return Header(height, width, 1 if image.mode in GREY_MODES else 3)
    except DECODING_ERRORS as error:
        raise _unreadable(path, error) from None


def open_upright(path: ImageFile) -> Image.Image:
    """Decode an image file and apply its EXIF orientation; raises DataError naming the file."""
    try:
        with Image.open(_content(path)) as image:
            _refuse_stack(image, path)
            orientation = _orientation(image)
            image.load()
            return image.transpose(TRANSPOSES[orientation]) if orientation > 1 else image.copy()
    except DECODING_ERRORS as error:
        raise _unreadable(path, error) from None


def _over_black(image: Image.Image) -> Image.Image:
    layer = image.convert("RGBA")
    flat = Image.alpha_composite(Image.new("RGBA", layer.size, (0, 0, 0, 255)), layer)
    return flat.convert("L" if image.mode in GREY_MODES else "RGB")


def _float_pixels(pixels: np.ndarray, path: ImageFile) -> np.ndarray:
    # `not (a and b)` also catches NaN, which compares false with everything.
    if pixels.size and not (pixels.min() >= 0 and pixels.max() <= 1):
        raise DataError(f"Image file '{path}' holds NaN or numbers outside [0, 1]: scale it.")
    return pixels.astype(np.float32, copy=False)


def decode_image(path: ImageFile) -> np.ndarray:
    """Decode an image file: uint8 or float32 in [0, 1], `[H, W]` (grey) or `[H, W, 3]`.

    Raises DataError naming the file if it is missing, damaged, a stack of frames, or of a depth without a known scale.
    """
    image = open_upright(path)
    if image.mode.startswith("I;16"):
        return np.asarray(image).astype(np.float32) / 65535
    if image.mode == "F":
        return _float_pixels(np.asarray(image), path)
    if image.mode == "I":
        raise DataError(f"Image file '{path}' holds 32-bit integers, whose white is unknown: save it as 8 or 16 bits.")
    if "A" in image.mode or "a" in image.mode or "transparency" in image.info:
        image = _over_black(image)
    return np.asarray(image.convert("L" if image.mode in GREY_MODES else "RGB"))


def convert_channels(pixels: np.ndarray, channels: int | None) -> np.ndarray:
    """Convert `[H, W]` or `[H, W, 3]` to grey `[H, W]` (channels 1) or `[H, W, 3]` (channels 3); None leaves it."""
    if channels == 1 and pixels.ndim == 3:
        if pixels.dtype == np.uint8:
            return np.asarray(Image.fromarray(pixels).convert("L"))
        return (pixels @ LUMA).astype(np.float32)
    if channels == 3 and pixels.ndim == 2:
        return np.repeat(pixels[..., None], 3, axis=2)
    return pixels


def _resize_plane(plane: np.ndarray, side: int) -> np.ndarray:
    return np.asarray(Image.fromarray(plane).resize((side, side), Image.Resampling.BILINEAR))


def resize_image(pixels: np.ndarray, side: int | None) -> np.ndarray:
    """Resize `[H, W]` or `[H, W, 3]` to `side` x `side`, bilinear with antialiasing, same type; None leaves it."""
    if side is None or pixels.shape[:2] == (side, side):
        return pixels
    if pixels.dtype == np.uint8:
        return _resize_plane(pixels, side)
    planes = pixels[..., None] if pixels.ndim == 2 else pixels
    resized = np.stack([_resize_plane(np.ascontiguousarray(planes[..., c]), side) for c in range(planes.shape[2])], 2)
    resized = resized.clip(0, 1)  # rounding may leave [0, 1] by an ulp
    return resized[..., 0] if pixels.ndim == 2 else resized


def convert_image(pixels: np.ndarray, side: int | None, channels: int | None) -> np.ndarray:
    """Bring decoded pixels to the channels and the square side that the configuration asks for."""
    return resize_image(convert_channels(pixels, channels), side)


class KeepingReader:
    """An `ImageReader` that keeps converted pixels until they fill `budget` bytes, so that files are decoded once.

    Every model reads the same images; decoding a large radiograph costs far more than the small pixels that are kept.
    Nothing is evicted: images are read in whole passes, for which evicting the oldest would drop each before its reuse.
    Sent to another process it starts empty.
    """

    def __init__(self, read: Callable[[int], np.ndarray], budget: int = KEPT_BYTES) -> None:
        self._read = read
        self._budget = budget
        self._left = budget
        self._kept: dict[int, np.ndarray] = {}

    def __call__(self, row: int) -> np.ndarray:
        pixels = self._kept.get(row)
        if pixels is None:
            pixels = self._read(row)
            if pixels.nbytes <= self._left:
                self._left -= pixels.nbytes
                self._kept[row] = pixels
        return pixels

    def __reduce__(self) -> tuple[type["KeepingReader"], tuple[Callable[[int], np.ndarray], int]]:
        return KeepingReader, (self._read, self._budget)


def read_image(row: int, paths: tuple[ImageFile, ...], side: int | None, channels: int | None) -> np.ndarray:
    """Decode and convert the image of `row`; bound with `functools.partial` it is a picklable `ImageReader`."""
    return convert_image(decode_image(paths[row]), side, channels)
