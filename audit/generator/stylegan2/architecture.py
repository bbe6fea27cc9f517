"""Image sizes and widths of StyleGAN2 networks, and the clamping of feature maps in 16 bits.

Source: Karras et al., "Analyzing and Improving the Image Quality of StyleGAN" (2020), appendix B, for the widths;
"Training Generative Adversarial Networks with Limited Data" (2020), appendix D, for the clamping of maps in 16 bits.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from audit.errors import GeneratorError
from audit.storage.keys import hash_tensor

RESOLUTIONS = tuple(2**k for k in range(4, 11))
"""Sides of the images that the networks can be built for."""
MAX_CHANNELS = 4
HALF = (torch.float16, torch.bfloat16)
CLAMP = 256.0
"""Largest magnitude of a map in 16 bits."""
NEEDS_CLASS = "A conditional {} needs its class vector c: give one-hot rows of shape (images, c_dim)."


def channels_at(resolution: int, base: int, maximum: int) -> int:
    """Feature maps at `resolution`: `base / resolution`, at most `maximum`."""
    return min(base // resolution, maximum)


def feature_maps(resolution: int, channels: int, base: int, maximum: int, widths: object = None) -> dict[int, int]:
    """Feature maps at 4, 8, ... `resolution`: those of the mapping `widths`, else by the rule of `channels_at`.

    `widths` may come from a file: keys may be text, as JSON has them. Raises GeneratorError for an image size, a number
    of channels or widths that no network has.
    """
    if resolution not in RESOLUTIONS:
        raise GeneratorError(
            f"A network for images of {resolution}x{resolution} pixels cannot be built: the side has to be a power of "
            f"two from {RESOLUTIONS[0]} to {RESOLUTIONS[-1]}; resize the images (data.image_size)."
        )
    if channels not in range(1, MAX_CHANNELS + 1):
        raise GeneratorError(
            f"A network for images of {channels} channels cannot be built: give images of 1 to {MAX_CHANNELS} channels."
        )
    sides = [2**k for k in range(2, resolution.bit_length())]
    maps = {str(side): channels_at(side, base, maximum) for side in sides}
    if widths is not None:
        maps = {str(side): width for side, width in widths.items()} if isinstance(widths, Mapping) else {}
    found = [maps.pop(str(side), 0) for side in sides]
    if maps or not all(isinstance(width, int) and width > 0 for width in found):
        raise GeneratorError(
            f"A network of {resolution}x{resolution} pixels cannot have the feature maps {widths or found}: give a "
            f"number of at least 1 for each of {sides}, or raise channel_base."
        )
    return dict(zip(sides, found, strict=True))


def settings_of(settings: dict[str, Any], maps: Mapping[int, int], widths: object) -> dict[str, Any]:
    """Settings of a network as JSON can hold them; widths are listed only if they were given one by one."""
    return settings if widths is None else settings | {"channel_widths": {str(k): v for k, v in maps.items()}}


def weights_hash(network: nn.Module) -> str:
    """SHA-256 of a network's tensors, hexadecimal: the same for every file and device that hold them."""
    state = network.state_dict()
    return hash_tensor(torch.cat([state[name].flatten().float().cpu() for name in sorted(state)]))


def bounded(x: Tensor) -> Tensor:
    """Clamp maps in 16 bits to a magnitude of 256; others pass."""
    return x.clamp(-CLAMP, CLAMP) if x.dtype in HALF else x
