"""From an image file to pixels: one place that decides bit depth, transparency, orientation, channels and size.

Pixels leave as uint8, or as float32 in [0, 1] where the file holds more than 8 bits; `AuditSet.images` turns both into
the float32 `[N, C, H, W]` of the pixel contract. Decisions that a reader of numbers must know (those that a training
pipeline usually takes otherwise are counted and become notices of the audit, `audit.data.describe`):

- numbers are divided by white (`audit.data.depth`): 16-bit grey by 65535 unless `data.white` says otherwise;
- of colour with 16 bits a channel, Pillow reads the upper 8;
- grey TIFF files of the kind "min is white" are inverted, at every depth;
- transparent pixels are composited over black, the colour of "no signal" (torchvision drops the transparency instead);
- the EXIF orientation is applied, so that masks and boxes refer to the image as a viewer shows it (torchvision leaves
  the image as it is stored);
- CMYK and YCbCr become RGB by Pillow's formulas, without colour profiles; a palette is looked up;
- colour becomes grey by ITU-R 601-2 luma; grey becomes RGB by repetition;
- DICOM is read by `audit.data.dicom`;
- resizing is bilinear with antialiasing (Pillow's filter widens with the reduction) to a square; aspect is not kept.
"""

import io
import re
import struct
import sys
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from PIL.TiffImagePlugin import TiffImageFile

from audit.data import dicom
from audit.data.colour import LUMA
from audit.data.depth import BYTE, Stored, to_unit
from audit.data.header import Header, ImageFile
from audit.errors import DataError

OF_PILLOW = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp")
EXTENSIONS = (*OF_PILLOW, *dicom.EXTENSIONS)
"""Endings, in lower case, that make a file in a class folder an image."""

FORMATS = ("PNG", "JPEG", "BMP", "TIFF", "WEBP")
"""What the endings of Pillow's files stand for. Pillow goes by the content and knows many more, among them EPS, which
is a program that it would have Ghostscript run."""

KEPT_BYTES = 2**28
"""How much of a set of image files stays decoded in memory."""

GREY_MODES = frozenset({"1", "L", "LA", "La", "I;16", "I;16L", "I;16B", "I;16N", "F"})
ALPHA_MODES = frozenset({"LA", "La", "PA", "RGBA", "RGBa"})
ORIENTATION_TAG = 0x0112
# Of TIFF: how many bits a sample has, and whether 0 is white (DICOM's MONOCHROME1).
BITS_PER_SAMPLE, PHOTOMETRIC, MIN_IS_WHITE = 258, 262, 0
TRANSPOSES = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

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
    MemoryError,  # for a length that a file claims and has not
    NotImplementedError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)


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


def _raw_mode(image: Image.Image) -> str:
    """How Pillow unpacks the pixels, for instance 'RGB;16B' or 'I;12'; empty if it does not say."""
    tiles = getattr(image, "tile", None)
    arguments = tiles[0].args if tiles else ""
    first = arguments[0] if isinstance(arguments, tuple) and arguments else arguments
    return first if isinstance(first, str) else ""


def _tiff_tag(image: Image.Image, tag: int) -> int | None:
    value = image.tag_v2.get(tag) if isinstance(image, TiffImageFile) else None
    value = value[0] if isinstance(value, tuple) and value else value
    return value if isinstance(value, int) else None


def _is_reduced(image: Image.Image) -> bool:
    # 'BGR;16' of a BMP has 16 bits a pixel, not a channel, and no byte order behind them.
    return re.search(r";16[BLN]$", _raw_mode(image)) is not None and not image.mode.startswith("I")


def _has_alpha(image: Image.Image) -> bool:
    return image.mode in ALPHA_MODES or "transparency" in image.info


def _kind(image: Image.Image) -> str:
    """Depth and colour of an opened file, in words."""
    names = {"1": "1-bit", "F": "floating-point grey", "I": "32-bit integers", "P": "palette", "PA": "palette"}
    if image.mode in names:
        return names[image.mode]
    if image.mode.startswith("I;16"):
        return "12-bit grey" if _tiff_tag(image, BITS_PER_SAMPLE) == 12 else "16-bit grey"
    alpha = " with transparency" if _has_alpha(image) else ""
    colour = {"L": "grey", "LA": "grey", "La": "grey", "RGB": "colour", "RGBA": "colour", "RGBa": "colour"}
    depth = "16-bit" if _is_reduced(image) else "8-bit"
    return f"{depth} {colour.get(image.mode, image.mode)}{alpha}"


def _content(path: ImageFile) -> Path | io.BytesIO:
    return path if isinstance(path, Path) else path.open()


def read_header(path: ImageFile, window: dicom.Window | None = None) -> Header:
    """Read size and channels of an image file without decoding it; raises DataError naming the file.

    `window` is of DICOM files: how their numbers become brightness.
    """
    if dicom.is_dicom(path, OF_PILLOW):
        return dicom.read_dicom_header(path, window)
    try:
        with Image.open(_content(path), formats=FORMATS) as image:
            _refuse_stack(image, path)
            width, height = image.size
            orientation = _orientation(image)
            if orientation >= 5:
                width, height = height, width
            channels = 1 if image.mode in GREY_MODES else 3
            turned = orientation > 1 or (_tiff_tag(image, ORIENTATION_TAG) or 1) > 1
            return Header(height, width, channels, sys.intern(_kind(image)), turned)
    except DECODING_ERRORS as error:
        raise _unreadable(path, error) from None


def open_upright(path: ImageFile) -> Image.Image:
    """Decode an image file and apply its EXIF orientation; raises DataError naming the file."""
    return _decoded(path)[0]


def _decoded(path: ImageFile) -> tuple[Image.Image, int | None, bool, bool]:
    """Return the upright image, its bits a sample and whether 0 is white (both only TIFF says), and `reduced`."""
    try:
        with Image.open(_content(path), formats=FORMATS) as image:
            _refuse_stack(image, path)
            orientation, reduced = _orientation(image), _is_reduced(image)
            bits, inverted = _tiff_tag(image, BITS_PER_SAMPLE), _tiff_tag(image, PHOTOMETRIC) == MIN_IS_WHITE
            image.load()
            upright = image.transpose(TRANSPOSES[orientation]) if orientation > 1 else image.copy()
            return upright, bits, inverted, reduced
    except DECODING_ERRORS as error:
        raise _unreadable(path, error) from None


def _over_black(layer: Image.Image, grey: bool) -> Image.Image:
    flat = Image.alpha_composite(Image.new("RGBA", layer.size, (0, 0, 0, 255)), layer)
    return flat.convert("L" if grey else "RGB")


def decode_stored(path: ImageFile, window: dicom.Window | None = None) -> Stored:
    """Decode an image file to the numbers that it holds; raises DataError naming the file if it cannot be decoded.

    Whole bytes are upright, over black, and grey or RGB; deeper grey is as stored, but for DICOM under a `window`.
    """
    if dicom.is_dicom(path, OF_PILLOW):
        return dicom.decode_dicom(path, window)
    image, bits, inverted, reduced = _decoded(path)
    if image.mode.startswith("I;16"):
        return Stored(np.asarray(image), 4095.0 if bits == 12 else 65535.0, inverted)
    if image.mode in ("F", "I"):
        return Stored(np.asarray(image), None, inverted)
    grey, transparent = image.mode in GREY_MODES, False
    try:
        if _has_alpha(image):
            layer = image.convert("RGBA")
            transparent = bool((np.asarray(layer.getchannel("A")) < BYTE).any())
            image = _over_black(layer, grey)
        values = np.asarray(image.convert("L" if grey else "RGB"))
    except DECODING_ERRORS as error:  # a colour space that Pillow cannot convert, such as LAB
        raise _unreadable(path, error) from None
    return Stored(values, float(BYTE), reduced=reduced, transparent=transparent)


def convert_channels(pixels: np.ndarray, channels: int | None) -> np.ndarray:
    """Convert `[H, W]` or `[H, W, 3]` to grey `[H, W]` (channels 1) or `[H, W, 3]` (channels 3); None leaves it."""
    if channels == 1 and pixels.ndim == 3:
        if pixels.dtype == np.uint8:
            return np.asarray(Image.fromarray(pixels).convert("L"))
        return (pixels @ np.array(LUMA, dtype=np.float32)).astype(np.float32)
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


@dataclass(frozen=True)
class Conversion:
    """How the stored numbers of every image of a set become pixels; None leaves size, channels or white as stored.

    `window` is of DICOM files.
    """

    side: int | None
    channels: int | None
    white: float | None
    window: dicom.Window | None = None

    def pixels(self, stored: Stored, what: str) -> np.ndarray:
        """Return uint8 or float32 in [0, 1], `[H, W]` or `[H, W, 3]`; `what` names the image in messages.

        Raises DataError for numbers without a known scale or out of range, and where memory does not suffice.
        """
        try:
            return convert_image(to_unit(stored, self.white, what), self.side, self.channels)
        except MemoryError:
            height, width = stored.values.shape[:2]
            raise DataError(
                f"{what} has {height} x {width} pixels, which memory does not suffice to convert: store it smaller."
            ) from None


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
            self.keep(row, pixels)
        return pixels

    def keep(self, row: int, pixels: np.ndarray) -> None:
        """Keep what was decoded elsewhere, if the budget allows."""
        if row not in self._kept and pixels.nbytes <= self._left:
            self._left -= pixels.nbytes
            self._kept[row] = pixels

    def __reduce__(self) -> tuple[type["KeepingReader"], tuple[Callable[[int], np.ndarray], int]]:
        return KeepingReader, (self._read, self._budget)


def read_image(row: int, paths: Sequence[ImageFile], conversion: Conversion) -> np.ndarray:
    """Decode and convert the image of `row`; bound with `functools.partial` it is a picklable `ImageReader`."""
    return conversion.pixels(decode_stored(paths[row], conversion.window), f"Image file '{paths[row]}'")
