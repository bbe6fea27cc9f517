"""The balance between feature alignment and sparsity, found by every image for itself.

With one fixed balance the edits of two models stop at different depths: the same sparsity weight leaves a softly
trained model far short of its operating point and drives a sharp one past it. The question of an audit is a constrained
one, the sparsest change *as convincing as a typical real image of the target class*, so each image carries a multiplier
(its `push`) of that constraint, as in the Lagrangian method. It divides the sparsity terms of the loss, and, where the
class mean itself is not convincing enough (a mean is less extreme than half of the images), carries the replaced
features on in the direction in which Litsos 2025 §5.3.3 replaced them. The same rule holds for every model; it is
smooth, so that rounding cannot throw an image onto another path, and knows nothing of the units of the features.
"""

import torch
from torch import Tensor

from audit.counterfactual.iterates import log_odds

RATE = 1.2
"""Largest factor per step by which the push changes."""
WIDTH = 0.5
"""Shortfall in log-odds at which the push changes by the whole RATE."""
FORESIGHT = 5.0
"""Steps the log-odds are extrapolated by, so that the push does not wind up while an edit is still under way."""
AIM = 0.1
"""Log-odds aimed for beyond the operating point, which is thereby met from above and not just from below."""
SMALLEST, LARGEST = 1 / 64, 256.0
"""Bounds of the push."""
OVERSHOOT = 0.2
"""The replaced features are carried `push ** OVERSHOOT` times as far; at most 3.03 times, and never less than once."""


class Push:
    """Multiplier of the operating point's constraint, one per image; starts at 1, where the loss is the thesis'."""

    def __init__(self, goals: Tensor, aim: float = AIM) -> None:
        """Take the log-odds to reach, `[N]`, and how far beyond them to aim."""
        self.goals, self.aim = goals, aim
        self.value = torch.ones_like(goals)
        self.before = torch.full_like(goals, torch.nan)

    def observe(self, logits: Tensor, targets: Tensor, rows: Tensor) -> None:
        """Push harder where the target's log-odds are heading short of the goal, and less where past it.

        `logits [n, K]` and `targets [n]` are those of the images at `rows [n]`; the others keep their push.
        """
        now = log_odds(logits, targets)
        trend = (now - self.before[rows]).nan_to_num(0)  # NaN: an image's first iterate
        shortfall = self.goals[rows] + self.aim - now - FORESIGHT * trend
        factor = RATE ** (shortfall / WIDTH).clamp(-1, 1)
        self.value[rows] = (self.value[rows] * factor).clamp(SMALLEST, LARGEST)
        self.before[rows] = now


def reach_of(push: Tensor) -> Tensor:
    """How many times as far as x' the replaced features are carried under `push [N]`, at least 1."""
    return push.clamp_min(1) ** OVERSHOOT
