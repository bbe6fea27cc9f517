"""The published severities: those of ImageNet-C, made for 224 pixels, and those of CIFAR-10-C, made for 32.

Hendrycks & Dietterich 2019; the numbers are those of `make_imagenet_c.py` and `make_cifar_c.py` of their public
repository (Apache-2.0), apart from the elastic transform of ImageNet-C, whose numbers are those of imagecorruptions
1.1.2: it leaves out the original's affine part. A small picture holds less that could be destroyed, so CIFAR-10-C is
far milder at 32 pixels than ImageNet-C's constants are there.
"""

from dataclasses import dataclass
from typing import Literal

ListName = Literal["imagenet-c", "cifar-c"]
LARGEST_SMALL_SIDE = 64
"""Longest shorter side that 'auto' corrupts as CIFAR-10-C: 64 pixels are twice 32, and 3.5 times less than 224."""


@dataclass(frozen=True)
class Constants:
    """One published list; every entry holds five severities, and lengths are pixels of an image of `side` pixels."""

    name: ListName
    side: int
    gaussian_sigma: tuple[float, ...]
    photons: tuple[float, ...]
    impulse_share: tuple[float, ...]
    defocus: tuple[tuple[float, float], ...]
    """Radius of the disk and standard deviation of its softening."""
    glass: tuple[tuple[float, int, int], ...]
    """Standard deviation of the blur, largest displacement; rounds of shuffling."""
    glass_smallest_scale: float
    """A shuffle much finer than a pixel is none: at 32x32 the largest displacement is 1 pixel in both lists."""
    motion: tuple[tuple[float, float], ...]
    """Half length of the trail and standard deviation along it."""
    zoom: tuple[tuple[float, int], ...]
    """Step between zoom factors and how many there are, from 1 upwards."""
    snow: tuple[tuple[float, float, float, float, float, float, float], ...]
    """Mean and spread of the flakes' noise, size of a flake, threshold, half length and spread of the trail, share of
    the image left unwhitened."""
    snow_canvas: int
    """Shortest side, in pixels, on which flakes are drawn."""
    fog: tuple[tuple[float, float], ...]
    """Density, and how fast the fractal's detail fades."""
    frost: tuple[tuple[float, float], ...]
    """Weight of the image and of the frost."""
    frost_side: int
    """Side of the part of a photograph of frost, in its own pixels, that covers an image."""
    brighter: tuple[float, ...]
    contrast: tuple[float, ...]
    elastic: tuple[tuple[float, float, float, float], ...]
    """Strength; largest raw displacement, its smoothing, and how far three points of an affine map move, as shares of
    the side."""
    kept: tuple[float, ...]
    """Share of the pixels along a side that pixelation keeps."""
    quality: tuple[int, ...]
    """Of JPEG."""
    whole_pixels: bool
    """Kernels are drawn on whole pixels: those of CIFAR-10-C are so short that the grid is part of their shape."""


IMAGENET_C = Constants(
    name="imagenet-c",
    side=224,
    gaussian_sigma=(0.08, 0.12, 0.18, 0.26, 0.38),
    photons=(60.0, 25.0, 12.0, 5.0, 3.0),
    impulse_share=(0.03, 0.06, 0.09, 0.17, 0.27),
    defocus=((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5)),
    glass=((0.7, 1, 2), (0.9, 2, 1), (1.0, 2, 3), (1.1, 3, 2), (1.5, 4, 2)),
    glass_smallest_scale=0.25,
    motion=((10, 3), (15, 5), (15, 8), (15, 12), (20, 15)),
    zoom=((0.01, 12), (0.01, 16), (0.02, 11), (0.02, 13), (0.03, 11)),
    snow=(
        (0.1, 0.3, 3.0, 0.5, 10, 4, 0.8),
        (0.2, 0.3, 2.0, 0.5, 12, 4, 0.7),
        (0.55, 0.3, 4.0, 0.9, 12, 8, 0.7),
        (0.55, 0.3, 4.5, 0.85, 12, 8, 0.65),
        (0.55, 0.3, 2.5, 0.85, 12, 12, 0.55),
    ),
    snow_canvas=224,
    fog=((1.5, 2.0), (2.0, 2.0), (2.5, 1.7), (2.5, 1.5), (3.0, 1.4)),
    frost=((1.0, 0.4), (0.8, 0.6), (0.7, 0.7), (0.65, 0.7), (0.6, 0.75)),
    frost_side=224,
    brighter=(0.1, 0.2, 0.3, 0.4, 0.5),
    contrast=(0.4, 0.3, 0.2, 0.1, 0.05),
    elastic=tuple((strength, 0.005, 0.01, 0.0) for strength in (12.5, 16.25, 21.25, 25.0, 30.0)),
    kept=(0.6, 0.5, 0.4, 0.3, 0.25),
    quality=(25, 18, 15, 10, 7),
    whole_pixels=False,
)
CIFAR_C = Constants(
    name="cifar-c",
    side=32,
    gaussian_sigma=(0.04, 0.06, 0.08, 0.09, 0.10),
    photons=(500.0, 250.0, 100.0, 75.0, 50.0),
    impulse_share=(0.01, 0.02, 0.03, 0.05, 0.07),
    defocus=((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1.0, 0.2), (1.5, 0.1)),
    glass=((0.05, 1, 1), (0.25, 1, 1), (0.4, 1, 1), (0.25, 1, 2), (0.4, 1, 2)),
    glass_smallest_scale=1.0,
    motion=((6, 1.0), (6, 1.5), (6, 2.0), (8, 2.0), (9, 2.5)),
    zoom=((0.01, 7), (0.01, 12), (0.01, 16), (0.01, 21), (0.01, 26)),
    snow=(
        (0.1, 0.2, 1.0, 0.6, 8, 3, 0.95),
        (0.1, 0.2, 1.0, 0.5, 10, 4, 0.9),
        (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9),
        (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85),
        (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8),
    ),
    snow_canvas=24,
    fog=((0.2, 3.0), (0.5, 3.0), (0.75, 2.5), (1.0, 2.0), (1.5, 1.75)),
    frost=((1.0, 0.2), (1.0, 0.3), (0.9, 0.4), (0.85, 0.4), (0.75, 0.45)),
    frost_side=160,
    brighter=(0.05, 0.1, 0.15, 0.2, 0.3),
    contrast=(0.75, 0.5, 0.4, 0.3, 0.15),
    elastic=(
        (0.0, 0.0, 0.0, 0.08),
        (1.0, 0.05, 0.2, 0.07),
        (1.0, 0.08, 0.06, 0.06),
        (1.0, 0.1, 0.04, 0.05),
        (1.0, 0.1, 0.03, 0.03),
    ),
    kept=(0.95, 0.9, 0.85, 0.75, 0.65),
    quality=(80, 65, 58, 50, 40),
    whole_pixels=True,
)
PUBLISHED: dict[ListName, Constants] = {"imagenet-c": IMAGENET_C, "cifar-c": CIFAR_C}


def fitting(asked: Literal["auto", "imagenet-c", "cifar-c"], height: int, width: int) -> Constants:
    """Return the list that is `asked` for; 'auto' takes CIFAR-10-C's up to a shorter side of `LARGEST_SMALL_SIDE`."""
    if asked != "auto":
        return PUBLISHED[asked]
    return CIFAR_C if min(height, width) <= LARGEST_SMALL_SIDE else IMAGENET_C
