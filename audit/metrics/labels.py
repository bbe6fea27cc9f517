"""How well labels of which an image may have any number are told: per label and in the mean over labels (macro).

Area under the ROC curve, average precision, F1, expected calibration error of the label's probability and Brier score
by torchmetrics, on the images of which it is known whether they have the label. Intervals: percentile bootstrap over
images (Efron & Tibshirani 1993, chapter 13), which draws all labels of an image together.

And what an edit that is meant for one label does to the others: `side_effects`.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from audit.results import UNKNOWN_LABEL as UNKNOWN
from audit.results import Interval

RESAMPLES = 400
ECE_BINS = 15
"""Bins of equal width of every expected calibration error."""


@dataclass(frozen=True)
class LabelAnswers:
    """Logits `[N, L]`, what the images have (1, 0, or -1: unknown) `[N, L]`, and from which logits `[L]` on a label is
    said to be there: the log-odds of its threshold.
    """

    logits: Tensor
    truth: Tensor
    limits: Tensor

    @property
    def decided(self) -> Tensor:
        """Which labels the model says each image has, bool `[N, L]`."""
        return self.logits > self.limits

    @property
    def right(self) -> Tensor:
        """Which of the known labels are decided rightly, bool `[N, L]`; True where nothing is known."""
        return (self.truth == UNKNOWN) | (self.decided == (self.truth == 1))


@dataclass(frozen=True)
class LabelScores:
    """One number for each label `[L]` and the mean over labels, each with its interval."""

    by_label: list[Interval]
    macro: Interval


@dataclass(frozen=True)
class SideEffects:
    """What N edits do to the M labels that they are not meant for.

    `change` `[N, M]` is the absolute change of each label's probability, `moved` `[N, M]` whether the decision about it
    changes.
    """

    change: Tensor
    moved: Tensor

    def valid(self, flipped: Tensor) -> Tensor:
        """Which edits flip their own label and move no other one, bool `[N]`.

        An edit that also changes what is said of another label does not show what its own label is decided by.
        """
        return flipped & ~self.moved.any(dim=1)


def side_effects(before: Tensor, after: Tensor, limits: Tensor) -> SideEffects:
    """Compare logits `[N, M]` before and after an edit; from `limits` `[M]` on a label is said to be there."""
    change = (after.double().sigmoid() - before.double().sigmoid()).abs()
    return SideEffects(change, (after > limits) != (before > limits))


Score = Callable[[Tensor, Tensor], Tensor]
"""Maps values `[n]` and truth `[n]` of one label, of which both kinds are there, to a number."""


def _ranks(logits: Tensor) -> Tensor:
    """Return numbers in [0, 1] in the order of `logits` `[N]`: a sigmoid makes large ones equal."""
    values, places = logits.unique(return_inverse=True)
    return (places.double() + 1) / (len(values) + 1)


def _auroc(values: Tensor, truth: Tensor) -> Tensor:
    from torchmetrics.functional.classification import binary_auroc

    return binary_auroc(values, truth, validate_args=False)


def _average_precision(values: Tensor, truth: Tensor) -> Tensor:
    from torchmetrics.functional.classification import binary_average_precision

    return binary_average_precision(values, truth, validate_args=False)


def _f1(values: Tensor, truth: Tensor) -> Tensor:
    from torchmetrics.functional.classification import binary_f1_score

    return binary_f1_score(values, truth, validate_args=False)


def _of_each(score: Score, values: Tensor, truth: Tensor) -> Tensor:
    """Return `score` of every label `[L]`; NaN where all images have it or none has."""
    found = torch.full((truth.shape[1],), torch.nan, dtype=torch.float64)
    for label, column in enumerate(truth.T):
        known = column != UNKNOWN
        if bool((column == 1).any()) and bool((column == 0).any()):
            found[label] = float(score(values[known, label], column[known]))
    return found


def _interval(value: Tensor, drawn: Tensor, n: int) -> Interval:
    drawn = drawn[drawn.isfinite()]
    if not bool(value.isfinite()) or len(drawn) == 0:
        return Interval(value=None, n=n)
    low, high = drawn.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return Interval(value=float(value), low=low, high=high, n=n)


def _scores(score: Score, values: Tensor, truth: Tensor, rng: torch.Generator) -> LabelScores:
    whole = _of_each(score, values, truth)
    n = len(truth)
    resampled = []
    for _ in range(RESAMPLES):
        rows = torch.randint(n, (n,), generator=rng)
        resampled.append(_of_each(score, values[rows], truth[rows]))
    drawn = torch.stack(resampled)
    known = (truth != UNKNOWN).sum(dim=0).tolist()
    return LabelScores(
        by_label=[_interval(whole[i], drawn[:, i], known[i]) for i in range(len(whole))],
        macro=_interval(whole.nanmean(), drawn.nanmean(dim=1), n),
    )


def rank_scores(answers: LabelAnswers, rng: torch.Generator) -> tuple[LabelScores, LabelScores, LabelScores]:
    """Return area under the ROC curve, average precision, and F1 at the thresholds."""
    ranks = torch.stack([_ranks(column) for column in answers.logits.T], dim=1)
    return (
        _scores(_auroc, ranks, answers.truth, rng),
        _scores(_average_precision, ranks, answers.truth, rng),
        _scores(_f1, answers.decided.long(), answers.truth, rng),
    )


def calibration(answers: LabelAnswers) -> tuple[list[float | None], list[float | None]]:
    """Return the expected calibration error and the Brier score of every label; None where nothing is known."""
    from torchmetrics.functional.classification import binary_calibration_error

    errors: list[float | None] = []
    briers: list[float | None] = []
    for logits, truth in zip(answers.logits.double().T, answers.truth.T, strict=True):
        known = truth != UNKNOWN
        probability, label = logits[known].sigmoid(), truth[known]
        empty = len(label) == 0
        error = None if empty else binary_calibration_error(probability, label, ECE_BINS, "l1", validate_args=False)
        errors.append(None if error is None else float(error))
        briers.append(None if empty else float((probability - label).square().mean()))
    return errors, briers
