"""Where a network's layers have places: feature maps of convolutions, tokens of transformers, as channels on a grid."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

T = TypeVar("T")
MOST_PREFIX = 8
"""Tokens before those of the patches: the class token, that of a distilled model, registers."""


@dataclass(frozen=True)
class Grid:
    """How an output lies on a grid of `height` by `width` places, each of at least two; `prefix` tokens have none."""

    layout: Literal["channels first", "channels last", "tokens"]
    height: int
    width: int
    prefix: int = 0

    def of(self, output: Tensor) -> Tensor:
        """Return `output` as `[N, channels, height, width]`."""
        if self.layout == "channels first":
            return output
        if self.layout == "channels last":
            return output.permute(0, 3, 1, 2)
        return output[:, self.prefix :].transpose(1, 2).unflatten(2, (self.height, self.width))


class Placed(NamedTuple):
    """An output, and the grid that it lies on."""

    grid: Grid
    output: Tensor

    @property
    def kind(self) -> tuple[str, int]:
        """How it lies, and its number of channels."""
        axis = 1 if self.grid.layout == "channels first" else -1
        return self.grid.layout, self.output.shape[axis]


def grid_of(shape: torch.Size, size: tuple[int, int]) -> Grid | None:
    """Return how an output of `shape` lies on a grid for an input of `size` (height, width); None: it does not."""

    def fits(height: int, width: int) -> bool:
        # Padding rounds each side by less than a place.
        return min(height, width) > 1 and abs(height - width * size[0] / size[1]) < 1

    if len(shape) == 4 and fits(shape[2], shape[3]):
        return Grid("channels first", shape[2], shape[3])
    if len(shape) == 4 and fits(shape[1], shape[2]):
        return Grid("channels last", shape[1], shape[2])
    if len(shape) == 3:
        for prefix in range(min(MOST_PREFIX, shape[1] - 1) + 1):
            places = shape[1] - prefix
            height = round(math.sqrt(places * size[0] / size[1]))
            if height and places % height == 0 and fits(height, places // height):
                return Grid("tokens", height, places // height, prefix)
    return None


def placed_outputs(network: nn.Module, forward: Callable[[], T], size: tuple[int, int]) -> tuple[T, list[Placed]]:
    """Return what `forward` returns, and the outputs with places of modules that it ran, in their order.

    Only those that lie and are as wide as the last one: of a transformer the tokens, and no attention weights.
    """
    seen: list[Placed] = []

    def note(_: nn.Module, __: object, output: object) -> None:
        if isinstance(output, Tensor) and (grid := grid_of(output.shape, size)) is not None:
            seen.append(Placed(grid, output))

    handles = [module.register_forward_hook(note) for module in network.modules() if module is not network]
    try:
        found = forward()
    finally:
        for handle in handles:
            handle.remove()
    return found, [one for one in seen if one.kind == seen[-1].kind]
