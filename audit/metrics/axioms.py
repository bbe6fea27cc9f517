"""Axioms of counterfactuals, measured: composition, reversibility, effectiveness; and the flips that copies share.

Source: Monteiro et al. 2023, "Measuring axiomatic soundness of counterfactual image models" (ICLR, arXiv:2303.01274).
*Composition*: a null edit changes nothing; here it is an inversion without an edit, which has no model in it.
*Reversibility*: there and back again is where it started. *Effectiveness*: predictors that had no part in the edit
see the target class. Distances are mean absolute pixel differences, as everywhere else.

A flip that an independently trained copy of the model does not share is an adversarial example of one network, not an
answer to what the model has learnt: the share of flips that are shared is the *non-adversarial flip rate*.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from audit.metrics.edit import mean_absolute
from audit.metrics.intervals import wilson_interval
from audit.metrics.transfer import Verdicts, power
from audit.results import Interval


def reversibility(start: Tensor, there: Tensor, back: Tensor) -> Tensor:
    """Distance from `start` to `back` in units of that from `start` to `there`, float64 `[N]`; NaN for a zero edit.

    Images `[N, C, H, W]` in [0, 1]. 0: the way back ends at the start; 1: as far from it as the edit was.
    """
    edit = mean_absolute(there, start).double()
    return torch.where(edit > 0, mean_absolute(back, start).double() / edit, torch.nan)


def effectiveness(verdicts: Sequence[Verdicts], targets: Tensor) -> float | None:
    """Share of counterfactuals that independent judges call the target, each weighted by its power; None without any.

    Other than in transfer, it does not matter whether the model itself is flipped, nor what the inversion was called.
    """
    weights = [power(one, targets) for one in verdicts]
    if sum(weights) == 0:
        return None
    shares = [float((one.counterfactuals == targets).double().mean()) for one in verdicts]
    return sum(w * share for w, share in zip(weights, shares, strict=True)) / sum(weights)


def shared_flips(copies: Sequence[Verdicts], targets: Tensor, flipped: Tensor) -> Interval:
    """Share of a model's flips that its `copies` share, all copies together, with Wilson's interval over images.

    A copy says nothing about an image whose unedited inversion it calls the target already.
    """
    asked = [flipped & (one.inversions != targets) for one in copies]
    shared = sum(int((one.counterfactuals == targets)[rows].sum()) for one, rows in zip(copies, asked, strict=True))
    return wilson_interval(shared, sum(int(rows.sum()) for rows in asked))
