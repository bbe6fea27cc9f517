"""Adaptive discriminator augmentation: pixel blitting, geometric and colour transformations that do not leak.

Source: Karras et al., "Training Generative Adversarial Networks with Limited Data" (2020), section 3 and appendix B
(the order of the transformations and their strengths), written from the paper. Every transformation is applied with
probability p to each image on its own; all spatial ones are composed into one resampling.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from audit.generator.layers import upsample

BLIT_SHIFT = 0.125
SCALE_STD = 0.2
SHIFT_STD = 0.125
BRIGHTNESS_STD = 0.2
CONTRAST_STD = 0.5
SATURATION_STD = 1.0


def _where(apply: Tensor, value: Tensor, neutral: float) -> Tensor:
    return torch.where(apply, value, torch.full_like(value, neutral))


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


def spatial_transforms(n: int, size: int, p: float, generator: torch.Generator) -> Tensor:
    """Draw `[n, 3, 3]` maps from output to input coordinates in [-1, 1]^2 (blitting and geometric group)."""
    device = generator.device

    def uniform() -> Tensor:
        return torch.rand(n, generator=generator, device=device)

    def normal() -> Tensor:
        return torch.randn(n, generator=generator, device=device)

    def chosen(probability: float) -> Tensor:
        return uniform() < probability

    transform = torch.eye(3, device=device).expand(n, 3, 3)
    flip = _where(chosen(p) & (uniform() < 0.5), -torch.ones(n, device=device), 1.0)
    transform = transform @ _scale(flip, torch.ones_like(flip))
    quarter = _where(chosen(p), (uniform() * 4).floor() * (math.pi / 2), 0.0)
    transform = transform @ _rotate(quarter)
    apply = chosen(p)
    pixel = 2.0 / size  # a whole pixel in [-1, 1] coordinates

    def blit() -> Tensor:
        drawn = (uniform() * 2 - 1) * (BLIT_SHIFT * size)
        return _where(apply, drawn.round() * pixel, 0.0)

    transform = transform @ _shift(blit(), blit())
    scale = _where(chosen(p), torch.exp2(normal() * SCALE_STD), 1.0)
    transform = transform @ _scale(scale, scale)
    p_rotate = 1 - math.sqrt(1 - min(p, 1.0))  # two rotations, so that at least one happens with probability p
    transform = transform @ _rotate(_where(chosen(p_rotate), (uniform() * 2 - 1) * math.pi, 0.0))
    stretch = _where(chosen(p), torch.exp2(normal() * SCALE_STD), 1.0)
    transform = transform @ _scale(stretch, 1 / stretch)
    transform = transform @ _rotate(_where(chosen(p_rotate), (uniform() * 2 - 1) * math.pi, 0.0))
    apply = chosen(p)
    x, y = (_where(apply, normal() * (2 * SHIFT_STD), 0.0) for _ in range(2))
    return transform @ _shift(x, y)


def resample(images: Tensor, transforms: Tensor) -> Tensor:
    """Warp `[N, C, H, W]` by `transforms` `[N, 3, 3]`, at double resolution so that fine detail does not alias."""
    n, channels, height, width = images.shape
    fine = upsample(images)
    grid = F.affine_grid(transforms[:, :2], [n, channels, 2 * height, 2 * width], align_corners=False)
    warped = F.grid_sample(fine, grid.to(fine.dtype), padding_mode="reflection", align_corners=False)
    return F.avg_pool2d(warped, 2)


def colour(images: Tensor, p: float, generator: torch.Generator) -> Tensor:
    """Brightness, contrast, luma flip and (for RGB) hue and saturation of images in [-1, 1]."""
    n, channels = images.shape[:2]
    device = generator.device

    def uniform() -> Tensor:
        return torch.rand(n, 1, 1, 1, generator=generator, device=device)

    def normal() -> Tensor:
        return torch.randn(n, 1, 1, 1, generator=generator, device=device)

    def chosen() -> Tensor:
        return uniform() < p

    images = images + _where(chosen(), normal() * BRIGHTNESS_STD, 0.0)
    images = images * _where(chosen(), torch.exp2(normal() * CONTRAST_STD), 1.0)
    luma = images.mean(1, keepdim=True)
    flip = chosen() & (uniform() < 0.5)
    images = torch.where(flip, images - 2 * luma, images)
    if channels == 3:
        luma = images.mean(1, keepdim=True)
        chroma = images - luma
        angle = _where(chosen(), (uniform() * 2 - 1) * math.pi, 0.0)
        # Rotation about the grey axis (Rodrigues); chroma is orthogonal to the axis, so its third term vanishes.
        crossed = (chroma.roll(-1, 1) - chroma.roll(1, 1)) / math.sqrt(3)
        chroma = chroma * angle.cos() - crossed * angle.sin()
        images = luma + chroma * _where(chosen(), torch.exp2(normal() * SATURATION_STD), 1.0)
    return images


def augment(images: Tensor, p: float, generator: torch.Generator) -> Tensor:
    """Augment `[N, C, H, W]` in [-1, 1] with probability `p` per transformation; differentiable; p = 0 is identity."""
    if p <= 0:
        return images
    transforms = spatial_transforms(len(images), images.shape[-1], p, generator)
    return colour(resample(images, transforms.to(images.device)), p, generator)


def adapt(p: float, mean_sign: float, images_seen: int, target: float, full_range_images: float) -> float:
    """Move p towards the target of r_t = E[sign(D(real))]; p needs `full_range_images` images to cross [0, 1]."""
    step = math.copysign(images_seen / full_range_images, mean_sign - target)
    return min(max(p + step, 0.0), 1.0)
