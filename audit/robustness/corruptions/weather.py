"""Weather: snow, frost and fog.

Hendrycks & Dietterich 2019, section 3; lengths follow the image's side (`filters`). The
fog is a plasma fractal (diamond-square: Fournier, Fussell & Carpenter 1982), as in the original. The original's frost
mixes in five photographs, which are not shipped here: ours is a *procedural* texture of ice needles. The mixing weights
are the published ones, and the mean, contrast and tint of a texture are those measured on one of the photographs; its
shapes are not theirs, so frost is the one corruption that only resembles the original.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from audit.robustness.corruptions.blur import motion_trails, spacing
from audit.robustness.corruptions.constants import IMAGENET_C, Constants
from audit.robustness.corruptions.filters import convolve, luminance, normal, pixel_grid, uniform

ICE_COLOUR = (
    (0.305, 0.585, 0.650),
    (0.787, 0.805, 0.841),
    (0.787, 0.805, 0.841),
    (0.540, 0.599, 0.648),
    (0.441, 0.484, 0.528),
)
"""Mean red, green and blue of the five photographs (two of them are one picture)."""
ICE_CONTRAST = (0.060, 0.074, 0.074, 0.105, 0.143)
"""Standard deviation of the grey photograph within 204x204 pixels, the part that a 224x224 image shows."""
ICE_DRIFT = 0.04
"""Standard deviation of the mean between such parts."""
NEEDLE = 12.0
"""Half length of an ice needle, in pixels."""
CRYSTALS, DIRECTIONS, SHEET_DECAY = 60, 6, 1.6
ICE_CANVAS = 64
"""Shortest side, in pixels, on which needles are drawn."""


def finer_canvas(images: Tensor, side: int) -> int:
    """How many times finer than the image a layer is drawn for its shorter side to have at least `side` pixels.

    The layer is averaged down afterwards: on a small image a flake is a faint pixel, as in a photograph made smaller.
    """
    return max(math.ceil(side / min(images.shape[-2:])), 1)


def snow(images: Tensor, severity: int, generator: torch.Generator, published: Constants = IMAGENET_C) -> Tensor:
    """Whiten the image and let streaks of flakes fall over it."""
    mean, spread, flake, threshold, half_length, sigma, kept = published.snow[severity - 1]
    n, _, h, w = images.shape
    times = finer_canvas(images, published.snow_canvas)
    canvas = (h * times, w * times)
    scale = min(canvas) / published.side
    coarse = (n, 1, *(math.ceil(side / (flake * scale)) for side in canvas))
    noise = normal(coarse, generator, images) * spread + mean
    if published.whole_pixels:
        layer = _stretched(noise, flake * scale, canvas)
    else:
        layer = F.interpolate(noise, canvas, mode="bilinear", align_corners=True)
    layer = torch.where(layer < threshold, 0, layer).clamp(0, 1)
    # Downwards, within 45 degrees.
    angles = uniform((n,), math.pi / 4, 3 * math.pi / 4, generator, images)
    layer = F.avg_pool2d(
        motion_trails(layer, angles, half_length * scale, sigma * scale, spacing(scale, published)), times
    )
    whitened = torch.maximum(images, luminance(images) * 1.5 + 0.5)
    return kept * images + (1 - kept) * whitened + layer + layer.flip(2, 3)


def _stretched(noise: Tensor, factor: float, canvas: tuple[int, int]) -> Tensor:
    """Stretch noise by `factor` to whole pixels and cut the middle out of it."""
    height, width = (max(round(side * factor), least) for side, least in zip(noise.shape[-2:], canvas, strict=True))
    layer = F.interpolate(noise, (height, width), mode="bilinear", align_corners=True)
    top, left = (height - canvas[0]) // 2, (width - canvas[1]) // 2
    return layer[..., top : top + canvas[0], left : left + canvas[1]]


def plasma(n: int, side: int, decay: float, generator: torch.Generator, like: Tensor) -> Tensor:
    """Return `n` plasma fractals `[n, side, side]` in [0, 1] that repeat at their edges; `side` is a power of two.

    Each level halves the step between known points, sets the points between them to the mean of their four neighbours
    (first on the diagonals, then across) plus uniform noise, and divides the noise by `decay` squared.
    """
    heights = torch.zeros(n, 1, 1, device=like.device)
    amplitude = 1.0
    while heights.shape[1] < side:
        known = heights.shape[1]
        noise = uniform((3, n, known, known), -amplitude, amplitude, generator, like)
        right, below = heights.roll(-1, 2), heights.roll(-1, 1)
        centre = (heights + right + below + below.roll(-1, 2)) / 4 + noise[0]
        across = (heights + right + centre + centre.roll(1, 1)) / 4 + noise[1]
        down = (heights + below + centre + centre.roll(1, 2)) / 4 + noise[2]
        rows = torch.stack([torch.stack([heights, across], -1), torch.stack([down, centre], -1)], 2)
        heights = rows.reshape(n, 2 * known, 2 * known)
        amplitude /= decay**2
    heights = heights - heights.amin(dim=(1, 2), keepdim=True)
    return heights / heights.amax(dim=(1, 2), keepdim=True).clamp_min(1e-12)


def fog(images: Tensor, severity: int, generator: torch.Generator, published: Constants = IMAGENET_C) -> Tensor:
    """Add a plasma fractal and scale back to the image's own brightest value."""
    density, decay = published.fog[severity - 1]
    n, _, h, w = images.shape
    side = 1 << (max(h, w) - 1).bit_length()
    clouds = plasma(n, side, decay, generator, images)[:, None, :h, :w]
    brightest = images.amax(dim=(1, 2, 3), keepdim=True)
    return (images + density * clouds) * brightest / (brightest + density)


def ice(n: int, shape: tuple[int, int], scale: float, generator: torch.Generator, like: Tensor) -> Tensor:
    """Return `n` standardised textures of ice `[n, 1, H, W]`: feathered crystals over an uneven sheet, equal in weight.

    A crystal is the region nearest to its seed, halved by an axis; needles leave the axis 30 degrees to either side.
    """
    direction = _needle_directions(n, shape, generator, like)[:, None]
    # A high power leaves few bright points, and so single needles.
    sparks = uniform((n, 1, *shape), 0, 1, generator, like) ** 12
    needles = torch.zeros_like(sparks)
    for d in range(DIRECTIONS):
        drawn = convolve(sparks, _needle(math.pi * d / DIRECTIONS, NEEDLE * scale, like), "reflect")
        needles = torch.where(direction == d, drawn, needles)
    side = 1 << (max(shape) - 1).bit_length()
    sheet = plasma(n, side, SHEET_DECAY, generator, like)[:, None, : shape[0], : shape[1]]
    return _standardised(_standardised(needles) + _standardised(sheet))


def _standardised(textures: Tensor) -> Tensor:
    centred = textures - textures.mean(dim=(2, 3), keepdim=True)
    return centred / centred.std(dim=(2, 3), keepdim=True).clamp_min(1e-6)


def _needle_directions(n: int, shape: tuple[int, int], generator: torch.Generator, like: Tensor) -> Tensor:
    """Number of the direction of the needles at every pixel, `[n, H, W]`."""
    grid = pixel_grid(like.new_empty(1, 1, *shape))
    seeds = uniform((n, CRYSTALS, 2), 0, 1, generator, like) * grid.new_tensor(shape)
    nearest = torch.full((n, *shape), torch.inf, device=like.device)
    direction = torch.zeros(n, *shape, dtype=torch.uint8, device=like.device)
    for crystal in range(CRYSTALS):
        rows, columns = (grid - seeds[:, crystal, :, None, None]).unbind(dim=1)
        away = rows.square() + columns.square()
        angle = math.pi * crystal / DIRECTIONS
        left = columns * math.sin(angle) > rows * math.cos(angle)
        feathered = torch.where(left, (crystal + 1) % DIRECTIONS, (crystal - 1) % DIRECTIONS).to(torch.uint8)
        direction = torch.where(away < nearest, feathered, direction)
        nearest = torch.minimum(nearest, away)
    return direction


def _needle(angle: float, length: float, like: Tensor) -> Tensor:
    """Kernel `[1, k, k]` of a thin line through the centre that fades to both ends."""
    reach = math.ceil(length)
    offsets = torch.arange(-reach, reach + 1, device=like.device, dtype=like.dtype)
    rows, columns = offsets[:, None], offsets[None, :]
    along = rows * math.sin(angle) + columns * math.cos(angle)
    aside = columns * math.sin(angle) - rows * math.cos(angle)
    line = (1 - along.abs() / length).clamp_min(0) * torch.exp(-(aside**2) / 0.5)
    return (line / line.sum())[None]


def frost(images: Tensor, severity: int, generator: torch.Generator, published: Constants = IMAGENET_C) -> Tensor:
    """Mix in a procedural texture of ice."""
    of_image, of_frost = published.frost[severity - 1]
    n, c, h, w = images.shape
    times = finer_canvas(images, ICE_CANVAS)
    texture = ice(n, (h * times, w * times), min(h, w) * times / published.frost_side, generator, images)
    kind = uniform((n,), 0, len(ICE_COLOUR), generator, images).long()
    drift = normal((n, 1, 1, 1), generator, images) * ICE_DRIFT
    contrast = images.new_tensor(ICE_CONTRAST)[kind].reshape(n, 1, 1, 1)
    colour = images.new_tensor(ICE_COLOUR)[kind].reshape(n, 3, 1, 1)
    mean = colour if c == 3 else luminance(colour)
    frosted = (mean + drift + contrast * F.avg_pool2d(texture, times)).clamp(0, 1)
    return of_image * images + of_frost * frosted
