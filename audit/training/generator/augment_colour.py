"""Colour augmentations: one affine map of colours per image, drawn as the product of five.

Source: Karras et al. 2020 (ADA), appendix B: brightness, contrast, flip of the luma, rotation of the hue, saturation,
in this order. The luma axis is the grey diagonal; hue and saturation need three channels.
"""

import math

import torch
from torch import Tensor

from audit.training.generator.augment_draw import chosen, normal, uniform, where

BRIGHTNESS_STD = 0.2
CONTRAST_STD = 0.5
SATURATION_STD = 1.0


def brightness(n: int, p: float, generator: torch.Generator) -> Tensor:
    """`[n]` to add: normal with probability `p`, else 0."""
    return where(chosen(n, p, generator), normal(n, generator) * BRIGHTNESS_STD, 0.0)


def contrast(n: int, p: float, generator: torch.Generator) -> Tensor:
    """`[n]` to multiply by: log-normal with probability `p`, else 1."""
    return where(chosen(n, p, generator), torch.exp2(normal(n, generator) * CONTRAST_STD), 1.0)


def luma_signs(n: int, p: float, generator: torch.Generator) -> Tensor:
    """`[n]`: with probability `p` a coin decides between 1 and -1, else 1."""
    flipped = chosen(n, p, generator) & (uniform(n, generator) < 0.5)
    return 1.0 - 2.0 * flipped


def hues(n: int, p: float, generator: torch.Generator) -> Tensor:
    """`[n]` angles of the whole circle with probability `p`, else 0."""
    return where(chosen(n, p, generator), (uniform(n, generator) * 2 - 1) * math.pi, 0.0)


def saturation(n: int, p: float, generator: torch.Generator) -> Tensor:
    """`[n]` to multiply the chroma by: log-normal with probability `p`, else 1."""
    return where(chosen(n, p, generator), torch.exp2(normal(n, generator) * SATURATION_STD), 1.0)


def colour_transforms(n: int, channels: int, p: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draw matrices `[n, C, C]` and offsets `[n, C]` of affine maps of colours in [-1, 1]."""
    offset, factor = brightness(n, p, generator), contrast(n, p, generator)
    sign = luma_signs(n, p, generator)[:, None, None]
    unit = torch.eye(channels, device=generator.device)
    luma = torch.full_like(unit, 1 / channels)  # projects on the grey axis
    matrix = sign * luma + (unit - luma)
    if channels == 3:
        angle = hues(n, p, generator)[:, None, None]
        # Rotation about the grey axis (Rodrigues): the cross product with its unit vector.
        turn = torch.tensor([[0.0, -1.0, 1.0], [1.0, 0.0, -1.0], [-1.0, 1.0, 0.0]], device=unit.device) / math.sqrt(3)
        chroma = angle.cos() * (unit - luma) + angle.sin() * turn
        matrix = sign * luma + saturation(n, p, generator)[:, None, None] * chroma
    matrix = matrix * factor[:, None, None]
    return matrix, matrix @ torch.ones(channels, device=unit.device) * offset[:, None]


def recolour(images: Tensor, matrices: Tensor, offsets: Tensor) -> Tensor:
    """Apply affine maps of colours to `[N, C, H, W]`; an image with the unit matrix and no offset stays as it is."""
    channels = images.shape[1]
    if channels == 1:
        return images * matrices[..., None].to(images.dtype) + offsets[..., None, None].to(images.dtype)
    mapped = (matrices.to(images.dtype) @ images.flatten(2)).view_as(images)
    unit = torch.eye(channels, device=matrices.device)
    # Without hue the product of projections is the unit matrix up to rounding; such images are left alone.
    still = ((matrices - unit).abs().flatten(1).amax(1) < 1e-6) & (offsets == 0).all(1)
    return torch.where(still[:, None, None, None], images, mapped + offsets[..., None, None].to(images.dtype))
