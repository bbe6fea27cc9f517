"""Blur: defocus, frosted glass, motion and zoom.

Hendrycks & Dietterich 2019, section 3 and the constants of ImageNet-C; lengths follow the image's side (`filters`).
"""

import math

import torch
from torch import Tensor

from audit.robustness.corruption.filters import (
    convolve,
    gaussian_blur,
    gaussian_weights,
    length_scale,
    pixel_grid,
    sample,
    uniform,
)

DEFOCUS = ((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5))
"""Radius of the disk and standard deviation of its softening, in pixels."""
GLASS = ((0.7, 1, 2), (0.9, 2, 1), (1.0, 2, 3), (1.1, 3, 2), (1.5, 4, 2))
"""Standard deviation of the blur and largest displacement, in pixels; rounds of shuffling."""
GLASS_SMALLEST_SCALE = 0.25
"""A shuffle much finer than a pixel is none: at 32x32 the largest displacement is 1 pixel, as in CIFAR-10-C."""
MOTION = ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15))
"""Half length of the trail and standard deviation along it, in pixels."""
ZOOM = ((0.01, 12), (0.01, 16), (0.02, 11), (0.02, 13), (0.03, 11))
"""Step between zoom factors and how many there are, from 1 upwards."""
DISK_SAMPLES = 16
"""Points along a pixel (along the radius, if that is shorter) that make a disk."""
TRAIL_STEPS = 20
"""Fewest steps along a trail, those of the shortest one at 224x224."""
CHAIN = 8
"""Lookups that follow a shuffled pixel to its source; half the chains end at each, so 1 in 250 is cut."""


def disk_kernel(radius: float, softening: float) -> Tensor:
    """Return the softened disk `[k, k]` of `radius` pixels; its points are shared among the pixels around them."""
    soft = gaussian_weights(softening, truncate=2)
    reach = math.ceil(radius) + len(soft) // 2
    fine = torch.linspace(-radius, radius, max(int(radius * DISK_SAMPLES), DISK_SAMPLES) * 2 + 1)
    inside = ((fine[:, None] ** 2 + fine[None, :] ** 2) <= radius**2).float()
    # Sharing, rather than counting covered pixels, lets a disk inside one pixel still blur.
    shared = (1 - (fine[:, None] - torch.arange(-reach, reach + 1)).abs()).clamp_min(0)
    kernel = gaussian_blur((shared.T @ inside @ shared)[None, None], softening, truncate=2)[0, 0]
    return kernel / kernel.sum()


def defocus_blur(images: Tensor, severity: int, generator: torch.Generator) -> Tensor:
    """Blur with a disk, the image of a point out of focus."""
    radius, softening = DEFOCUS[severity - 1]
    scale = length_scale(images)
    kernel = disk_kernel(radius * scale, softening * scale).to(images.device)
    return convolve(images, kernel[None], "reflect")


def glass_blur(images: Tensor, severity: int, generator: torch.Generator) -> Tensor:
    """Blur, let pixels take the value of random neighbours for some rounds, and blur again.

    ImageNet-C walks from the last pixel to the first and overwrites as it goes (its swap of array views is a copy), so
    a pixel may read a neighbour that has been overwritten already. The same law without the walk: follow the neighbour
    while it comes later in the order.
    """
    sigma, reach, rounds = GLASS[severity - 1]
    scale = max(length_scale(images), GLASS_SMALLEST_SCALE)
    grid = pixel_grid(images)
    blurred = gaussian_blur(images, sigma * scale)
    displacement = torch.zeros_like(grid).expand(len(images), -1, -1, -1)
    for _ in range(rounds):
        drawn = uniform((len(images), *grid.shape), -reach, reach, generator, images).floor() * scale
        displacement = _then(_overwritten_in_order(drawn, grid), displacement, grid)
    return gaussian_blur(sample(blurred, grid + displacement, "border"), sigma * scale)


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


def trail_kernels(angles: Tensor, half_length: float, sigma: float) -> Tensor:
    """Return motion kernels `[N, k, k]`: from the centre along `angles` `[N]` (radians), fading as a half Gaussian."""
    length = 2 * half_length
    # Samples at most one pixel apart, each shared among the four pixels around it.
    steps = max(math.ceil(length), TRAIL_STEPS)
    along = torch.linspace(0, length, steps + 1, device=angles.device)
    weights = torch.exp(-(along**2) / (2 * sigma**2))
    weights = weights / weights.sum()
    reach = math.ceil(length) + 1
    size = 2 * reach + 1
    rows = along[None] * torch.sin(angles)[:, None] + reach
    columns = along[None] * torch.cos(angles)[:, None] + reach
    kernels = torch.zeros(len(angles), size * size, device=angles.device)
    top, left = rows.floor(), columns.floor()
    for row, column in ((top, left), (top, left + 1), (top + 1, left), (top + 1, left + 1)):
        shared = (1 - (rows - row).abs()) * (1 - (columns - column).abs()) * weights
        kernels.scatter_add_(1, (row * size + column).long(), shared)
    return kernels.reshape(-1, size, size)


def motion_trails(images: Tensor, angles: Tensor, half_length: float, sigma: float) -> Tensor:
    """Drag each image along its angle; a trail longer than the image is cut, edges are repeated."""
    half_length = min(half_length, (min(images.shape[-2:]) - 2) / 2)
    return convolve(images, trail_kernels(angles, half_length, sigma), "replicate")


def motion_blur(images: Tensor, severity: int, generator: torch.Generator) -> Tensor:
    """Drag each image along a random direction within 45 degrees of the horizontal."""
    half_length, sigma = MOTION[severity - 1]
    scale = length_scale(images)
    angles = uniform((len(images),), 3 * math.pi / 4, 5 * math.pi / 4, generator, images)
    return motion_trails(images, angles, half_length * scale, sigma * scale)


def zoom_blur(images: Tensor, severity: int, generator: torch.Generator) -> Tensor:
    """Average the image with magnified copies of itself, as a camera that moves forward."""
    step, count = ZOOM[severity - 1]
    grid = pixel_grid(images)
    h, w = images.shape[-2:]
    centre = grid.new_tensor([(h - 1) / 2, (w - 1) / 2])[:, None, None]
    total = images.clone()
    for i in range(count):
        places = centre + (grid - centre) / (1 + step * i)
        total += sample(images, places.expand(len(images), -1, -1, -1), "border")
    return total / (count + 1)
