"""Blur: defocus, frosted glass, motion and zoom.

Hendrycks & Dietterich 2019, section 3; lengths follow the image's side (`filters`).
"""

import math

import torch
from torch import Tensor

from audit.robustness.corruptions.constants import IMAGENET_C, Constants
from audit.robustness.corruptions.filters import (
    convolve,
    gaussian_blur,
    gaussian_weights,
    length_scale,
    pixel_grid,
    sample,
    uniform,
)

DISK_SAMPLES = 16
"""Points along a pixel (along the radius, if that is shorter) that make a disk."""
TRAIL_STEPS = 20
"""Fewest steps along a trail, those of the shortest one at 224x224."""
CHAIN = 8
"""Lookups that follow a shuffled pixel to its source; half the chains end at each, so 1 in 250 is cut."""


def spacing(scale: float, published: Constants) -> float | None:
    """Return how far the points of a kernel on whole pixels lie apart, in pixels; None for an antialiased one.

    On images smaller than the list's own the points move nearer together, on larger ones there are more of them.
    """
    return min(scale, 1.0) if published.whole_pixels else None


def disk_kernel(radius: float, softening: float, apart: float | None = None) -> Tensor:
    """Return the softened disk `[k, k]` of `radius` pixels; its points are shared among the pixels around them.

    `apart` is the distance of its points in pixels; None: as fine as an even disk needs.
    """
    soft = gaussian_weights(softening, truncate=2)
    reach = math.ceil(radius) + len(soft) // 2
    if apart is None:
        fine = torch.linspace(-radius, radius, max(int(radius * DISK_SAMPLES), DISK_SAMPLES) * 2 + 1)
        inside = ((fine[:, None] ** 2 + fine[None, :] ** 2) <= radius**2).float()
    else:
        most = int(radius / apart + 1e-6)
        fine = torch.arange(-most, most + 1) * apart
        inside = ((fine[:, None] ** 2 + fine[None, :] ** 2) <= radius**2 + 1e-6).float()
    # Sharing, rather than counting covered pixels, lets a disk inside one pixel still blur.
    shared = (1 - (fine[:, None] - torch.arange(-reach, reach + 1)).abs()).clamp_min(0)
    kernel = gaussian_blur((shared.T @ inside @ shared)[None, None], softening, truncate=2)[0, 0]
    return kernel / kernel.sum()


def defocus_blur(
    images: Tensor, severity: int, generator: torch.Generator, published: Constants = IMAGENET_C
) -> Tensor:
    """Blur with a disk, the image of a point out of focus."""
    radius, softening = published.defocus[severity - 1]
    scale = length_scale(images, published.side)
    if not published.whole_pixels:
        kernel = disk_kernel(radius * scale, softening * scale)
    elif scale > 1:
        # On a finer grid these few pixels would make another disk: an even one of their second moment stands for them.
        kernel = disk_kernel(2 * whole_disk_moment(radius) ** 0.5 * scale, softening * scale)
    else:
        kernel = drawn_together(disk_kernel(radius, softening, 1.0), scale)
    return convolve(images, kernel[None].to(images.device), "reflect")


def drawn_together(kernel: Tensor, scale: float) -> Tensor:
    """Move the points of a kernel `[k, k]` to `scale` times their distance; each is shared among its neighbours."""
    reach = len(kernel) // 2
    offsets = torch.arange(-reach, reach + 1)
    shared = (1 - (offsets[:, None] * scale - offsets[None, :]).abs()).clamp_min(0)
    return shared.T @ kernel @ shared


def whole_disk_moment(radius: float) -> float:
    """Return the second moment along an axis of the pixels whose centres lie within `radius`."""
    offsets = torch.arange(-int(radius), int(radius) + 1, dtype=torch.float64)
    inside = offsets[:, None] ** 2 + offsets[None, :] ** 2 <= radius**2
    return float((inside * offsets[None, :] ** 2).sum() / inside.sum())


def glass_blur(images: Tensor, severity: int, generator: torch.Generator, published: Constants = IMAGENET_C) -> Tensor:
    """Blur, let pixels take the value of random neighbours for some rounds, and blur again.

    ImageNet-C walks from the last pixel to the first and overwrites as it goes (its swap of array views is a copy), so
    a pixel may read a neighbour that has been overwritten already. The same law without the walk: follow the neighbour
    while it comes later in the order.
    """
    sigma, reach, rounds = published.glass[severity - 1]
    scale = max(length_scale(images, published.side), published.glass_smallest_scale)
    grid = pixel_grid(images)
    blurred = gaussian_blur(images, sigma * scale)
    displacement = torch.zeros_like(grid).expand(len(images), -1, -1, -1)
    for _ in range(rounds):
        drawn = uniform((len(images), *grid.shape), -reach, reach, generator, images).floor() * scale
        if published.whole_pixels:
            drawn = drawn * _away_from_border(grid, reach * scale)
        displacement = _then(_overwritten_in_order(drawn, grid), displacement, grid)
    return gaussian_blur(sample(blurred, grid + displacement, "border"), sigma * scale)


def _away_from_border(grid: Tensor, reach: float) -> Tensor:
    """Mask `[H, W]` of the pixels that are shuffled: a part of a small image that counts stays as it is."""
    sides = grid.new_tensor(grid.shape[1:])[:, None, None]
    return ((grid > reach) & (grid <= sides - reach)).all(dim=0)


def _cells(displacement: Tensor, grid: Tensor) -> Tensor:
    """Flat index `[N, H * W]` of the pixel that each displacement `[N, 2, H, W]` points to."""
    h, w = grid.shape[-2:]
    places = (grid + displacement).round().long()
    return (places[:, 0].clamp(0, h - 1) * w + places[:, 1].clamp(0, w - 1)).flatten(1)


def _gather(field: Tensor, cells: Tensor) -> Tensor:
    return field.flatten(2).gather(2, cells[:, None].expand(-1, 2, -1)).reshape(field.shape)


def _then(displacement: Tensor, further: Tensor, grid: Tensor) -> Tensor:
    """Follow `displacement` and then, from where it leads, `further`."""
    return displacement + _gather(further, _cells(displacement, grid))


def _overwritten_in_order(drawn: Tensor, grid: Tensor) -> Tensor:
    cells = _cells(drawn, grid)
    later = (cells > torch.arange(cells.shape[1], device=cells.device)).reshape(len(drawn), 1, *grid.shape[1:])
    displacement = drawn
    for _ in range(CHAIN):
        displacement = torch.where(later, drawn + _gather(displacement, cells), drawn)
    return displacement


def trail_kernels(angles: Tensor, half_length: float, sigma: float, apart: float | None = None) -> Tensor:
    """Return motion kernels `[N, k, k]`: from the centre along `angles` `[N]` (radians), fading as a half Gaussian.

    `apart` is the distance of its points in pixels; None: as fine as an even trail needs.
    """
    length = 2 * half_length
    # Samples at most one pixel apart, each shared among the four pixels around it.
    steps = max(math.ceil(length), TRAIL_STEPS) if apart is None else max(round(length / apart), 1)
    along = torch.linspace(0, length, steps + 1, device=angles.device)
    weights = torch.exp(-(along**2) / (2 * sigma**2))
    weights = weights / weights.sum()
    reach = math.ceil(length) + 1
    size = 2 * reach + 1
    rows = along[None] * torch.sin(angles)[:, None] + reach
    columns = along[None] * torch.cos(angles)[:, None] + reach
    if apart is not None:
        rows, columns = rows.round(), columns.round()
    kernels = torch.zeros(len(angles), size * size, device=angles.device)
    top, left = rows.floor(), columns.floor()
    for row, column in ((top, left), (top, left + 1), (top + 1, left), (top + 1, left + 1)):
        shared = (1 - (rows - row).abs()) * (1 - (columns - column).abs()) * weights
        kernels.scatter_add_(1, (row * size + column).long(), shared)
    return kernels.reshape(-1, size, size)


def motion_trails(
    images: Tensor, angles: Tensor, half_length: float, sigma: float, apart: float | None = None
) -> Tensor:
    """Drag each image along its angle; a trail longer than the image is cut, edges are repeated."""
    half_length = min(half_length, (min(images.shape[-2:]) - 2) / 2)
    return convolve(images, trail_kernels(angles, half_length, sigma, apart), "replicate")


def motion_blur(images: Tensor, severity: int, generator: torch.Generator, published: Constants = IMAGENET_C) -> Tensor:
    """Drag each image along a random direction within 45 degrees of the horizontal."""
    half_length, sigma = published.motion[severity - 1]
    scale = length_scale(images, published.side)
    angles = uniform((len(images),), 3 * math.pi / 4, 5 * math.pi / 4, generator, images)
    return motion_trails(images, angles, half_length * scale, sigma * scale, spacing(scale, published))


def zoom_blur(images: Tensor, severity: int, generator: torch.Generator, published: Constants = IMAGENET_C) -> Tensor:
    """Average the image with magnified copies of itself, as a camera that moves forward."""
    step, count = published.zoom[severity - 1]
    places = _whole_zoom if published.whole_pixels else _even_zoom
    total = images.clone()
    for i in range(count):
        rows, columns = (places(side, 1 + step * i, images) for side in images.shape[-2:])
        grid = torch.stack(torch.meshgrid(rows, columns, indexing="ij"))
        total += sample(images, grid.expand(len(images), -1, -1, -1), "border")
    return total / (count + 1)


def _even_zoom(side: int, factor: float, images: Tensor) -> Tensor:
    """Where `[side]` the pixels along a side are read from, to magnify by `factor` about the centre."""
    centre = (side - 1) / 2
    return centre + (torch.arange(side, device=images.device, dtype=images.dtype) - centre) / factor


def _whole_zoom(side: int, factor: float, images: Tensor) -> Tensor:
    """The same by cropping and stretching whole pixels: on a small image the rounding moves the picture visibly."""
    cropped = math.ceil(side / factor - 1e-9)
    stretched = math.floor(cropped * factor + 0.5 + 1e-9)
    first, cut = (side - cropped) // 2, (stretched - side) // 2
    at = torch.arange(cut, cut + side, device=images.device, dtype=images.dtype)
    return first + at * ((cropped - 1) / max(stretched - 1, 1))
