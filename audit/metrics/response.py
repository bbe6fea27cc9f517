"""What a model answers to the edits made for all models: to their part inside the region, and to the rest.

An edit made for another model is an intervention that this one had no part in. Each is made twice: only its part inside
the region, and only the rest. A model that decides by the region answers to the former and stays with the latter. Its
own edits alone cannot tell as much: they lie where they cost least, which is not always where a decision rests. But
they are heard, too: where all others are sound, nobody else takes away what an unsound one reads.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

HELD = 0.5
"""Probability of the target class from which on a model is there already, and cannot answer."""


@dataclass(frozen=True)
class Answers:
    """By query image, float64 `[N]`: by how much the target's probability rises for what is `inside` the region, and by
    how much it moves, either way, for what is `outside`; sums over the makers of edits, NaN where the image has none.
    """

    inside: Tensor
    outside: Tensor

    @property
    def is_defined(self) -> bool:
        """Whether two images or more have answers, and any of them is one."""
        there = self.inside.isfinite()
        return int(there.sum()) >= 2 and bool((self.inside[there].clamp_min(0) + self.outside[there]).sum() > 0)

    def share(self, weights: Tensor) -> Tensor:
        """Share `[B]` of what is answered to that lies inside the region, under image weights `[B, N]`.

        NaN where nothing is answered to. What is answered away from the target earns nothing.
        """
        inside, outside = (weights @ answer.nan_to_num(0.0) for answer in (self.inside, self.outside))
        inside = inside.clamp_min(0)
        return inside / (inside + outside)


def answers(before: Tensor, inside: Tensor, outside: Tensor) -> Answers:
    """Answers to one maker's edits, from the probabilities `[N]` of their target classes: of the unedited images, and
    with only the part inside the region made, or only the rest.
    """
    stays = before >= HELD
    rise, move = inside.double() - before.double(), (outside.double() - before.double()).abs()
    return Answers(rise.masked_fill(stays, 0.0), move.masked_fill(stays, 0.0))


def together(some: Sequence[Answers]) -> Answers:
    """Add up the answers to several makers' edits of the same images; an image has those that are defined."""

    def added(parts: list[Tensor]) -> Tensor:
        stacked = torch.stack(parts)
        return stacked.nansum(0).masked_fill(stacked.isnan().all(0), torch.nan)

    return Answers(added([one.inside for one in some]), added([one.outside for one in some]))
