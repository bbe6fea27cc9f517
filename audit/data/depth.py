"""From stored numbers to [0, 1]: the one place, for every kind of source, where pixels are divided by white.

Pixels are `value / white` in [0, 1]. Without `data.white`, white is the largest number that the storage can hold: 255
for bytes, 65535 for 16-bit grey, 4095 for 12-bit TIFF, and 1 for floating point; 32-bit integers have none. It is never
an image's own maximum, so that exposure differences between images survive. Values above a configured white become 1
and are counted (`audit.data.describe`); values below 0 and NaN are refused, for they have no place in [0, 1].
"""

from dataclasses import dataclass

import numpy as np

from audit.errors import DataError

BYTE = 255


@dataclass(frozen=True)
class Stored:
    """Numbers of one image as its source holds them, `[H, W]` or `[H, W, 3]`.

    `top` is the largest number that the storage can hold (None: floating point or 32-bit integers); `inverted`: 0 is
    white, as in TIFF files of the kind "min is white"; `reduced`: 16 bits a channel of which 8 were read;
    `transparent`: some pixel is not opaque and was laid over black.
    """

    values: np.ndarray
    top: float | None
    inverted: bool = False
    reduced: bool = False
    transparent: bool = False

    @property
    def natural_white(self) -> float | None:
        """The number that means white unless `data.white` says otherwise; None: unknown."""
        return 1.0 if self.values.dtype.kind == "f" else self.top


def stored_array(values: np.ndarray) -> Stored:
    """Wrap an array of an archive: bytes end at 255, 16-bit integers at 65535."""
    unsigned = values.dtype.kind == "u" and values.dtype.itemsize <= 2
    return Stored(values, float(np.iinfo(values.dtype).max) if unsigned else None)


def chosen_white(stored: Stored, white: float | None, what: str) -> float:
    """Return the number that means white in `stored`, called `what` in messages; raises DataError if it has none."""
    if white is None:
        if stored.natural_white is None:
            raise DataError(
                f"{what} holds 32-bit integers, whose white is unknown: set data.white or save it as 8 or 16 bits."
            )
        return stored.natural_white
    if stored.reduced and white != 65535:
        raise DataError(
            f"{what} holds colour of 16 bits a channel, of which the upper 8 are read: data.white = {white:g} cannot "
            "be applied; save it as 8-bit colour or as 16-bit grey."
        )
    white = BYTE if stored.reduced else white
    if stored.top is not None and white > stored.top:
        raise DataError(
            f"{what} holds no number above {stored.top:.0f} where data.white is {white:g}: "
            "give all images one depth, or correct data.white."
        )
    return white


def to_unit(stored: Stored, white: float | None, what: str) -> np.ndarray:
    """Return pixels: uint8 where white is 255 and bytes are stored, else float32 in [0, 1]; raises DataError.

    `what` names the image in messages, for instance "Image file 'a.png'".
    """
    values, top = stored.values, chosen_white(stored, white, what)
    if values.dtype == np.uint8 and top == BYTE:
        return values
    # `not (a and b)` also catches NaN, which compares false with everything.
    if values.dtype.kind in "fi" and values.size and not values.min() >= 0:
        raise DataError(f"{what} holds NaN or numbers outside [0, {top:g}]: scale it.")
    if values.dtype.kind == "f" and values.size and not (values.max() <= top or white is not None):
        raise DataError(
            f"{what} holds NaN or numbers outside [0, 1]: scale it, or set data.white to the number that means white."
        )
    wide = values.dtype.itemsize > 2 and values.dtype.kind != "f"
    pixels = (values / top if wide else values.astype(np.float32, copy=False) / np.float32(top)).astype(np.float32)
    pixels = np.minimum(pixels, np.float32(1))
    return 1 - pixels if stored.inverted else pixels
