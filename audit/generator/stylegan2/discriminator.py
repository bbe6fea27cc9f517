"""StyleGAN2 residual discriminator in plain PyTorch.

Source: Karras et al., "Analyzing and Improving the Image Quality of StyleGAN" (2020); Karras et al., "Progressive
Growing of GANs" (2018), section 3, for the minibatch standard deviation; Miyato and Koyama, "cGANs with Projection
Discriminator" (2018), for the class. Names, precision and channels are those of
`audit.generator.stylegan2.networks`.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn

from audit.errors import GeneratorError
from audit.generator.stylegan2.architecture import NEEDS_CLASS, feature_maps, settings_of
from audit.generator.stylegan2.layers import EqualConv, EqualLinear, blur_filter
from audit.generator.stylegan2.networks import Mapping


class DiscriminatorBlock(nn.Module):
    """Residual block that halves the resolution."""

    resample_filter: Tensor

    def __init__(self, inputs: int, outputs: int, channels: int | None):
        super().__init__()
        if channels is not None:
            self.fromrgb = EqualConv(channels, inputs, 1)
        self.conv0 = EqualConv(inputs, inputs, 3)
        self.conv1 = EqualConv(inputs, outputs, 3, down=True)
        self.skip = EqualConv(inputs, outputs, 1, bias=False, act=False, down=True)
        self.register_buffer("resample_filter", blur_filter())

    def forward(self, x: Tensor) -> Tensor:
        if hasattr(self, "fromrgb"):
            x = self.fromrgb(x)
        gain = math.sqrt(0.5)
        return self.skip(x, gain) + self.conv1(self.conv0(x), gain)


def largest_group(n: int, most: int) -> int:
    """Return the largest divisor of `n` up to `most`."""
    return next(size for size in range(min(most, n), 0, -1) if n % size == 0)


def minibatch_stddev(x: Tensor, group: int) -> Tensor:
    """Append one map holding the mean standard deviation within groups of `group` images (the largest divisor of N)."""
    n, channels, height, width = x.shape
    size = largest_group(n, group)
    y = x.reshape(size, n // size, channels, height, width)
    deviation = (y - y.mean(0)).square().mean(0).add(1e-8).sqrt().mean((1, 2, 3))
    return torch.cat([x, deviation.repeat(size)[:, None, None, None].expand(-1, 1, height, width)], 1)


class DiscriminatorEpilogue(nn.Module):
    """Minibatch standard deviation, one convolution and two linear layers at 4x4."""

    def __init__(self, inputs: int, group: int, cmap_dim: int):
        super().__init__()
        self.group = group
        self.conv = EqualConv(inputs + 1, inputs, 3)
        self.fc = EqualLinear(inputs * 16, inputs, act=True)
        self.out = EqualLinear(inputs, cmap_dim or 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.fc(self.conv(minibatch_stddev(x, self.group)).flatten(1)))


class Discriminator(nn.Module):
    """Residual discriminator: images `[N, C, R, R]` in [-1, 1] to logits `[N, 1]`.

    With `c_dim` the class vector is embedded and projected on the output (projection discriminator).
    `channel_widths` and errors are those of `Generator`.
    """

    def __init__(
        self,
        resolution: int = 64,
        channels: int = 1,
        channel_base: int = 1024,
        channel_max: int = 32,
        *,
        mbstd_group: int = 4,
        c_dim: int = 0,
        mapping_layers: int = 2,
        channel_widths: Any = None,
    ):
        super().__init__()
        maps = feature_maps(resolution, channels, channel_base, channel_max, channel_widths)
        self.resolutions = list(maps)[:0:-1]
        for res in self.resolutions:
            rgb = channels if res == resolution else None
            setattr(self, f"b{res}", DiscriminatorBlock(maps[res], maps[res // 2], rgb))
        width = maps[4]
        self.c_dim = c_dim
        self.b4 = DiscriminatorEpilogue(width, mbstd_group, width if c_dim else 0)
        if c_dim:
            self.mapping = Mapping(0, width, 1, mapping_layers, c_dim)
        settings = {
            "resolution": resolution,
            "channels": channels,
            "channel_base": channel_base,
            "channel_max": channel_max,
            "mbstd_group": mbstd_group,
            "c_dim": c_dim,
            "mapping_layers": mapping_layers,
        }
        self.settings = settings_of(settings, maps, channel_widths)

    def maps(self, images: Tensor) -> list[Tensor]:
        """Feature maps `[N, c, h, w]` after each residual block, from fine to coarse; input in [-1, 1]."""
        x, maps = images, []
        for res in self.resolutions:
            x = getattr(self, f"b{res}")(x)
            maps.append(x)
        return maps

    def forward(self, images: Tensor, c: Tensor | None = None) -> Tensor:
        x = self.b4(self.maps(images)[-1].to(images.dtype))
        if not self.c_dim:
            return x
        if c is None:
            raise GeneratorError(NEEDS_CLASS.format("discriminator"))
        projected = self.mapping(torch.empty(len(images), 0, device=images.device), c=c)[:, 0]
        return (x * projected).sum(1, keepdim=True) / math.sqrt(x.shape[1])
