"""Networks of which only the answers are known: a function of arrays, such as a service, a program or an ONNX session.

It takes float32 arrays `[N, C, H, W]`, normalised as any network's images are, and returns anything that a network may
return, made of arrays. No gradient leads through it: what follows gradients is left out, with that reason.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

CHUNK = 256
"""Most images given to a black box at once."""

REASON = "black box: it gives no gradients"


class BlackBox(nn.Module):
    """A callable on arrays as a module; its output is on the images' device and has no gradient."""

    black_box = True

    def __init__(self, call: Callable[[np.ndarray], object], chunk: int = CHUNK) -> None:
        super().__init__()
        self.call = call
        self.chunk = chunk

    def forward(self, images: Tensor) -> Any:
        """What the callable answers to `images` `[N, C, H, W]`, with tensors in the place of arrays."""
        pixels = images.detach().cpu().numpy().astype(np.float32, copy=False)
        parts = [_tensors(self.call(pixels[i : i + self.chunk]), images) for i in range(0, len(pixels), self.chunk)]
        return parts[0] if len(parts) == 1 else _joined(parts)


def _tensors(answer: object, like: Tensor) -> Any:
    if isinstance(answer, Mapping):
        return {key: _tensors(value, like) for key, value in answer.items()}
    if isinstance(answer, tuple) or (isinstance(answer, list) and any(isinstance(one, np.ndarray) for one in answer)):
        return tuple(_tensors(value, like) for value in answer)
    if isinstance(answer, np.ndarray | np.generic | list):
        values = torch.from_numpy(np.array(answer))
        return values.to(like) if values.is_floating_point() else values.to(like.device)
    return answer.detach().to(like.device) if isinstance(answer, Tensor) else answer


def _joined(parts: list[Any]) -> Any:
    """Join the answers to consecutive parts of a batch; what is no tensor with a row per image is the first part's."""
    first = parts[0]
    if isinstance(first, Mapping):
        return {key: _joined([part[key] for part in parts]) for key in first}
    if isinstance(first, tuple):
        return tuple(_joined(list(column)) for column in zip(*parts, strict=True))
    return torch.cat(parts) if isinstance(first, Tensor) and first.ndim else first


def is_black_box(network: nn.Module) -> bool:
    """Whether `network`, or a part of it, says that it is a black box."""
    return any(getattr(part, "black_box", False) is True for part in network.modules())
