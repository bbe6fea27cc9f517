"""Building blocks of StyleGAN2: equalised learning rate, [1, 3, 3, 1] resampling, modulated convolution.

Source: Karras et al., "Analyzing and Improving the Image Quality of StyleGAN" (2020), sections 2.2 and 4, and
Karras et al., "Progressive Growing of GANs" (2018), section 4.1 for the equalised learning rate. Written from the
papers' equations.

Forms were chosen by what `benchmarks/networks.py` measures: channels-last maps for dense convolutions, a grouped
convolution where every image has weights of its own, and a 4x4 filter after a 3x3 convolution, which is less work than
one 6x6 convolution that does both. A search differentiates by the styles and not by the weights (`_Modulated`).
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from audit.generator.stylegan2.architecture import HALF, bounded

SQRT2 = math.sqrt(2.0)
Deltas = Mapping[str, Tensor]
"""Per-image additions to parameters, by the parameter's name: `[N, *parameter.shape]`."""


PER_CALL = 8
"""Images with weights of their own that go through one grouped transposed convolution on a CPU."""


def leaky(x: Tensor) -> Tensor:
    """Leaky ReLU with slope 0.2 **in place**, without its gain: a pass over the maps that needs no new memory.

    StyleGAN2 multiplies by sqrt(2) afterwards to keep the variance of a unit Gaussian input. The function is positively
    homogeneous, so callers put that gain into the weights and biases before it and save a pass over the maps.
    """
    return F.leaky_relu_(x, 0.2)


def blur_filter() -> Tensor:
    """The normalised 4x4 binomial filter [1, 3, 3, 1] that anti-aliases every change of resolution."""
    taps = torch.tensor([1.0, 3.0, 3.0, 1.0])
    filt = torch.outer(taps, taps)
    return filt / filt.sum()


def dense(x: Tensor) -> Tensor:
    """Lay `x` out as dense convolutions are fastest: channels last on CPUs and in half precision, else as it is.

    Maps of one channel or one pixel count as either layout, so a network says what it wants where it uses it.
    """
    if x.device.type == "cpu" or x.dtype in HALF:
        return x.contiguous(memory_format=torch.channels_last)
    return x


def upsample(x: Tensor) -> Tensor:
    """Double the resolution by the [1, 3, 3, 1] filter: `[N, C, H, W]` to `[N, C, 2H, 2W]`.

    Bilinear interpolation has the same taps; padding by one zero makes the borders agree as well.
    """
    return F.interpolate(F.pad(x, (1, 1, 1, 1)), scale_factor=2, mode="bilinear")[..., 2:-2, 2:-2]


def blur(x: Tensor, filt: Tensor, padding: int, stride: int = 1, gain: float = 1.0) -> Tensor:
    """Filter every channel of `x` by the 4x4 `filt`, keeping one pixel of each `stride`."""
    kernel = (filt * gain).to(x.dtype).expand(x.shape[1], 1, 4, 4)
    if stride > 1 and x.dtype in HALF and x.device.type == "cpu":  # whose gradient has no fast form there
        return F.conv2d(x, kernel, padding=padding, groups=x.shape[1])[..., ::stride, ::stride]
    return F.conv2d(x, kernel, stride=stride, padding=padding, groups=x.shape[1])


class EqualLinear(nn.Module):
    """Linear layer whose weights have unit variance and are scaled at run time (equalised learning rate)."""

    def __init__(self, inputs: int, outputs: int, bias: float = 0.0, lr_multiplier: float = 1.0, act: bool = False):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs) / lr_multiplier)
        self.bias = nn.Parameter(torch.full((outputs,), bias / lr_multiplier))
        self.weight_gain = lr_multiplier / math.sqrt(inputs)
        self.bias_gain = lr_multiplier
        self.act = act

    def forward(self, x: Tensor) -> Tensor:
        gain = SQRT2 if self.act else 1.0
        out = F.linear(x, self.weight * (self.weight_gain * gain), self.bias * (self.bias_gain * gain))
        return leaky(out) if self.act else out


class EqualConv(nn.Module):
    """Convolution of the discriminator with equalised learning rate and optional 2x downsampling."""

    resample_filter: Tensor

    def __init__(self, inputs: int, outputs: int, kernel: int, bias: bool = True, act: bool = True, down: bool = False):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs, kernel, kernel))
        self.bias = nn.Parameter(torch.zeros(outputs)) if bias else None
        self.register_buffer("resample_filter", blur_filter())
        self.weight_gain = 1 / math.sqrt(inputs * kernel**2)
        self.act, self.down = act, down

    def forward(self, x: Tensor, gain: float = 1.0) -> Tensor:
        gain = gain * SQRT2 if self.act else gain
        weight = (self.weight * (self.weight_gain * gain)).to(x.dtype)
        bias = None if self.bias is None else (self.bias * gain).to(x.dtype)
        x, weight = dense(x), dense(weight)
        padding = weight.shape[-1] // 2
        if self.down and padding == 0:  # a 1x1 convolution commutes with dropping pixels: filter and drop first
            x = F.conv2d(blur(x, self.resample_filter, padding=1, stride=2), weight, bias)
        elif self.down:
            x = F.conv2d(blur(x, self.resample_filter, padding=2), weight, bias, stride=2)
        else:
            x = F.conv2d(x, weight, bias, padding=padding)
        return bounded(leaky(x) if self.act else x)


def energy_of(weight: Tensor) -> Tensor:
    """Sums `[..., O, I]` of the squares of weights `[..., O, I, k, k]`."""
    return weight.square().sum((-1, -2))


def demodulation(weight: Tensor, styles: Tensor, energy: Tensor | None = None) -> Tensor:
    """Factors `[N, O]` that give every output map unit expected variance (StyleGAN2 equation 3).

    `weight` is `[O, I, k, k]`, or `[N, O, I, k, k]` where every image has its own; `styles` is `[N, I]`; `energy` is
    that of the weights, if it is known.
    """
    energy = energy_of(weight) if energy is None else energy
    equation = "ni,noi->no" if energy.ndim == 3 else "ni,oi->no"
    return torch.rsqrt(torch.einsum(equation, styles.square(), energy) + 1e-8)


def modulated_conv(
    x: Tensor,
    weight: Tensor,
    styles: Tensor,
    demodulate: bool,
    up_filter: Tensor | None = None,
    gain: float = 1.0,
    *,
    energy: Tensor | None = None,
) -> Tensor:
    """Convolve `x` `[N, I, H, W]` by weights modulated with `styles` `[N, I]` (StyleGAN2 equations 1 and 3).

    Modulating the input and demodulating the output gives the same result as modulating the weights and lets a batch
    share one dense convolution. Only weights that differ by image (`[N, O, I, k, k]`) need a grouped one, and take the
    modulation themselves where they are smaller than the maps.
    With `up_filter` (4x4) the resolution doubles, and it removes the aliases. `gain` scales the demodulated output.
    `energy` is that of the weights, where it is known.
    """
    up = up_filter is not None
    shared = weight.ndim == 4
    if demodulate and x.dtype in HALF:
        # Demodulation takes any factor out again: this one keeps sums within the range of 16 bits.
        styles = styles / styles.abs().amax(1, keepdim=True).clamp_min(1e-8)
        weight, energy = weight / math.sqrt(weight[0].numel() if shared else weight[0, 0].numel()), None
    scale = demodulation(weight, styles, energy) * gain if demodulate else None
    smaller = not shared and weight[0].numel() < x[0].numel()
    if smaller and scale is not None and not weight.requires_grad and x.dtype == weight.dtype:
        x, scale = _Modulated.apply(x, weight, styles, scale, up), None
    elif smaller:
        weight = weight * styles[:, None, :, None, None]
        if scale is not None:
            weight, scale = weight * scale[:, :, None, None, None], None
        x = _grouped(x, weight.to(x.dtype), up)
    else:
        x, weight = x * styles[:, :, None, None].to(x.dtype), weight.to(x.dtype)
        if not shared:
            x = _grouped(x, weight, up)
        elif up:
            x = F.conv_transpose2d(dense(x), dense(weight).transpose(0, 1), stride=2)
        else:
            x = F.conv2d(dense(x), dense(weight), padding=weight.shape[-1] // 2)
    if up_filter is not None:
        x = blur(x, up_filter, padding=1, gain=4.0)
    return x if scale is None else x * scale[:, :, None, None].to(x.dtype)


class _Modulated(torch.autograd.Function):
    """Convolution of every image by weights of its own that need no gradient, modulated and demodulated.

    Its gradient by `styles` `[N, I]` and `scale` `[N, O]` follows from the maps and their gradients, without that of
    the modulated weights, which takes as much work as the convolution itself.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, styles: Tensor, scale: Tensor, up: bool) -> Tensor:
        modulated = weight * styles[:, None, :, None, None] * scale[:, :, None, None, None]
        out = _grouped(x, modulated, up)
        ctx.save_for_backward(x, weight, styles, scale, out)
        ctx.up = up
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, styles, scale, out = ctx.saved_tensors
        kernel = (weight * scale[:, :, None, None, None]).transpose(1, 2)
        stride, padding = (2, 0) if ctx.up else (1, weight.shape[-1] // 2)
        if (
            not ctx.up
        ):  # a transposed convolution is the adjoint of one by the same kernel, the other of one by its mirror
            kernel = kernel.flip(3, 4)
        kernel, maps = kernel.reshape(-1, *kernel.shape[2:]), gradient.reshape(1, -1, *gradient.shape[2:])
        back = F.conv2d(maps, kernel, stride=stride, padding=padding, groups=len(x)).view_as(x)
        by_style = torch.einsum("nihw,nihw->ni", back, x)
        by_scale = torch.einsum("nohw,nohw->no", gradient, out) / scale
        return back.mul_(styles[:, :, None, None]), None, by_style, by_scale, None


def _grouped(x: Tensor, weight: Tensor, up: bool) -> Tensor:
    """Convolve every image of `x` by its own `weight` `[N, O, I, k, k]`, or by its transpose with stride 2."""
    if up and x.device.type == "cpu" and len(x) > PER_CALL:
        # On CPUs the transposed form of many groups falls off: a few images at a time are faster.
        parts = zip(x.split(PER_CALL), weight.split(PER_CALL), strict=True)
        return torch.cat([_grouped(maps, own, up) for maps, own in parts])
    n, _, height, width = x.shape
    if weight.shape[-1] == 1 and not up:  # a product of matrices, for which a grouped convolution has no fast form
        return torch.bmm(weight[..., 0, 0], x.flatten(2)).view(n, -1, height, width)
    kernel = weight.transpose(1, 2) if up else weight
    kernel = kernel.reshape(-1, *kernel.shape[2:])
    x = x.reshape(1, -1, height, width)
    if up:
        x = F.conv_transpose2d(x, kernel, stride=2, groups=n)
    else:
        x = F.conv2d(x, kernel, padding=kernel.shape[-1] // 2, groups=n)
    return x.reshape(n, -1, *x.shape[2:])
