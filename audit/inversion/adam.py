"""Adam over rows: every image of a batch owns one row of parameters and is optimised as if it were alone.

Source: Kingma and Ba, "Adam" (2015), algorithm 1. Adam works element by element, so a stack of rows with one common
step count is the same as as many optimisers; rows that are done can be dropped together with their moments.
"""

import math

import torch
from torch import Tensor

BETAS = (0.9, 0.999)
EPS = 1e-8


class RowAdam:
    """Moments of `[N, P]` parameters, one row an image; `update` changes the parameters in place."""

    def __init__(self, parameters: Tensor, betas: tuple[float, float] = BETAS, eps: float = EPS):
        self._betas, self._eps = betas, eps
        self._mean = torch.zeros_like(parameters)
        self._square = torch.zeros_like(parameters)
        self._steps = 0

    @torch.no_grad()
    def update(self, parameters: Tensor, gradient: Tensor, lr: float) -> None:
        """Take one step of `lr` along `gradient` `[N, P]`."""
        self._steps += 1
        first, second = self._betas
        self._mean.lerp_(gradient, 1 - first)
        self._square.mul_(second).addcmul_(gradient, gradient, value=1 - second)
        scale = 1 / math.sqrt(1 - second**self._steps)
        spread = self._square.sqrt().mul_(scale).add_(self._eps)
        parameters.addcdiv_(self._mean, spread, value=-lr / (1 - first**self._steps))

    def keep(self, rows: Tensor) -> None:
        """Keep only the moments of `rows` (indices or mask)."""
        self._mean, self._square = self._mean[rows], self._square[rows]


def cosine(step: int, steps: int, floor: float = 0.0) -> float:
    """Factor on the learning rate at `step` of `steps`: from 1 down to `floor` along half a cosine."""
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * step / max(steps, 1)))
