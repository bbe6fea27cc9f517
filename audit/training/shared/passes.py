"""Which rows a training step sees: shuffled passes over a set, each in an order that depends on seed and pass alone."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from audit.runtime.seeds import stage_generator


def pass_order(n: int, seed: int, number: int, stage: str = "train/order/") -> Tensor:
    """Return the permutation of `n` rows for pass `number`; `stage` keeps the draws of different trainings apart."""
    return torch.randperm(n, generator=stage_generator(seed, f"{stage}{number}"))


@dataclass
class Passes:
    """Batches of row numbers from shuffled passes over `n` rows.

    A pass ends with its last whole batch, unless the passes are `seamless`: then every pass shows all rows, and a batch
    may hold the end of one and the start of the next.
    """

    n: int
    batch_size: int
    seed: int
    stage: str = "train/order/"
    seamless: bool = False
    _orders: dict[int, Tensor] = field(default_factory=dict, repr=False)

    def rows(self, step: int) -> Tensor:
        """Return the rows `[batch_size]` of step number `step`."""
        length = self.n if self.seamless else self.n // self.batch_size * self.batch_size
        positions = torch.arange(step * self.batch_size, (step + 1) * self.batch_size)
        passes = positions // length
        self._orders = {number: self._order(number) for number in passes.unique().tolist()}
        return torch.cat([order[positions[passes == k] - k * length] for k, order in self._orders.items()])

    def _order(self, number: int) -> Tensor:
        known = self._orders.get(number)
        return pass_order(self.n, self.seed, number, self.stage) if known is None else known
