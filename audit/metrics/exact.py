"""Exact tests of counts of right answers, where a normal approximation would mislead on a few images.

Two classifiers on the same images: exact McNemar (`shares.py`).
One classifier against guessing: the binomial test of its right answers.
"""

import torch
from scipy.stats import binomtest
from torch import Tensor

from audit.errors import MetricError
from audit.metrics.shares import exact_mcnemar


def mcnemar_p(a: Tensor, b: Tensor) -> float:
    """Two-sided exact p-value that `a` and `b`, bool `[N]` on the same images, are right equally often.

    1 where no image tells them apart. Raises MetricError if they are not bool vectors of one length.
    """
    if a.dtype != torch.bool or b.dtype != torch.bool or a.ndim != 1 or a.shape != b.shape:
        raise MetricError(
            f"A paired test was asked of {a.dtype} {tuple(a.shape)} and {b.dtype} {tuple(b.shape)} where two bool [N] "
            "over the same images are expected; compare predictions with labels first."
        )
    return exact_mcnemar(int((a & ~b).sum()), int((~a & b).sum()))


def below_p(successes: int, n: int, chance: float) -> float:
    """One-sided exact p-value that `successes` of `n` is no less than `chance` gives; 1 for `n` = 0."""
    return 1.0 if n == 0 else float(binomtest(successes, n, chance, alternative="less").pvalue)
