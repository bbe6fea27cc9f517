"""What a model answers inside the region, to edits made for all models, and outside: to their rest and to acquisition.

An edit made for another model is an intervention that this one had no part in. Each is made twice: only its part inside
the region, and only the rest. A model that decides by the region answers to the former and stays with the latter. Its
own edits alone cannot tell as much: they lie where they cost least, which is not always where a decision rests. But
they are heard, too: where all others are sound, nobody else takes away what an unsound one reads.

Edits are local: none asks about the whole image. So a model is also asked what it answers to the unedited image with a
little more and less exposure, contrast and gamma.

Answers to several makers' edits are taken together by their root mean square. A mean would thin out what the few makers
do who find a fault, the more the more sound models are audited beside; a maximum would rest on one edit.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

HELD = 0.5
"""Probability of the target class from which on a model is there already, and cannot answer."""


@dataclass(frozen=True)
class Answers:
    """By query image, float64 `[N]`, >= 0: by how much the target's probability rises for the part of edits `inside`
    the region, and by how much it moves, either way, for their `rest` and where the image is `acquired` otherwise. NaN
    where the image has none. What leads away from the target inside the region is no answer.
    """

    inside: Tensor
    rest: Tensor
    acquired: Tensor

    @property
    def outside(self) -> Tensor:
        """What is answered to outside the region, `[N]`."""
        return self.rest + self.acquired

    @property
    def is_defined(self) -> bool:
        """Whether two images or more have answers, and any of them is one."""
        there = self.inside.isfinite()
        return int(there.sum()) >= 2 and bool((self.inside[there] + self.outside[there]).sum() > 0)

    def shares(self, weights: Tensor) -> Tensor:
        """Shares `[3, B]` of what is answered to, inside, to the rest and to acquisition, under image weights `[B, N]`.

        NaN where nothing is answered to.
        """
        parts = torch.stack([weights @ one.nan_to_num(0.0) for one in (self.inside, self.rest, self.acquired)])
        return parts / parts.sum(0)

    def share(self, weights: Tensor) -> Tensor:
        """Share `[B]` of what is answered to that lies inside the region, as `shares`."""
        return self.shares(weights)[0]


def answers(before: Tensor, inside: Tensor, rest: Tensor, acquired: Tensor | None = None) -> Answers:
    """Answers to one maker's edits, from the probabilities `[N]` of their target classes: of the unedited images, and
    with only the part inside the region made, or only the rest; and of the unedited images `acquired` otherwise,
    `[V, N]` in V ways, of which the root mean square counts.
    """
    stays, start = before >= HELD, before.double()
    rise, move = (inside.double() - start).clamp_min(0), (rest.double() - start).abs()
    other = torch.zeros_like(move) if acquired is None else _root_mean_square(acquired.double() - start)
    return Answers(*(part.masked_fill(stays, 0.0) for part in (rise, move, other)))


def together(some: Sequence[Answers]) -> Answers:
    """Take the answers to several makers' edits of the same images together, over those that are defined."""
    return Answers(
        *(_root_mean_square(torch.stack([getattr(one, part.name) for one in some])) for part in fields(Answers))
    )


def _root_mean_square(values: Tensor) -> Tensor:
    """Root mean square of `[K, N]` over the first axis, NaN left out; NaN where there is nothing else."""
    return values.square().nanmean(0).sqrt()
