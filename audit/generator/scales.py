"""A second discriminator that judges at every scale, with normalised maps.

StyleGAN2's discriminator has no normalisation and is held smooth by R1, so differences that are faint beside the image
reach it late, the later the fewer maps it has. A network with normalised maps sees them at once. Source: Wang et al.,
"High-Resolution Image Synthesis and Semantic Manipulation with Conditional GANs" (2018), section 3.2, for judging at
several scales; Wu and He, "Group Normalization" (2018).
"""

import torch
from torch import Tensor, nn

from audit.metrics.domain import Stage, default_widths

HEAD_WIDTH = 64
LAST_SIDE = 4


def head(inputs: int, side: int) -> nn.Sequential:
    """From a map `[N, inputs, side, side]` to a logit `[N, 1]`."""
    layers: list[nn.Module] = [nn.Conv2d(inputs, HEAD_WIDTH, 1)]
    while side > LAST_SIDE:
        layers += [nn.LeakyReLU(0.2), nn.Conv2d(HEAD_WIDTH, HEAD_WIDTH, 4, stride=2, padding=1)]
        side //= 2
    return nn.Sequential(*layers, nn.LeakyReLU(0.2), nn.Flatten(), nn.Linear(HEAD_WIDTH * side**2, 1))


class ScaleDiscriminator(nn.Module):
    """Images `[N, channels, R, R]` in [-1, 1] to a logit for each of its scales `[N, scales]`, from fine to coarse."""

    def __init__(self, resolution: int, channels: int) -> None:
        super().__init__()
        widths = default_widths(resolution, resolution)
        self.stages = nn.ModuleList([Stage(a, b) for a, b in zip((channels, *widths), widths, strict=False)])
        self.heads = nn.ModuleList([head(width, resolution >> i) for i, width in enumerate(widths, 1)])

    def forward(self, images: Tensor) -> Tensor:
        logits, x = [], images * 2  # to the unit variance that its first layer is initialised for
        for stage, judge in zip(self.stages, self.heads, strict=True):
            x = stage(x)
            logits.append(judge(x))
        return torch.cat(logits, 1)
