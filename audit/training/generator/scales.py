"""A second discriminator with normalised maps, which gives a logit at every scale.

StyleGAN2's discriminator has no normalisation and is held smooth by R1, so differences that are faint beside the image
reach it late, the later the fewer maps it has. A network with normalised maps sees them at once. Source: Wang et al.,
"High-Resolution Image Synthesis and Semantic Manipulation with Conditional GANs" (2018), section 3.2, for logits at
several scales; Wu and He, "Group Normalization" (2018).

A discriminator that sees images one by one learns slowly that each of them is plausible and yet they vary too little.
So it may be shown how far a group of images lies apart in each of its features. Source: Karras et al., "Progressive
Growing of GANs" (2018), section 3, whose minibatch deviation is averaged to one number, in which a faint factor drowns;
Salimans et al., "Improved Techniques for Training GANs" (2016), section 3.2, for one number per feature.
"""

import torch
from torch import Tensor, nn

from audit.embeddings.domain import Stage, default_widths
from audit.generator.stylegan2.discriminator import largest_group

HEAD_WIDTH = 64
LAST_SIDE = 4


class Spread(nn.Module):
    """Append to features `[N, F]` their standard deviations in groups of up to `most` images: `[N, 2 F]`.

    Larger groups tell a deviation more exactly and give fewer of them.
    """

    def __init__(self, most: int) -> None:
        super().__init__()
        self.most = most

    def forward(self, x: Tensor) -> Tensor:
        group = largest_group(len(x), self.most)
        # The small number keeps the root's gradient finite where all images of a group are alike.
        deviation = (x.view(group, -1, x.shape[1]).var(0, correction=0) + 1e-4).sqrt()
        return torch.cat([x, deviation.repeat(group, 1)], 1)


def head(inputs: int, side: int, spread_group: int = 0) -> nn.Sequential:
    """From a map `[N, inputs, side, side]` to a logit `[N, 1]`, of the features' deviations in groups, too, if any."""
    layers: list[nn.Module] = [nn.Conv2d(inputs, HEAD_WIDTH, 1)]
    while side > LAST_SIDE:
        layers += [nn.LeakyReLU(0.2), nn.Conv2d(HEAD_WIDTH, HEAD_WIDTH, 4, stride=2, padding=1)]
        side //= 2
    features = HEAD_WIDTH * side**2
    last = [Spread(spread_group), nn.Linear(2 * features, 1)] if spread_group else [nn.Linear(features, 1)]
    return nn.Sequential(*layers, nn.LeakyReLU(0.2), nn.Flatten(), *last)


class ScaleDiscriminator(nn.Module):
    """Images `[N, channels, R, R]` in [-1, 1] to a logit for each of its scales `[N, scales]`, from fine to coarse."""

    def __init__(self, resolution: int, channels: int, spread_group: int = 0) -> None:
        super().__init__()
        widths = default_widths(resolution, resolution)
        self.stages = nn.ModuleList([Stage(a, b) for a, b in zip((channels, *widths), widths, strict=False)])
        self.heads = nn.ModuleList([head(width, resolution >> i, spread_group) for i, width in enumerate(widths, 1)])

    def forward(self, images: Tensor) -> Tensor:
        logits, x = [], images * 2  # to the unit variance that its first layer is initialised for
        for stage, last in zip(self.stages, self.heads, strict=True):
            x = stage(x)
            logits.append(last(x))
        return torch.cat(logits, 1)
