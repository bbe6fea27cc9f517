"""How the images of a set were read: kinds, sizes, what was left out, and the stored numbers of single images.

A loader fills a `Reading`; `audit.data.describe` turns it into the record and the notices of an audit. Nothing is
decoded here before `examine` is called, which can keep what it decodes for the audit itself.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from audit.data.depth import Stored, chosen_white
from audit.results import LeftOut

EXAMPLES = 3
"""Names given with every number."""


@dataclass(frozen=True)
class Look:
    """What one image's stored numbers are like; shares are of its pixels (`edge_saturated`: of its outermost ones)."""

    smallest: float
    largest: float
    white: float
    saturated: float
    edge_saturated: float
    clipped: float
    transparent: bool
    deep: bool
    inverted: bool = False

    @property
    def brightest(self) -> float:
        """Largest number as share of white, at most 1 (where 0 is white: of black)."""
        return min(1.0, self.largest / self.white)


def look_at(stored: Stored, white: float | None, what: str) -> Look:
    """Describe the numbers of one image, named `what` in messages. Raises DataError."""
    values, top = stored.values, chosen_white(stored, white, what)
    bright = values <= 0 if stored.inverted else values >= top
    return Look(
        smallest=float(values.min()),
        largest=float(values.max()),
        white=top,
        saturated=float(bright.mean()),
        edge_saturated=float(np.concatenate([bright[0], bright[-1], bright[:, 0], bright[:, -1]]).mean()),
        clipped=float((values > top).mean()),
        transparent=stored.transparent,
        deep=stored.values.dtype != np.uint8 and stored.values.dtype.kind != "f",
        inverted=stored.inverted,
    )


def digest(pixels: np.ndarray) -> bytes:
    """Hash of an image's content: equal for equal pixels, whether they are held as bytes or as floats in [0, 1]."""
    levels = pixels.astype(np.uint16) * 257 if pixels.dtype == np.uint8 else np.rint(pixels * 65535).astype(np.uint16)
    return hashlib.blake2b(np.ascontiguousarray(levels).data, digest_size=16, key=repr(levels.shape).encode()).digest()


@dataclass(frozen=True)
class Reading:
    """How a set was read, row by row of the whole set (not of a selection).

    `examine` decodes a row and returns what its numbers are like and a hash of its pixels; with `keep` what is decoded
    stays for the audit. `bytes_key` gives a cheap key of a row's encoded content that differs only for different
    bytes (`thorough` False) or a hash of all of them; None: there are no encoded bytes. `origin` is the package and
    version that read the set; None: this one.
    """

    examine: "Callable[[int, bool], tuple[Look, bytes]]"
    sizes: np.ndarray
    kinds: tuple[str, ...]
    turned: tuple[int, ...] = ()
    left_out: tuple[LeftOut, ...] = ()
    bytes_key: "Callable[[int, bool], object] | None" = None
    white: float | None = None
    origin: str | None = None


def left_out(reason: str, names: list[str]) -> LeftOut:
    """Count `names` and keep the first few."""
    return LeftOut(reason=reason, n=len(names), examples=names[:EXAMPLES])
