"""A small U-Net from an image to one score for each pixel (Ronneberger et al. 2015, arXiv:1505.04597).

The thesis' (section 3.4.2) is symmetric, with three 3x3 convolutions a block down, two up, nearest-neighbour
up-sampling and widths [32, 64, 128, 256]; it was trained on a GPU. A network of that size would be trained here for
each classifier, on a CPU, so that the defaults are smaller: two convolutions a block and widths [8, 16, 32, 64], 0.12 M
parameters. Two further departures. Group instead of batch normalisation: the map of an image does not depend on the
images beside it, in training and after. Two coordinate channels beside the image (Liu et al. 2018, arXiv:1807.03247):
what a classifier is vulnerable to often has a fixed place, which convolutions alone know from the padding only.
"""

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from audit.errors import MetricError

WIDTHS = (8, 16, 32, 64)
SMALLEST_SIDE = 16


def _block(before: int, after: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for channels in (before, after):
        layers += [
            nn.Conv2d(channels, after, 3, padding=1, bias=False),
            nn.GroupNorm(max(1, after // 8), after),
            nn.ReLU(inplace=True),
        ]
    return nn.Sequential(*layers)


def _coordinates(images: Tensor) -> Tensor:
    """Two channels `[N, 2, H, W]` that run from -1 to 1 down and across the image."""
    n, _, height, width = images.shape
    down = torch.linspace(-1, 1, height, device=images.device, dtype=images.dtype)
    across = torch.linspace(-1, 1, width, device=images.device, dtype=images.dtype)
    return torch.stack(torch.meshgrid(down, across, indexing="ij")).expand(n, -1, -1, -1)


class UNet(nn.Module):
    """Maps images `[N, C, H, W]` in [0, 1] to scores `[N, H, W]`, for any H and W of at least 16.

    A fresh one gives the score 0 everywhere: before training every choice of pixels is equally likely.
    """

    def __init__(self, channels: int, widths: Sequence[int] = WIDTHS) -> None:
        super().__init__()
        before = [channels + 2, *widths[:-1]]
        self.down = nn.ModuleList(_block(a, b) for a, b in zip(before, widths, strict=True))
        self.up = nn.ModuleList(_block(low + high, high) for high, low in itertools.pairwise(widths))
        # No bias: only the order and the differences of an image's scores matter.
        self.score = nn.Conv2d(widths[0], 1, 1, bias=False)
        nn.init.zeros_(self.score.weight)

    def forward(self, images: Tensor) -> Tensor:
        """Return the scores `[N, H, W]`; raises MetricError on images smaller than 16 pixels."""
        if min(images.shape[-2:]) < SMALLEST_SIDE:
            raise MetricError(
                f"Vulnerability maps need images of at least {SMALLEST_SIDE}x{SMALLEST_SIDE} pixels where these are "
                f"{images.shape[-2]}x{images.shape[-1]}: set a larger data.image_size."
            )
        # Grey values of radiographs sit far from 0; centred inputs train faster.
        features = torch.cat([images * 2 - 1, _coordinates(images)], dim=1)
        skips: list[Tensor] = []
        for level, block in enumerate(self.down):
            if level:
                # A side that is odd rounds up, and is met again on the way up by the size of the skipped features.
                features = functional.max_pool2d(features, 2, ceil_mode=True)
            features = block(features)
            skips.append(features)
        for skip, block in zip(reversed(skips[:-1]), reversed(self.up), strict=True):
            grown = functional.interpolate(features, size=skip.shape[-2:], mode="nearest")
            features = block(torch.cat([skip, grown], dim=1))
        return self.score(features)[:, 0]
