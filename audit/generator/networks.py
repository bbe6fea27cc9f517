"""StyleGAN2 mapping network, skip generator and residual discriminator in plain PyTorch.

Source: Karras et al., "Analyzing and Improving the Image Quality of StyleGAN" (2020) and "Training Generative
Adversarial Networks with Limited Data" (2020). Parameter names follow the widespread layout
(`mapping.fc0`, `synthesis.b8.conv0.affine`, ...), so that checkpoints of that layout load under their own names.

With `half_resolutions` so many of the highest resolutions run in `half_dtype`, with clamped maps; parameters, mapping
and image stay in float32. It is a way of running, not part of the architecture: `settings` do not hold it.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from audit.errors import GeneratorError
from audit.generator.architecture import bounded, feature_maps, half_sides, said
from audit.generator.architecture import channels_at as channels_at
from audit.generator.layers import (
    SQRT2,
    Deltas,
    EqualConv,
    EqualLinear,
    blur_filter,
    leaky,
    modulated_conv,
    upsample,
)

NOISE_MODES = ("const", "none", "random")
_NEEDS_CLASS = "A conditional {} needs its class vector c: give one-hot rows of shape (images, c_dim)."


class Mapping(nn.Module):
    """z `[N, z_dim]` (and one-hot class `[N, c_dim]`) to w, repeated for every layer: `[N, num_ws, w_dim]`."""

    w_avg: Tensor

    def __init__(self, z_dim: int, w_dim: int, num_ws: int, layers: int, c_dim: int = 0, lr_multiplier: float = 0.01):
        super().__init__()
        self.num_ws, self.layers, self.z_dim, self.c_dim = num_ws, layers, z_dim, c_dim
        if c_dim:
            self.embed = EqualLinear(c_dim, w_dim)
        for i in range(layers):
            inputs = z_dim + (w_dim if c_dim else 0) if i == 0 else w_dim
            setattr(self, f"fc{i}", EqualLinear(inputs, w_dim, lr_multiplier=lr_multiplier, act=True))
        self.register_buffer("w_avg", torch.zeros(w_dim))

    def forward(self, z: Tensor, truncation: float = 1.0, c: Tensor | None = None) -> Tensor:
        x = z * torch.rsqrt(z.square().mean(1, keepdim=True) + 1e-8)
        if self.c_dim:
            if c is None:
                raise GeneratorError(_NEEDS_CLASS.format("generator"))
            y = self.embed(c)
            x = torch.cat([x, y * torch.rsqrt(y.square().mean(1, keepdim=True) + 1e-8)], 1)
        for i in range(self.layers):
            x = getattr(self, f"fc{i}")(x)
        if truncation != 1.0:
            x = self.w_avg.lerp(x, truncation)
        return x[:, None].expand(-1, self.num_ws, -1)


def _tuned(parameter: Tensor, name: str, deltas: Deltas | None) -> Tensor:
    """The parameter, or `[N, *shape]` where `deltas` holds per-image additions to it."""
    if deltas is None or name not in deltas:
        return parameter
    return parameter + deltas[name]


def _per_channel(bias: Tensor) -> Tensor:
    """Shape a bias `[C]` or `[N, C]` for adding to maps `[N, C, H, W]`."""
    return bias[..., None, None]


class SynthesisLayer(nn.Module):
    """Modulated 3x3 convolution, noise, bias and leaky ReLU."""

    resample_filter: Tensor
    noise_const: Tensor

    def __init__(self, name: str, inputs: int, outputs: int, w_dim: int, resolution: int, up: bool = False):
        super().__init__()
        self.name, self.up, self.resolution = name, up, resolution
        self.affine = EqualLinear(w_dim, inputs, bias=1.0)
        self.weight = nn.Parameter(torch.randn(outputs, inputs, 3, 3))
        self.bias = nn.Parameter(torch.zeros(outputs))
        self.noise_strength = nn.Parameter(torch.zeros([]))
        self.register_buffer("noise_const", torch.randn(resolution, resolution))
        self.register_buffer("resample_filter", blur_filter())

    def forward(
        self, x: Tensor, w: Tensor, noise: str, deltas: Deltas | None, generator: torch.Generator | None
    ) -> Tensor:
        weight = _tuned(self.weight, f"{self.name}.weight", deltas)
        x = modulated_conv(x, weight, self.affine(w), True, self.up, self.resample_filter, gain=SQRT2)
        bias = _per_channel(_tuned(self.bias, f"{self.name}.bias", deltas)).to(x.dtype) * SQRT2
        if noise == "const":
            bias = bias + (self.noise_const * (self.noise_strength * SQRT2)).to(x.dtype)
        elif noise == "random":
            shape = (x.shape[0], 1, self.resolution, self.resolution)
            drawn = torch.randn(shape, device=x.device, dtype=x.dtype, generator=generator)
            x += drawn * (self.noise_strength * SQRT2).to(x.dtype)
        x += bias
        return bounded(leaky(x))


class ToRGB(nn.Module):
    """Modulated 1x1 convolution to image channels, without demodulation."""

    def __init__(self, name: str, inputs: int, channels: int, w_dim: int):
        super().__init__()
        self.name = name
        self.affine = EqualLinear(w_dim, inputs, bias=1.0)
        self.weight = nn.Parameter(torch.randn(channels, inputs, 1, 1))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.style_gain = 1 / math.sqrt(inputs)

    def forward(self, x: Tensor, w: Tensor, deltas: Deltas | None) -> Tensor:
        weight = _tuned(self.weight, f"{self.name}.weight", deltas)
        x = modulated_conv(x, weight, self.affine(w) * self.style_gain, demodulate=False)
        x = bounded(x).to(self.bias.dtype)  # the image is summed up in full precision
        return x + _per_channel(_tuned(self.bias, f"{self.name}.bias", deltas))


class SynthesisBlock(nn.Module):
    """One resolution of the skip generator: up to two convolutions and a contribution to the image."""

    resample_filter: Tensor

    def __init__(self, name: str, inputs: int, outputs: int, w_dim: int, resolution: int, channels: int):
        super().__init__()
        self.name = name
        self.first = inputs == 0
        if self.first:
            self.const = nn.Parameter(torch.randn(outputs, resolution, resolution))
        else:
            self.conv0 = SynthesisLayer(f"{name}.conv0", inputs, outputs, w_dim, resolution, up=True)
        self.conv1 = SynthesisLayer(f"{name}.conv1", outputs, outputs, w_dim, resolution)
        self.torgb = ToRGB(f"{name}.torgb", outputs, channels, w_dim)
        self.register_buffer("resample_filter", blur_filter())

    def forward(
        self,
        x: Tensor | None,
        image: Tensor | None,
        ws: Tensor,
        noise: str,
        deltas: Deltas | None,
        generator: torch.Generator | None,
    ) -> tuple[Tensor, Tensor]:
        layer = 0
        if x is None:
            const = _tuned(self.const, f"{self.name}.const", deltas)
            x = const if const.ndim == 4 else const.expand(ws.shape[0], -1, -1, -1)
        else:
            x = self.conv0(x, ws[:, 0], noise, deltas, generator)
            layer = 1
        x = self.conv1(x, ws[:, layer], noise, deltas, generator)
        rgb = self.torgb(x, ws[:, layer + 1], deltas)
        return x, rgb if image is None else upsample(image) + rgb


class Synthesis(nn.Module):
    """w+ `[N, num_ws, w_dim]` to an image `[N, channels, R, R]` in the network's range (about [-1, 1])."""

    half_dtype = torch.bfloat16

    def __init__(self, w_dim: int, channels: int, maps: dict[int, int], half_resolutions: int):
        super().__init__()
        self.resolutions = list(maps)
        self.half_sides = half_sides(self.resolutions, half_resolutions)
        self.num_ws = 2 * len(self.resolutions)
        inputs = 0
        for res, outputs in maps.items():
            setattr(self, f"b{res}", SynthesisBlock(f"b{res}", inputs, outputs, w_dim, res, channels))
            inputs = outputs

    def forward(
        self,
        ws: Tensor,
        noise: str = "const",
        deltas: Deltas | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        if noise not in NOISE_MODES:
            raise ValueError(f"noise is '{noise}'; one of {', '.join(NOISE_MODES)}")
        x: Tensor | None = None
        image: Tensor | None = None
        index = 0
        for res in self.resolutions:
            if x is not None and res in self.half_sides:
                x = x.to(self.half_dtype)
            # The image layer of a block and the first layer of the next share one w.
            x, image = getattr(self, f"b{res}")(x, image, ws[:, index:], noise, deltas, generator)
            index += 1 if res == 4 else 2
        assert image is not None
        return image


class Generator(nn.Module):
    """StyleGAN2 generator; `images` keeps the pixel contract, `synthesis` speaks the network's own [-1, 1].

    `num_ws` is the number of style inputs: `2 log2(resolution) - 2`. `channel_widths` gives the number of feature maps
    for each resolution where it does not follow `min(channel_base / resolution, channel_max)`. Raises GeneratorError
    for sizes that no network has.
    """

    def __init__(
        self,
        z_dim: int = 64,
        w_dim: int = 64,
        resolution: int = 64,
        channels: int = 1,
        channel_base: int = 1024,
        channel_max: int = 32,
        mapping_layers: int = 2,
        c_dim: int = 0,
        channel_widths: Any = None,
        half_resolutions: int = 0,
    ):
        super().__init__()
        maps = feature_maps(resolution, channels, channel_base, channel_max, channel_widths)
        self.z_dim, self.w_dim, self.c_dim = z_dim, w_dim, c_dim
        self.resolution, self.channels = resolution, channels
        self.synthesis = Synthesis(w_dim, channels, maps, half_resolutions)
        self.num_ws = self.synthesis.num_ws
        self.mapping = Mapping(z_dim, w_dim, self.num_ws, mapping_layers, c_dim)
        settings = {
            "z_dim": z_dim,
            "w_dim": w_dim,
            "resolution": resolution,
            "channels": channels,
            "channel_base": channel_base,
            "channel_max": channel_max,
            "mapping_layers": mapping_layers,
            "c_dim": c_dim,
        }
        self.settings = said(settings, maps, channel_widths)

    def images(self, ws: Tensor, noise: str = "const", deltas: Deltas | None = None) -> Tensor:
        """Draw float32 `[N, C, R, R]` in [0, 1] from w+ codes `[N, num_ws, w_dim]`, with optional tuned weights."""
        return pixels(self.synthesis(ws, noise, deltas)).clamp(0, 1)

    def forward(self, z: Tensor, truncation: float = 1.0, noise: str = "const", c: Tensor | None = None) -> Tensor:
        return self.synthesis(self.mapping(z, truncation, c), noise)


def pixels(network_range: Tensor) -> Tensor:
    """Map the network's [-1, 1] to pixels in [0, 1], without clamping."""
    return network_range.float() * 0.5 + 0.5


def network_range(images: Tensor) -> Tensor:
    """Map pixels in [0, 1] to the network's [-1, 1]."""
    return images * 2 - 1


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


def minibatch_stddev(x: Tensor, group: int) -> Tensor:
    """Append one map holding the mean standard deviation within groups of `group` images (the largest divisor of N)."""
    n, channels, height, width = x.shape
    size = next(g for g in range(min(group, n), 0, -1) if n % g == 0)
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

    half_dtype = torch.bfloat16

    def __init__(
        self,
        resolution: int = 64,
        channels: int = 1,
        channel_base: int = 1024,
        channel_max: int = 32,
        mbstd_group: int = 4,
        c_dim: int = 0,
        mapping_layers: int = 2,
        channel_widths: Any = None,
        half_resolutions: int = 0,
    ):
        super().__init__()
        maps = feature_maps(resolution, channels, channel_base, channel_max, channel_widths)
        self.resolutions = list(maps)[:0:-1]
        self.half_sides = half_sides(list(maps), half_resolutions)
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
        self.settings = said(settings, maps, channel_widths)

    def maps(self, images: Tensor) -> list[Tensor]:
        """Feature maps `[N, c, h, w]` after each residual block, from fine to coarse; input in [-1, 1]."""
        x, maps = images, []
        for res in self.resolutions:
            x = getattr(self, f"b{res}")(x.to(self.half_dtype if res in self.half_sides else images.dtype))
            maps.append(x)
        return maps

    def forward(self, images: Tensor, c: Tensor | None = None) -> Tensor:
        x = self.b4(self.maps(images)[-1].to(images.dtype))
        if not self.c_dim:
            return x
        if c is None:
            raise GeneratorError(_NEEDS_CLASS.format("discriminator"))
        projected = self.mapping(torch.empty(len(images), 0, device=images.device), c=c)[:, 0]
        return (x * projected).sum(1, keepdim=True) / math.sqrt(x.shape[1])


def average_parameters(target: nn.Module, source: nn.Module, decay: float) -> None:
    """Move `target` towards `source` by exponential moving average; buffers are copied."""
    with torch.no_grad():
        for average, new in zip(target.parameters(), source.parameters(), strict=True):
            average.lerp_(new, 1 - decay)
        for kept, buffer in zip(target.buffers(), source.buffers(), strict=True):
            kept.copy_(buffer)


def path_lengths(images: Tensor, ws: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Length `[N]` of the Jacobian-vector product of `images` w.r.t. `ws` (StyleGAN2 equation 4); keeps the graph."""
    noise = torch.randn(images.shape, device=images.device, generator=generator)
    scaled = (images * noise).sum() / math.sqrt(images.shape[2] * images.shape[3])
    (gradient,) = torch.autograd.grad(scaled, ws, create_graph=True)
    return gradient.square().sum(2).mean(1).sqrt()


def logistic(logits: Tensor) -> Tensor:
    """Non-saturating logistic loss of logits that should be large: mean of softplus(-logits)."""
    return F.softplus(-logits).mean()
