"""Checkpoints in the layout of rosinality's StyleGAN2 (`.pt` with `g_ema`, `g`, `d`, `latent_avg`, `args`).

Both layouts follow the same paper, so that translating is renaming, but for these differences:

- a modulated convolution is `[1, O, I, k, k]` and is scaled by `1 / sqrt(I k k)` at run time. With demodulation the
  scale cancels (StyleGAN2 equation 3); the image layers, which are not demodulated, have the same scale here;
- the mapping's weights are stored divided by its learning-rate multiplier 0.01, as here;
- filters that follow an upsampling carry its gain of 4;
- constant noise maps are `[1, 1, H, W]` buffers of their own, and the strength is `[1]`;
- the running mean of w is the entry `latent_avg` beside the network and is often absent.

Written from the names in such files and the paper's equations.
"""

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from audit.generator.stylegan2.layers import blur_filter
from audit.storage.tensors.file_bytes import Refused

GENERATOR_MARK, DISCRIMINATOR_MARK = "input.input", "final_linear.1.weight"
UPSAMPLING_GAIN = 4.0


def translate_generator(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the tensors of a generator to the layout of `audit.generator.stylegan2.networks.Generator`; raises
    Refused."""
    out: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if name.endswith(".kernel"):
            _check_filter(name, tensor, UPSAMPLING_GAIN)
        else:
            ours, shape = _generator_name(name)
            out[ours] = _reshaped(name, tensor, shape)
    return out


def _generator_name(name: str) -> tuple[str, str]:
    """Our name, and what happens to the shape: 'same', 'first' (drop one leading axis), 'flat', 'scalar', 'map'."""
    if match := re.fullmatch(r"style\.([1-9]\d?)\.(weight|bias)", name):
        return f"mapping.fc{int(match[1]) - 1}.{match[2]}", "same"
    if name == GENERATOR_MARK:
        return "synthesis.b4.const", "first"
    if match := re.fullmatch(r"noises\.noise_(\d{1,2})", name):
        return f"synthesis.{_layer(int(match[1]))}.noise_const", "map"
    parts: dict[str, tuple[str, str]] = {}
    if match := re.fullmatch(r"(conv1|convs\.(\d{1,2}))\.(.+)", name):
        block = _layer(0 if match[2] is None else int(match[2]) + 1)
        parts = {
            "conv.weight": ("weight", "first"),
            "conv.modulation.weight": ("affine.weight", "same"),
            "conv.modulation.bias": ("affine.bias", "same"),
            "noise.weight": ("noise_strength", "scalar"),
            "activate.bias": ("bias", "flat"),
        }
    elif match := re.fullmatch(r"(to_rgb1|to_rgbs\.(\d{1,2}))\.(.+)", name):
        block = f"b{4 if match[2] is None else 8 << int(match[2])}.torgb"
        parts = {
            "conv.weight": ("weight", "first"),
            "conv.modulation.weight": ("affine.weight", "same"),
            "conv.modulation.bias": ("affine.bias", "same"),
            "bias": ("bias", "flat"),
        }
    if match is None or match[3] not in parts:
        raise Refused(f"its generator has the tensor '{name[:80]}', which is not of this layout")
    ours, shape = parts[match[3]]
    return f"synthesis.{block}.{ours}", shape


def _layer(index: int) -> str:
    """Convolution `index` of the synthesis: 0 at 4x4, then two a resolution."""
    return "b4.conv1" if index == 0 else f"b{4 << (index + 1) // 2}.conv{(index + 1) % 2}"


def _reshaped(name: str, tensor: Tensor, shape: str) -> Tensor:
    if shape == "first" and tensor.ndim > 1 and tensor.shape[0] == 1:
        return tensor[0]
    if shape == "flat":
        return tensor.reshape(-1)
    if shape == "scalar" and tensor.numel() == 1:
        return tensor.reshape([])
    if shape == "map" and tensor.ndim == 4:
        return tensor[0, 0]
    if shape != "same":
        raise Refused(f"its tensor '{name[:80]}' has the shape {list(tensor.shape)}")
    return tensor


def _check_filter(name: str, tensor: Tensor, gain: float) -> None:
    if tensor.shape != (4, 4) or not torch.allclose(tensor.float(), blur_filter() * gain, atol=1e-5):
        raise Refused(f"its '{name[:80]}' is another filter than [1, 3, 3, 1]")


def translate_discriminator(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the tensors of a discriminator to those of `audit.generator.stylegan2.networks.Discriminator`; raises
    Refused."""
    numbers = [int(m[1]) for name in state if (m := re.match(r"convs\.(\d{1,2})\.", name))]
    top = 4 << max(numbers, default=0)
    out: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if name.endswith(".kernel"):
            _check_filter(name, tensor, 1.0)
            continue
        ours = _discriminator_name(name, top)
        out[ours] = tensor.reshape(-1) if ours.endswith("bias") else tensor
    return out


_HEAD = {
    "convs.0.0.weight": "fromrgb.weight",
    "convs.0.1.bias": "fromrgb.bias",
    "final_conv.0.weight": "b4.conv.weight",
    "final_conv.1.bias": "b4.conv.bias",
    "final_linear.0.weight": "b4.fc.weight",
    "final_linear.0.bias": "b4.fc.bias",
    "final_linear.1.weight": "b4.out.weight",
    "final_linear.1.bias": "b4.out.bias",
}
_RESIDUAL = {
    "conv1.0.weight": "conv0.weight",
    "conv1.1.bias": "conv0.bias",
    "conv2.1.weight": "conv1.weight",
    "conv2.2.bias": "conv1.bias",
    "skip.1.weight": "skip.weight",
}


def _discriminator_name(name: str, top: int) -> str:
    if name in _HEAD:
        return f"b{top}.{_HEAD[name]}" if name.startswith("convs.0.") else _HEAD[name]
    match = re.fullmatch(r"convs\.([1-9]\d?)\.(.+)", name)
    if match is None or match[2] not in _RESIDUAL:
        raise Refused(f"its discriminator has the tensor '{name[:80]}', which is not of this layout")
    return f"b{top >> int(match[1]) - 1}.{_RESIDUAL[match[2]]}"
