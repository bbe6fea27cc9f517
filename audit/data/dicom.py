"""DICOM images by pydicom (the extra `dicom`): one frame a file, grey or colour.

The numbers that a file stores mean brightness in two ways only, and nothing in between is guessed:

- without `data.window`, unsigned numbers that no slope or intercept rescales are divided by white, the largest that the
  file's depth (Bits Stored) can hold. A window in the file is not applied, and a notice says so;
- with `data.window` the numbers are rescaled first, so that a window for CT is in Hounsfield units; from its lower end
  (black) to its upper end (white) they rise as DICOM PS3.3, C.11.2.1.2 defines it. `"file"` is each file's own window
  or table (VOI LUT).

Signed and rescaled numbers have no black and white of their own, so that they are refused without a window.
MONOCHROME1, where 0 is white, is inverted after that; YBR and palettes become RGB. Neither overlays nor the aspect of
pixels are applied.
"""

import io
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Literal

import numpy as np

from audit.data.depth import Stored, stored_array
from audit.data.header import Header, ImageFile
from audit.errors import DataError

if TYPE_CHECKING:
    from pydicom import Dataset

Window = Literal["file"] | tuple[float, float]
"""Each file's own, or centre and width of one for all."""

EXTENSIONS = (".dcm", ".dicom")
MOST_PIXELS = 178_956_970
"""What Pillow allows of other formats."""
PREAMBLE = 128
MARK = b"DICM"
DEFLATED = "1.2.840.10008.1.2.1.99"
TAGS = (
    "Rows", "Columns", "SamplesPerPixel", "PhotometricInterpretation", "BitsAllocated", "BitsStored",
    "PixelRepresentation", "NumberOfFrames", "RescaleSlope", "RescaleIntercept", "ModalityLUTSequence", "WindowCenter",
    "WindowWidth", "VOILUTFunction", "VOILUTSequence",
)  # fmt: skip
"""Elements that the reader looks at, beside the pixels."""


def is_dicom(path: ImageFile, others: tuple[str, ...]) -> bool:
    """Whether a file is to be read as DICOM: by its ending, or by its content unless its ending is one of `others`."""
    suffix = path.suffix.lower()
    return suffix in EXTENSIONS if suffix in (*EXTENSIONS, *others) else is_marked(path)


def is_marked(path: ImageFile) -> bool:
    """Whether a file has the mark of DICOM, whatever it is called."""
    try:
        with _content(path) as file:
            return file.read(PREAMBLE + len(MARK))[PREAMBLE:] == MARK
    except OSError:
        return False


def is_installed() -> bool:
    """Whether DICOM files can be read."""
    return find_spec("pydicom") is not None


def _content(path: ImageFile) -> BinaryIO | io.BytesIO:
    return path.open("rb") if isinstance(path, Path) else path.open()


@contextmanager
def _reading(path: ImageFile) -> Iterator[None]:
    """Turn what damaged bytes raise into one sentence, and keep pydicom's remarks on them to itself."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except DataError:
        raise
    except ImportError as error:
        if error.name != "pydicom":
            raise
        raise DataError(
            f"Image file '{path}' is DICOM, which needs pydicom: run `pip install 'spruce-audit[dicom]'`."
        ) from None
    except Exception as error:  # noqa: BLE001 - damaged bytes fail in whatever way they like
        said = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"Image file '{path}' cannot be decoded as DICOM ({said}): replace or remove it.") from None


def _open(path: ImageFile, pixels: bool) -> "Dataset":
    """Read the elements of a file, with or without those of its pixels.

    The transfer syntax is looked at first: of a deflated file pydicom unfolds all, however much that is.
    """
    from pydicom import dcmread
    from pydicom.filereader import read_dataset

    with _content(path) as file:
        if file.read(PREAMBLE + len(MARK))[PREAMBLE:] != MARK:
            raise DataError(f"Image file '{path}' is no DICOM file, for '{MARK.decode()}' is missing: save it anew.")
        meta = read_dataset(file, False, True, stop_when=lambda tag, _vr, _length: tag >> 16 != 2)
        _check_syntax(path, str(meta.get("TransferSyntaxUID", "")))
        file.seek(0)
        return dcmread(file, stop_before_pixels=not pixels, specific_tags=None if pixels else list(TAGS))


def _check_syntax(path: ImageFile, syntax: str) -> None:
    """Raise DataError for a file whose pixels cannot be decoded on this machine."""
    from pydicom.pixels import get_decoder
    from pydicom.uid import UID

    if syntax == DEFLATED:
        raise DataError(f"Image file '{path}' is a deflated DICOM file, which may unfold to any size: save it anew.")
    try:
        decoder = get_decoder(UID(syntax))
    except NotImplementedError:
        raise DataError(
            f"Image file '{path}' has the transfer syntax '{UID(syntax).name}', which is none of images: save it as "
            "Explicit VR Little Endian."
        ) from None
    if not decoder.is_available:
        raise DataError(
            f"Image file '{path}' is compressed as {UID(syntax).name}, for which no decoder is installed: run "
            "`pip install python-gdcm`, or save it uncompressed."
        )


def _is_rescaled(image: "Dataset") -> bool:
    slope, intercept = image.get("RescaleSlope"), image.get("RescaleIntercept")
    identity = (1.0 if slope is None else float(slope), 0.0 if intercept is None else float(intercept)) == (1.0, 0.0)
    return not identity or "ModalityLUTSequence" in image


def _own_window(image: "Dataset") -> tuple[float, float] | None:
    """Centre and width of the first window in a file; None if it has none."""
    found = [image.get("WindowCenter"), image.get("WindowWidth")]
    first = [value[0] if isinstance(value, list | tuple) or hasattr(value, "append") else value for value in found]
    return None if None in first else (float(first[0]), float(first[1]))


def _check(image: "Dataset", path: ImageFile, window: Window | None) -> None:
    """Raise DataError unless the file holds one image whose numbers can be brought to [0, 1]."""
    for name in ("Rows", "Columns", "PhotometricInterpretation", "BitsStored"):
        if image.get(name) is None:
            raise DataError(f"Image file '{path}' is DICOM without an image (it has no {name}): remove it.")
    frames = int(image.get("NumberOfFrames") or 1)
    if frames > 1:
        raise DataError(f"Image file '{path}' holds {frames} frames: save the one to audit as its own file.")
    if not 0 < int(image.Rows) * int(image.Columns) <= MOST_PIXELS:
        raise DataError(
            f"Image file '{path}' claims {image.Columns} x {image.Rows} pixels, and up to {MOST_PIXELS} are read: "
            "replace or remove it."
        )
    if not _is_grey(image):
        return
    signed = image.get("PixelRepresentation") == 1
    if window is None and (signed or _is_rescaled(image)):
        what = "numbers that are rescaled, as Hounsfield units are" if _is_rescaled(image) else "signed numbers"
        raise DataError(
            f"Image file '{path}' holds {what}, whose black and white are unknown: set data.window to [centre, width], "
            'such as [40, 400] for soft tissue in CT, or to "file" for the window of each file.'
        )
    if window == "file" and "VOILUTSequence" not in image:
        own = _own_window(image)
        if own is None:
            raise DataError(f"Image file '{path}' has no window of its own: set data.window to [centre, width].")
        if not own[1] > (1 if _function(image) == "LINEAR" else 0):
            raise DataError(
                f"Image file '{path}' has a window of width {own[1]:g}: set data.window to [centre, width]."
            )


def _is_grey(image: "Dataset") -> bool:
    return str(image.PhotometricInterpretation).startswith("MONOCHROME")


def _is_inverted(image: "Dataset") -> bool:
    return bool(image.PhotometricInterpretation == "MONOCHROME1")


def _function(image: "Dataset") -> str:
    return str(image.get("VOILUTFunction") or "LINEAR").upper()


def _kind(image: "Dataset", window: Window | None) -> str:
    """Depth, colour and what is done to the numbers, in words."""
    if not _is_grey(image):
        return f"DICOM {int(image.BitsStored)}-bit colour"
    words = [f"DICOM {int(image.BitsStored)}-bit grey"]
    if _is_inverted(image):
        words.append("0 is white")
    if window == "file":
        words.append("window of the file")
    elif window is not None:
        words.append(f"window {window[0]:g} / {window[1]:g}")
    elif _own_window(image) is not None or "VOILUTSequence" in image:
        words.append(NOT_APPLIED)
    return ", ".join(words)


NOT_APPLIED = "own window not applied"
"""In the kind of a file that has a window where `data.window` asks for none."""


def read_dicom_header(path: ImageFile, window: Window | None) -> Header:
    """Read what a DICOM file says of its image, without pixels; raises DataError naming the file."""
    with _reading(path):
        image = _open(path, pixels=False)
        _check(image, path, window)
        kind = _kind(image, window)
        return Header(int(image.Rows), int(image.Columns), 1 if _is_grey(image) else 3, kind)


def decode_dicom(path: ImageFile, window: Window | None) -> Stored:
    """Decode a DICOM file to the numbers that it holds, or to [0, 1] by a window; raises DataError naming the file."""
    with _reading(path):
        from pydicom.pixels import apply_color_lut, apply_modality_lut, pixel_array

        image = _open(path, pixels=True)
        _check(image, path, window)
        values = pixel_array(image)
        if not _is_grey(image):
            return stored_array(apply_color_lut(values, image) if values.ndim == 2 else values)
        if window is None:
            top = float(2 ** int(image.BitsStored) - 1) if values.dtype.itemsize <= 2 else None
            return Stored(values, top, _is_inverted(image))
        return Stored(_windowed(apply_modality_lut(values, image), image, window), None, _is_inverted(image))


def _windowed(values: np.ndarray, image: "Dataset", window: Window) -> np.ndarray:
    """Bring rescaled numbers to [0, 1], as float32."""
    from pydicom.pixels import apply_voi

    if window == "file" and "VOILUTSequence" in image:
        bits = int(image.VOILUTSequence[0].LUTDescriptor[2])
        return (apply_voi(values, image) / np.float64(2**bits - 1)).astype(np.float32)
    own = _own_window(image) if window == "file" else window
    assert own is not None
    shares = RAMPS[_function(image) if window == "file" else "LINEAR"](values.astype(np.float64), *own)
    return shares.clip(0, 1).astype(np.float32)


RAMPS: dict[str, Callable[[Any, float, float], Any]] = {
    "LINEAR": lambda x, centre, width: (x - (centre - 0.5)) / (width - 1) + 0.5,
    "LINEAR_EXACT": lambda x, centre, width: (x - centre) / width + 0.5,
    "SIGMOID": lambda x, centre, width: 1 / (1 + np.exp(-4 * (x - centre) / width)),
}
"""From numbers, centre and width to shares of white, by the name of VOI LUT Function; to be clipped to [0, 1]."""
