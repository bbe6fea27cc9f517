"""What a gradient attack saw: of which images it ever had a gradient to follow.

An attack whose loss does not lead back to the image (a backbone under `no_grad`, a rounding, a detached or constant
output) gets zeros at every step and stands still; what it leaves standing is what it could not see (Athalye et al.
2018, section 3). Every white-box attack keeps this account while it runs, so that its number tells on itself whatever
checks are switched off. Only exact zeros count: a gradient that is small is followed like any other. A saturated
cross-entropy underflows to exact zeros in float32, and PGD is then as blind as behind a rounding, though Auto-PGD's
targeted loss and FAB, which have accounts of their own, may see.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from audit.robustness.attacks.ball import Norm


@dataclass(frozen=True)
class Sight:
    """Counts over the images of one batch, int64 `[N]`: gradients that were `taken`, and those that were not zero."""

    taken: Tensor
    useful: Tensor

    @classmethod
    def of(cls, n: int, device: torch.device) -> "Sight":
        """Return the account of an attack on `n` images that has not begun."""
        zeros = torch.zeros(n, dtype=torch.int64, device=device)
        return cls(zeros, zeros.clone())

    def note(self, rows: Tensor, gradient: Tensor, norm: Norm) -> None:
        """Enter one step's `gradient` `[n, C, H, W]` of the images `rows` `[n]`, which may name an image twice."""
        flat = gradient.flatten(1)
        # In L2 a gradient whose squares underflow has no direction: `ball.ascent` stands still there, too.
        size = flat.abs().amax(dim=1) if norm == "Linf" else flat.norm(dim=1)
        self.taken.index_add_(0, rows, torch.ones_like(rows))
        self.useful.index_add_(0, rows, (size > 0).to(rows))

    @property
    def blind(self) -> Tensor:
        """Which images, bool `[N]`, were attacked by gradients that were zero at every step."""
        return (self.taken > 0) & (self.useful == 0)
