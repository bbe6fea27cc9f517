"""Noise: Gaussian (poor light), shot (counting photons) and impulse (dead or saturated pixels).

Hendrycks & Dietterich 2019, section 3. Noise is drawn per pixel and channel at every
image size, as a sensor does.
"""

import torch
from torch import Tensor

from audit.robustness.corruptions.constants import IMAGENET_C, Constants
from audit.robustness.corruptions.filters import normal, uniform


def gaussian_noise(
    images: Tensor, severity: int, generator: torch.Generator, published: Constants = IMAGENET_C
) -> Tensor:
    """Add independent normal noise."""
    return images + normal(images.shape, generator, images) * published.gaussian_sigma[severity - 1]


def shot_noise(images: Tensor, severity: int, generator: torch.Generator, published: Constants = IMAGENET_C) -> Tensor:
    """Replace every value by a Poisson count of photons whose mean is the value."""
    photons = published.photons[severity - 1]
    # Drawn where the generator lives, so that a GPU sees the same images as the CPU.
    counts = torch.poisson((images * photons).to(generator.device), generator=generator)
    return counts.to(images.device) / photons


def impulse_noise(
    images: Tensor, severity: int, generator: torch.Generator, published: Constants = IMAGENET_C
) -> Tensor:
    """Set a share of the values to 0 or 1 with equal chance."""
    share = published.impulse_share[severity - 1]
    # One draw decides both whether and which: below half the share pepper, below the share salt.
    drawn = uniform(images.shape, 0, 1, generator, images)
    images = torch.where(drawn < share, torch.ones_like(images), images)
    return torch.where(drawn < share / 2, torch.zeros_like(images), images)
