"""Widening of trained networks: more feature maps, and at first the same output.

Source: Chen, Goodfellow and Shlens, "Net2Net: Accelerating Learning via Knowledge Transfer" (2016). New maps start as
in a fresh network and the old ones do not listen to them; they are no copies, so no noise is needed to part them.
Weights are scaled by their number of inputs at run time (Karras et al. 2018, section 4.1), so old ones grow by the root
of the ratio of inputs.
"""

import math
from typing import TypeVar

from torch import Tensor

from audit.errors import GeneratorError
from audit.generator.stylegan2.discriminator import Discriminator
from audit.generator.stylegan2.networks import Generator

Network = TypeVar("Network", Generator, Discriminator)


def widened(network: Network, channel_base: int | None, channel_max: int | None, prefix: str = "") -> Network:
    """Return a network with `min(channel_base / resolution, channel_max)` maps that starts where `network` stands.

    None leaves either as it is. A generator draws the same images. A discriminator agrees nearly: its minibatch
    deviation is a mean over all maps, new ones too. New weights come from torch's global random stream. Raises
    GeneratorError for widths that follow no rule, for fewer maps than there are, and for conditional networks, where
    the discriminator's class code is as long as its last layer is wide; `prefix` begins the keys that it names.
    """
    settings = network.settings
    asked = {"channel_base": channel_base, "channel_max": channel_max}
    grown = {k: v for k, v in asked.items() if v is not None and v != settings.get(k)}
    if not grown:
        return network
    keys = " and ".join(prefix + name for name in grown)
    if "channel_widths" in settings:
        raise GeneratorError(f"Networks whose widths are given one by one cannot be widened: leave {keys} out.")
    for name, value in grown.items():
        if value < settings[name]:
            raise GeneratorError(
                f"{prefix}{name} = {value} is less than the {settings[name]} that start_from has: raise it or leave it "
                "out."
            )
    if network.c_dim:
        raise GeneratorError(f"Conditional networks cannot be widened: leave {keys} out.")
    wide = type(network)(**settings | grown)
    old = network.state_dict()
    wide.load_state_dict({name: _placed(old[name], fresh, name) for name, fresh in wide.state_dict().items()})
    return wide


def _placed(old: Tensor, fresh: Tensor, name: str) -> Tensor:
    """The tensor `fresh` with `old` in its first rows and columns, and nothing from new maps to old ones."""
    if old.shape == fresh.shape:
        return old
    placed = fresh.clone()
    corner = tuple(slice(n) for n in old.shape)
    if old.ndim < 2 or name.endswith("const"):
        placed[corner] = old
        return placed
    rows, inputs = old.shape[:2]
    placed[:rows] = 0
    placed[corner] = old * math.sqrt(fresh.shape[1] / inputs)
    if name == "b4.conv.weight":  # the map of the minibatch standard deviation stays the last one
        placed[:rows, -1] = placed[:rows, inputs - 1]
        placed[:rows, inputs - 1] = 0
    return placed
