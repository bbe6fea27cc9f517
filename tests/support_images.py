"""One image file through the steps that an audit's reader takes, without a set around it."""

from pathlib import Path

import numpy as np

from audit.data.images import Conversion, read_image


def decode_image(path: Path, white: float | None = None) -> np.ndarray:
    """Decode an image file to uint8 or float32 in [0, 1] at its own size and channels; `white` is `data.white`."""
    return read_image(0, (path,), Conversion(None, None, white))
