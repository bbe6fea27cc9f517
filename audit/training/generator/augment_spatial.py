"""Spatial augmentations: exact moves of whole pixels (blitting), and one composed affine map that is resampled once.

Source: Karras et al. 2020 (ADA), appendix B. Blitting permutes pixels and loses nothing. The geometric maps of an image
(scaling, rotation, stretching, rotation, shift by a fraction of a pixel) are multiplied into one matrix, and the image
is resampled at double resolution between two orthogonal low-pass filters, those of the wavelet sym6 (Daubechies 1992,
section 8.1.1): they remove what would alias, and undo each other exactly where nothing moves.
"""

import math
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional as F

from audit.training.generator.augment_draw import chosen, normal, uniform, where

BLIT_SHIFT = 0.125
SCALE_STD = 0.2
SHIFT_STD = 0.125

SYM6 = (
    0.015404109327027373, 0.0034907120842174702, -0.11799011114819057, -0.048311742585633,
    0.4910559419267466, 0.787641141030194, 0.3379294217276218, -0.07263752278646252,
    -0.021060292512300564, 0.04472490177066578, 0.0017677118642428036, -0.007800708325034148,
)  # fmt: skip
CENTRE = sum(k * tap for k, tap in enumerate(SYM6)) / sum(SYM6)
"""Centre of mass of the filter, in taps."""
MARGIN = 6
"""Pixels reflected at each border, so that a filter of twelve taps at double resolution meets no edge."""


def flips(n: int, p: float, generator: torch.Generator) -> Tensor:
    """Bool `[n]`: with probability `p` a coin decides whether an image is mirrored left to right."""
    return chosen(n, p, generator) & (uniform(n, generator) < 0.5)


def quarter_turns(n: int, p: float, generator: torch.Generator) -> Tensor:
    """int64 `[n]` in 0..3, drawn evenly with probability `p`, else 0."""
    return where(chosen(n, p, generator), (uniform(n, generator) * 4).floor(), 0.0).long()


def integer_shifts(n: int, size: int, p: float, generator: torch.Generator) -> Tensor:
    """int64 `[n, 2]` whole pixels down and right, at most an eighth of `size`, with probability `p`, else 0."""
    apply = chosen(n, p, generator)
    drawn = [((uniform(n, generator) * 2 - 1) * (BLIT_SHIFT * size)).round() for _ in range(2)]
    return torch.stack([where(apply, d, 0.0) for d in drawn], 1).long()


def move(images: Tensor, flip: Tensor, turns: Tensor, shifts: Tensor) -> Tensor:
    """Mirror, turn (anticlockwise) and shift `[N, C, H, H]` by whole pixels; what comes in is reflected."""
    n, channels, size = images.shape[0], images.shape[1], images.shape[-1]
    along = torch.arange(size, device=images.device)

    def source(shift: Tensor) -> Tensor:
        # Reflection about the border pixels has the period 2 (size - 1).
        position = (along - shift[:, None]).abs() % (2 * size - 2)
        return torch.minimum(position, 2 * size - 2 - position)

    y = source(shifts[:, 0])[:, :, None].expand(n, size, size)
    x = source(shifts[:, 1])[:, None, :].expand(n, size, size)
    for k in range(3):
        again = (turns > k)[:, None, None]
        y, x = torch.where(again, x, y), torch.where(again, size - 1 - y, x)
    x = torch.where(flip[:, None, None], size - 1 - x, x)
    index = (y * size + x).reshape(n, 1, -1).expand(-1, channels, -1)
    return images.flatten(2).gather(2, index).view_as(images)


def blit(images: Tensor, p: float, generator: torch.Generator) -> Tensor:
    """Mirror, turn by quarters and shift by whole pixels, each with probability `p`; pixel values are kept."""
    n, size, device = len(images), images.shape[-1], images.device
    flip, turns = flips(n, p, generator), quarter_turns(n, p, generator)
    shifts = integer_shifts(n, size, p, generator)
    return move(images, flip.to(device), turns.to(device), shifts.to(device))


def _matrices(entries: list[list[Tensor]]) -> Tensor:
    return torch.stack([torch.stack(row, -1) for row in entries], -2)


def _scale(x: Tensor, y: Tensor) -> Tensor:
    zero, one = torch.zeros_like(x), torch.ones_like(x)
    return _matrices([[x, zero, zero], [zero, y, zero], [zero, zero, one]])


def _rotate(angle: Tensor) -> Tensor:
    zero, one = torch.zeros_like(angle), torch.ones_like(angle)
    cos, sin = angle.cos(), angle.sin()
    return _matrices([[cos, -sin, zero], [sin, cos, zero], [zero, zero, one]])


def _shift(x: Tensor, y: Tensor) -> Tensor:
    zero, one = torch.zeros_like(x), torch.ones_like(x)
    return _matrices([[one, zero, x], [zero, one, y], [zero, zero, one]])


def scalings(n: int, p: float, generator: torch.Generator) -> Tensor:
    """`[n, 3, 3]`: isotropic scaling by a log-normal factor with probability `p`."""
    factor = where(chosen(n, p, generator), torch.exp2(normal(n, generator) * SCALE_STD), 1.0)
    return _scale(factor, factor)


def stretchings(n: int, p: float, generator: torch.Generator) -> Tensor:
    """`[n, 3, 3]`: stretching by a log-normal factor along x and its inverse along y with probability `p`."""
    factor = where(chosen(n, p, generator), torch.exp2(normal(n, generator) * SCALE_STD), 1.0)
    return _scale(factor, 1 / factor)


def rotations(n: int, p: float, generator: torch.Generator) -> Tensor:
    """`[n, 3, 3]`: rotation by an angle of the whole circle; two of these happen, at least one with probability `p`."""
    each = 1 - math.sqrt(1 - min(p, 1.0))
    return _rotate(where(chosen(n, each, generator), (uniform(n, generator) * 2 - 1) * math.pi, 0.0))


def fractional_shifts(n: int, p: float, generator: torch.Generator) -> Tensor:
    """`[n, 3, 3]`: shift by a normal share of the image along both axes with probability `p`."""
    apply = chosen(n, p, generator)
    x, y = (where(apply, normal(n, generator) * (2 * SHIFT_STD), 0.0) for _ in range(2))
    return _shift(x, y)


def geometric_transforms(n: int, p: float, generator: torch.Generator) -> Tensor:
    """Draw `[n, 3, 3]` maps from output to input coordinates in [-1, 1]^2; rotations come before and after stretching.

    An image that nothing was drawn for has exactly the unit matrix.
    """
    transform = scalings(n, p, generator) @ rotations(n, p, generator) @ stretchings(n, p, generator)
    return transform @ rotations(n, p, generator) @ fractional_shifts(n, p, generator)


@lru_cache(maxsize=8)
def resampling(size: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Matrices that double a line of `size` pixels and halve it again: `[2 size + 34, size]`, `[size, 2 size + 10]`.

    The first reflects MARGIN pixels at each end. The second undoes the first where it looks at the same points, for the
    translates of sym6 by two are orthonormal. As matrices they run faster than convolutions of one channel.
    """
    taps = torch.tensor(SYM6)
    halve = torch.zeros(size + 2 * MARGIN, 2 * (size + 2 * MARGIN) + 10)
    for row in range(len(halve)):
        halve[row, 2 * row : 2 * row + 12] = taps
    reflect = F.pad(torch.eye(size)[None], (MARGIN, MARGIN), mode="reflect")[0].T
    double = halve.T @ reflect
    return double.to(device), halve[:size, : 2 * size + 10].contiguous().to(device)


def _reflect(x: Tensor, size: int) -> Tensor:
    """Fold coordinates beyond the reflected margin back into the image, about the centres of its border pixels."""
    half = 1 - 1 / size
    folded = (x + half).remainder_(4 * half).sub_(2 * half).abs_().neg_().add_(half)
    return torch.where(x.abs() <= 1 + 2 * (MARGIN - 1) / size, x, folded)


def _grid(transforms: Tensor, size: int) -> Tensor:
    """Where `[n, reach, reach, 2]` each point that the second filter looks at comes from, as grid_sample wants it.

    A pixel's centre is the filter's centre of mass and the image spans [-1, 1]; grid_sample's [-1, 1] is the doubled
    image with its margin.
    """
    reach, whole = 2 * size + 10, 2 * size + 34
    line = (torch.arange(reach, device=transforms.device) + (1 - CENTRE - size)) / size
    ahead, aside, move = transforms[:, :2].unbind(2)
    grid = torch.empty(len(transforms), reach, reach, 2, device=transforms.device)
    for axis in range(2):
        down = aside[:, axis, None] * line + move[:, axis, None]
        along = ahead[:, axis, None] * line
        place = _reflect(down[:, :, None] + along[:, None, :], size)
        grid[..., axis] = place.mul_(2 * size / whole).add_(2 * (CENTRE - 5.5) / whole)
    return grid


def warp(images: Tensor, transforms: Tensor) -> Tensor:
    """Resample `[N, C, H, H]` by `transforms` `[N, 3, 3]`; under the unit matrix an image stays as it is, to the bit.

    Borders are reflected. Only images that move are computed; `transforms` on the CPU spare a GPU the wait for which.
    Float32 throughout: coordinates have no place in 16 bits.
    """
    size, device = images.shape[-1], images.device
    moving = (transforms != torch.eye(3, device=transforms.device)).flatten(1).any(1).nonzero()[:, 0]
    if len(moving) == 0:
        return images
    rows = moving.to(device)
    with torch.autocast(device.type, enabled=False):
        double, halve = resampling(size, device)
        fine = double @ images[rows].float() @ double.T
        grid = _grid(transforms[moving].to(device), size)
        moved = F.grid_sample(fine, grid, padding_mode="border", align_corners=False)
        warped = halve @ moved @ halve.T
    return images.index_copy(0, rows, warped.to(images.dtype))
