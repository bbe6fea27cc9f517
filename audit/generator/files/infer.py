"""The architecture of a StyleGAN2 network, inferred from the names and shapes of its tensors.

Names are those of the usual layout (`mapping.fc0.weight`, `synthesis.b8.conv0.affine.weight`, `b4.out.weight`).
What shapes do not show has the papers' value: learning-rate multiplier 0.01 of the mapping, resampling by
[1, 3, 3, 1], groups of 4 images in the minibatch standard deviation.
"""

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from audit.generator.stylegan2.architecture import RESOLUTIONS, channels_at
from audit.generator.stylegan2.layers import blur_filter
from audit.runtime.seeds import stage_generator
from audit.storage.tensors.file_bytes import Refused

MAX_CHANNELS = 4
_EMBED = "mapping.embed.weight"
MAX_LATENT = 2**15
"""Numbers of z, w or the class vector."""
MAX_MAPPING = 2**24
"""Weights of a mapping network; those of the papers have two million."""
MEAN_CODES = 10_000
"""Random codes whose mean stands for a `w_avg` that a file lacks."""
MEAN_PART = MEAN_CODES * 1024
"""Numbers of a part of them."""


def _shape(state: Mapping[str, Tensor], name: str, dimensions: int) -> tuple[int, ...]:
    tensor = state.get(name)
    if tensor is None:
        raise Refused(f"it lacks the tensor '{name}'")
    if tensor.ndim != dimensions or not all(tensor.shape):
        raise Refused(f"its tensor '{name}' has the shape {list(tensor.shape)}")
    return tuple(tensor.shape)


def _blocks(state: Mapping[str, Tensor], pattern: str, lowest: int) -> list[int]:
    """Resolutions of the blocks that are named, from `lowest` upwards without a gap."""
    found = {int(match[1]) for name in state if (match := re.match(pattern, name)) and len(match[1]) <= 4}
    whole = [2**k for k in range(2, 11) if lowest <= 2**k <= max(found, default=0)]
    if not found or sorted(found) != whole or max(found) not in RESOLUTIONS:
        sizes = f"{RESOLUTIONS[0]} to {RESOLUTIONS[-1]}"
        raise Refused(f"its blocks {sorted(found)[:12]} are not all those of a network of {sizes} pixels")
    return whole


def width_settings(widths: Mapping[int, int]) -> dict[str, Any]:
    """Return `channel_base` and `channel_max` with `min(base // resolution, max)` equal to `widths`.

    Widths that follow no such rule are returned one by one as `channel_widths`.
    """
    maximum = max(widths.values())
    base = max(width * resolution for resolution, width in widths.items())
    if any(channels_at(resolution, base, maximum) != width for resolution, width in widths.items()):
        return {"channel_widths": {str(resolution): width for resolution, width in widths.items()}}
    return {"channel_base": base, "channel_max": maximum}


def _mapping_layers(state: Mapping[str, Tensor], least: int) -> int:
    found = {int(m[1]) for name in state if (m := re.fullmatch(r"mapping\.fc(\d{1,3})\.weight", name))}
    if len(found) < least or found != set(range(len(found))):
        raise Refused("its mapping layers are not 'mapping.fc0', 'mapping.fc1', ... without a gap")
    weights = sum(_shape(state, f"mapping.fc{i}.weight", 2)[0] * state[f"mapping.fc{i}.weight"].shape[1] for i in found)
    if weights > MAX_MAPPING:
        raise Refused(f"its mapping has {weights} weights, and the budget of a mapping is {MAX_MAPPING}")
    return len(found)


def _latent(count: int, what: str) -> int:
    """Return `count` if a code or class vector of so many numbers is within the budget; raises Refused."""
    if count > MAX_LATENT:
        raise Refused(f"its {what} has {count} numbers, and the budget is {MAX_LATENT}")
    return count


def infer_generator(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return the arguments of `Generator` that fit `state`; raises Refused naming what does not fit."""
    if any(re.match(r"synthesis\.L\d+_", name) for name in state):
        raise Refused("it is a StyleGAN3 generator, and only StyleGAN2 is supported")
    resolutions = _blocks(state, r"synthesis\.b(\d+)\.conv1\.weight$", 4)
    for name in state:
        if re.match(r"synthesis\.b\d+\.skip\.", name):
            raise Refused("its generator is residual, and only the skip architecture is supported")
    widths = {r: _shape(state, f"synthesis.b{r}.conv1.weight", 4)[0] for r in resolutions}
    channels = _shape(state, f"synthesis.b{resolutions[-1]}.torgb.weight", 4)[0]
    if channels > MAX_CHANNELS:
        raise Refused(f"it draws {channels} channels, and 1 to {MAX_CHANNELS} are supported")
    w_dim = _latent(_shape(state, "synthesis.b4.conv1.affine.weight", 2)[1], "code w")
    c_dim = _latent(_shape(state, _EMBED, 2)[1], "class vector") if _EMBED in state else 0
    inputs = _shape(state, "mapping.fc0.weight", 2)[1]
    z_dim = _latent(inputs - (w_dim if c_dim else 0), "code z")
    if z_dim < 1:
        raise Refused(f"its mapping takes {inputs} numbers, too few for a code beside the class")
    return {
        "z_dim": z_dim,
        "w_dim": w_dim,
        "resolution": resolutions[-1],
        "channels": channels,
        **width_settings(widths),
        "mapping_layers": _mapping_layers(state, 1),
        "c_dim": c_dim,
    }


def infer_discriminator(state: Mapping[str, Tensor], mbstd_group: int = 4) -> dict[str, Any]:
    """Return the arguments of `Discriminator` that fit `state`; raises Refused as `infer_generator` does."""
    resolutions = _blocks(state, r"b(\d+)\.conv0\.weight$", 8)
    if any(f"b{r}.skip.weight" not in state for r in resolutions):
        raise Refused("its discriminator is not residual, and only the residual architecture is supported")
    widths = {r: _shape(state, f"b{r}.conv0.weight", 4)[0] for r in resolutions}
    widths[4], inputs = _shape(state, "b4.conv.weight", 4)[:2]
    if inputs != widths[4] + 1:
        raise Refused(f"its minibatch standard deviation adds {inputs - widths[4]} maps, and only one is supported")
    top = resolutions[-1]
    c_dim = _latent(_shape(state, _EMBED, 2)[1], "class vector") if _EMBED in state else 0
    return {
        "resolution": top,
        "channels": _shape(state, f"b{top}.fromrgb.weight", 4)[1],
        **width_settings(widths),
        "mbstd_group": mbstd_group,
        "c_dim": c_dim,
        "mapping_layers": _mapping_layers(state, 0) if c_dim else 2,
    }


def complete(state: dict[str, Tensor], expected: Mapping[str, torch.Size]) -> list[str]:
    """Add the buffers that `state` lacks of those `expected` (name to shape); return what was made up, in words.

    Raises Refused if a resampling filter is another than [1, 3, 3, 1].
    """
    made: dict[str, None] = {}
    # Layers that were made without noise have neither its strength nor its map.
    strengths = (name for name in expected if name.endswith("noise_strength"))
    silent = {name for name in strengths if not {name, name.replace("strength", "const")} & set(state)}
    for name, shape in expected.items():
        if name in state:
            continue
        if name.endswith("resample_filter"):
            state[name] = blur_filter()
        elif name.endswith("noise_const") and name.replace("const", "strength") in silent:
            state[name] = torch.zeros(shape)
        elif name.endswith("noise_const"):
            state[name] = torch.randn(shape, generator=stage_generator(0, f"noise of {name}"))
            made["constant noise maps are drawn with seed 0, as the file holds none"] = None
        elif name == "mapping.w_avg" or name in silent:
            state[name] = torch.zeros(shape)
    for name, tensor in state.items():
        if name.endswith("resample_filter") and not _is_blur(tensor):
            raise Refused(f"its '{name}' is another filter than [1, 3, 3, 1]")
    return list(made)


def _is_blur(tensor: Tensor) -> bool:
    return tensor.shape == (4, 4) and bool(torch.allclose(tensor.float(), blur_filter(), atol=1e-6))


@torch.no_grad()
def mean_code(mapping: torch.nn.Module, z_dim: int, c_dim: int) -> Tensor:
    """Mean w `[w_dim]` of MEAN_CODES random codes (classes in turn), for files without the running mean.

    Memory is bounded by MEAN_PART numbers at a time; codes drawn in parts of whole sixteens are those drawn at once.
    """
    rng = stage_generator(0, "mean code")
    widest = max(z_dim, c_dim, *(max(p.shape) for p in mapping.parameters()))
    rows = min(MEAN_CODES, max(16, MEAN_PART // widest // 16 * 16))
    total: Tensor | None = None
    for start in range(0, MEAN_CODES, rows):
        count = min(rows, MEAN_CODES - start)
        z = torch.randn(count, z_dim, generator=rng)
        c = one_hot((torch.arange(count) + start) % c_dim, c_dim).float() if c_dim else None
        part: Tensor = mapping(z, c=c)[:, 0].mean(0) * (count / MEAN_CODES)
        total = part if total is None else total + part
    assert total is not None
    return total
