"""Corrupting augmentations, off by default: image-space filtering, additive noise, cutout.

Source: Karras et al. 2020 (ADA), appendix B. The paper splits an image into four octaves by a wavelet filter bank; here
the bands are differences of ever wider binomial blurs (the a-trous scheme: Holschneider et al. 1989), which add up to
the image exactly.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from audit.training.generator.augment_draw import chosen, normal, uniform, where

BAND_POWER = (1 / 13, 1 / 13, 1 / 13, 10 / 13)
"""Share of a natural image's power in each band, from fine to coarse (a spectrum of 1 / f, as in the paper)."""
NOISE_STD = 0.1
CUTOUT_SIZE = 0.5


def bands(images: Tensor) -> list[Tensor]:
    """Split `[N, C, H, W]` (side at least 16) into four bands from fine to coarse, whose sum is the image."""
    taps = torch.tensor([1.0, 4.0, 6.0, 4.0, 1.0], device=images.device, dtype=images.dtype) / 16
    found, coarse = [], images.flatten(0, 1)[:, None]
    for level in range(len(BAND_POWER) - 1):
        step = 2**level
        padded = F.pad(coarse, (2 * step,) * 4, mode="reflect")
        blurred = F.conv2d(padded, taps.view(1, 1, 5, 1), dilation=(step, 1))
        blurred = F.conv2d(blurred, taps.view(1, 1, 1, 5), dilation=(1, step))
        found.append((coarse - blurred).view_as(images))
        coarse = blurred
    return [*found, coarse.view_as(images)]


def band_gains(n: int, p: float, generator: torch.Generator) -> Tensor:
    """`[n, 4]` gains of the bands: each is amplified log-normally with probability `p`, keeping the expected power."""
    power = torch.tensor(BAND_POWER, device=generator.device)
    drawn = [where(chosen(n, p, generator), torch.exp2(normal(n, generator)), 1.0) for _ in BAND_POWER]
    gains = torch.stack(drawn, 1)
    kept = (gains == 1).all(1, keepdim=True)
    return torch.where(kept, gains, gains / (power * gains.square()).sum(1, keepdim=True).sqrt())


def filter_bands(images: Tensor, p: float, generator: torch.Generator) -> Tensor:
    """Amplify frequency bands of `[N, C, H, W]`, each with probability `p`."""
    gains = band_gains(len(images), p, generator).to(images)
    # Written as a change of the image, so that unit gains leave it as it is.
    return images + sum((gains[:, k, None, None, None] - 1) * band for k, band in enumerate(bands(images)))


def add_noise(images: Tensor, p: float, generator: torch.Generator) -> Tensor:
    """Add normal noise of a half-normal deviation with probability `p`."""
    deviation = where(chosen(len(images), p, generator), normal(len(images), generator).abs() * NOISE_STD, 0.0)
    noise = torch.randn(images.shape, generator=generator, device=generator.device)
    return images + (noise * deviation[:, None, None, None]).to(images)


def cut_out(images: Tensor, p: float, generator: torch.Generator) -> Tensor:
    """Set a square of half the side, anywhere, to mid-grey with probability `p`."""
    n, size = len(images), images.shape[-1]
    apply = chosen(n, p, generator)
    along = (torch.arange(size, device=generator.device) + 0.5) / size
    inside = [(along - uniform(n, generator)[:, None]).abs() < CUTOUT_SIZE / 2 for _ in range(2)]
    square = inside[0][:, :, None] & inside[1][:, None, :] & apply[:, None, None]
    return images * (~square[:, None]).to(images)
