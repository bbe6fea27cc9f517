"""Two discriminators teach the generator together: StyleGAN2's, which is kept, and a second one that is not.

Source: Durugkar, Gemp and Mahadevan, "Generative Multi-Adversarial Networks" (2017); Kumari et al. 2022
(arXiv:2112.09130) for the sum of their losses.
"""

import torch
from torch import Tensor, nn

from audit.embeddings.resolve import Request, resolve
from audit.errors import GeneratorError
from audit.generator.stylegan2.discriminator import Discriminator
from audit.generator.stylegan2.losses import logistic
from audit.training.generator.frozen import FeatureDiscriminator
from audit.training.generator.scales import ScaleDiscriminator

Second = ScaleDiscriminator | FeatureDiscriminator
LPIPS_SIDE = 64
"""Smaller images are enlarged for LPIPS' backbones: AlexNet's first layer keeps every fourth pixel only."""


def second_discriminator(
    name: str, resolution: int, channels: int, spread_group: int, device: torch.device
) -> Second | None:
    """Build the one that a training names; None for `none`. Only `scales-spread` uses `spread_group`.

    Raises MetricError or WeightsError for absent weights, MetricError or GeneratorError for images that a network does
    not read.
    """
    if name == "none":
        return None
    if name in ("scales", "scales-spread"):
        return ScaleDiscriminator(resolution, channels, spread_group if name == "scales-spread" else 0)
    of_lpips = name in ("lpips-alex", "lpips-vgg")
    if of_lpips and channels not in (1, 3):
        raise GeneratorError(
            f"second_discriminator = '{name}' reads grey or RGB images, not {channels} channels: take 'scales'."
        )
    network = resolve(name, Request("second_discriminator", device), "maps")
    return FeatureDiscriminator(network, channels, max(resolution, LPIPS_SIDE) if of_lpips else resolution, device)


class Discriminators(nn.Module):
    """Both discriminators: `[N, 1 + k]` logits, StyleGAN2's first."""

    def __init__(self, first: Discriminator, second: Second) -> None:
        super().__init__()
        self.first, self.second = first, second

    def forward(self, images: Tensor, c: Tensor | None = None) -> Tensor:
        return torch.cat([self.first(images, c), self.second(images)], 1)


def adversarial(logits: Tensor) -> Tensor:
    """Sum of both discriminators' logistic losses of logits `[N, 1 + k]` that should be large; one's, where k is 0."""
    first = logistic(logits[:, :1])
    return first if logits.shape[1] == 1 else first + logistic(logits[:, 1:])
