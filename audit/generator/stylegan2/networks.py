"""StyleGAN2 mapping network and skip generator in plain PyTorch.

Source: Karras et al., "Analyzing and Improving the Image Quality of StyleGAN" (2020) and "Training Generative
Adversarial Networks with Limited Data" (2020). Parameter names follow the widespread layout
(`mapping.fc0`, `synthesis.b8.conv0.affine`, ...), so that checkpoints of that layout load under their own names.

Under autocast the convolutions run in 16 bits, with clamped maps; parameters and image stay in float32.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn

from audit.errors import GeneratorError
from audit.generator.held import Held
from audit.generator.stylegan2.architecture import NEEDS_CLASS, bounded, feature_maps, settings_of, weights_hash
from audit.generator.stylegan2.layers import (
    SQRT2,
    Deltas,
    EqualLinear,
    blur_filter,
    energy_of,
    leaky,
    modulated_conv,
    upsample,
)

NOISE_MODES = ("const", "none", "random")


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
                raise GeneratorError(NEEDS_CLASS.format("generator"))
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
    return deltas.once(name, lambda: parameter + deltas[name]) if isinstance(deltas, Held) else parameter + deltas[name]


def _energy(weight: Tensor, name: str, deltas: Deltas | None) -> Tensor | None:
    """The energy of weights that stay the same for many images; None: it is to be computed with the others."""
    if isinstance(deltas, Held) and name in deltas:
        return deltas.once(f"{name} (energy)", lambda: energy_of(weight))
    return None


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
        name = f"{self.name}.weight"
        weight = _tuned(self.weight, name, deltas)
        up_filter, energy = self.resample_filter if self.up else None, _energy(weight, name, deltas)
        x = modulated_conv(x, weight, self.affine(w), True, up_filter, gain=SQRT2, energy=energy)
        bias = _per_channel(_tuned(self.bias, f"{self.name}.bias", deltas)).to(x.dtype) * SQRT2
        if noise == "const":
            fixed = (self.noise_const * (self.noise_strength * SQRT2)).to(x.dtype)
            if deltas is None:
                bias = bias + fixed
            else:
                # Not in place: a grouped convolution's maps are a view, whose changes autograd pays for with copies.
                x = x + fixed
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

    def __init__(self, w_dim: int, channels: int, maps: dict[int, int]):
        super().__init__()
        self.resolutions = list(maps)
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
            # The image layer of a block and the first layer of the next share one w.
            x, image = getattr(self, f"b{res}")(x, image, ws[:, index:], noise, deltas, generator)
            index += 1 if res == 4 else 2
        assert image is not None
        return image


class Generator(nn.Module):
    """StyleGAN2 generator; `draw` and `images` speak pixel units, `synthesis` the network's own [-1, 1].

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
        *,
        mapping_layers: int = 2,
        c_dim: int = 0,
        channel_widths: Any = None,
    ):
        super().__init__()
        maps = feature_maps(resolution, channels, channel_base, channel_max, channel_widths)
        self.z_dim, self.w_dim, self.c_dim = z_dim, w_dim, c_dim
        self.resolution, self.channels = resolution, channels
        self.synthesis = Synthesis(w_dim, channels, maps)
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
        self.settings = settings_of(settings, maps, channel_widths)

    @property
    def mean_code(self) -> Tensor:
        """Running mean `[w_dim]` of the codes of a training."""
        return self.mapping.w_avg

    @property
    def tunable(self) -> dict[str, torch.Size]:
        """Weights and biases of the convolutions and image layers and the constant.

        The affine layers are left out, for they hold the meaning of a code, and so are the strengths of the noise.
        """
        return {
            name: parameter.shape
            for name, parameter in self.synthesis.named_parameters()
            if ".affine." not in name and not name.endswith("noise_strength")
        }

    @property
    def weights_sha256(self) -> str:
        """Hash of all tensors: the same for every file and device that hold them."""
        return weights_hash(self)

    @torch.no_grad()
    def random_codes(self, n: int, rng: torch.Generator) -> Tensor:
        """Draw `n` codes of W, float32 `[n, w_dim]`; classes of a conditional generator are drawn uniformly."""
        device = self.mean_code.device
        z = torch.randn(n, self.z_dim, generator=rng, device=rng.device).to(device)
        c = None
        if self.c_dim:
            drawn = torch.randint(self.c_dim, (n,), generator=rng, device=rng.device).to(device)
            c = nn.functional.one_hot(drawn, self.c_dim).float()
        codes: Tensor = self.mapping(z, c=c)
        return codes[:, 0].float()

    def draw(self, ws: Tensor, deltas: Deltas | None = None) -> Tensor:
        """Draw float32 `[N, C, R, R]` in pixel units, not clamped, from w+ codes `[N, num_ws, w_dim]`.

        `deltas` are per-image additions to `tunable` parameters.
        """
        return pixels(self.synthesis(ws, deltas=deltas))

    def images(self, ws: Tensor, deltas: Deltas | None = None) -> Tensor:
        """Draw as `draw` does, clamped to [0, 1]."""
        return self.draw(ws, deltas).clamp(0, 1)

    def forward(self, z: Tensor, truncation: float = 1.0, noise: str = "const", c: Tensor | None = None) -> Tensor:
        return self.synthesis(self.mapping(z, truncation, c), noise)


def pixels(network_range: Tensor) -> Tensor:
    """Map the network's [-1, 1] to pixels in [0, 1], without clamping."""
    return network_range.float() * 0.5 + 0.5


def network_range(images: Tensor) -> Tensor:
    """Map pixels in [0, 1] to the network's [-1, 1]."""
    return images * 2 - 1
