"""What a model decides by, asked of its own edits: does the part of an edit inside a region carry the flip?

Two answers for every region. *Alone*: only the part inside is made; a flip that stays needs nothing else. *Undone*: the
part inside is taken back and the rest stays; a flip that is lost then needs that part. Mass says where an edit lies,
these say which of it counts.
"""

import torch
from torch import Tensor

from audit.metrics.intervals import wilson_interval
from audit.pipeline.answers import decisions
from audit.pipeline.context import Context
from audit.pipeline.explain import Explained
from audit.results import Interval


def flips_by_part(
    context: Context, explained: Explained, inversions: Tensor, mask: Tensor
) -> tuple[Interval, Interval]:
    """Return the shares of the flips that stay with the part inside `mask` `[N, H, W]` alone, and with it undone.

    Asked of the images that flip and show the region; both are without a value where there are none.
    """
    found = explained.counterfactuals
    rows = (found.flipped & mask.flatten(1).any(1)).nonzero()[:, 0]
    inside, edited, before = mask[rows, None], found.images[rows], inversions[rows]
    shares = []
    for part in (inside, ~inside):
        made = torch.where(part, edited, before)
        stay = decisions(context, explained.subject.classifier, made) == explained.targets[rows] if len(rows) else rows
        shares.append(wilson_interval(int(stay.sum()), len(rows)))
    return shares[0], shares[1]
