"""Adaptive discriminator augmentation (ADA): which transformations the discriminator's images undergo, and how often.

Source: Karras et al., "Training Generative Adversarial Networks with Limited Data" (2020), sections 2.2 and 3 and
appendix B (order and strengths), written from the paper. Every transformation is applied with probability p to each
image on its own. As long as p < 1 an augmented distribution tells the original one from all others, so that the
generator does not learn the augmentations; in practice p has to stay below about 0.8 (section 2.2), where `adapt`
stops by default. The strengths and the order: pixel blitting, geometric, colour, then image-space filtering, noise and
cutout, which the paper found of little use and which are off unless asked for.
"""

import math
from typing import Literal, get_args

import torch
from torch import Tensor

from audit.training.generator.augment_colour import colour_transforms, recolour
from audit.training.generator.augment_corrupt import add_noise, cut_out, filter_bands
from audit.training.generator.augment_spatial import blit, geometric_transforms, warp

Group = Literal["blit", "geometric", "colour", "filter", "noise", "cutout"]
GROUPS: tuple[Group, ...] = get_args(Group)
DEFAULT_GROUPS: tuple[Group, ...] = ("blit", "geometric", "colour")
ADA_INTERVAL = 4
"""Minibatches between two adjustments of p."""


def augment(images: Tensor, p: float, generator: torch.Generator, groups: tuple[Group, ...] = DEFAULT_GROUPS) -> Tensor:
    """Augment `[N, C, H, H]` in [-1, 1] with probability `p` per transformation; differentiable; p = 0 is identity.

    An image that no transformation was drawn for leaves as it came, to the bit. The draws are few numbers an image: a
    `generator` on the CPU serves a GPU without waiting for it.
    """
    if p <= 0 or not groups:
        return images
    n, channels, size = images.shape[0], images.shape[1], images.shape[-1]
    if "blit" in groups:
        images = blit(images, p, generator)
    if "geometric" in groups:
        images = warp(images, geometric_transforms(n, p, generator))
    if "colour" in groups:
        matrices, offsets = colour_transforms(n, channels, p, generator)
        images = recolour(images, matrices.to(images.device), offsets.to(images.device))
    if "filter" in groups and size >= 16:
        images = filter_bands(images, p, generator)
    if "noise" in groups:
        images = add_noise(images, p, generator)
    if "cutout" in groups:
        images = cut_out(images, p, generator)
    return images


def adapt(
    p: float, mean_sign: float, images_seen: int, target: float, full_range_images: float, highest: float = 0.8
) -> float:
    """Move p towards the target of r_t = E[sign(D(real))]: up while the discriminator knows the real images too well.

    p needs `full_range_images` images to cross [0, 1] and stays in [0, `highest`] (section 3.1).
    """
    step = math.copysign(images_seen / full_range_images, mean_sign - target)
    return min(max(p + step, 0.0), highest)
