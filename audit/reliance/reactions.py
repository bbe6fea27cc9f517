"""How decisions react to an intervention: which share changes, towards which class, and how far probabilities move.

Every image is its own control, before and after the change, so that the intervals are those of paired differences:
Wilson's for a share of decisions, the percentile bootstrap over images for a mean change of probability. Of several
variants, and of several classes, the worst is told; intervals hold for all of them at once (Bonferroni).
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from audit.metrics.intervals import bootstrap_mean, bootstrap_means, wilson_interval
from audit.results import Interval, Reaction

FEWEST = 10
"""Decisions for a class below which nothing is said of that class alone."""
LEVEL = 0.95


def reaction(
    strength: float, before: Tensor, after: Mapping[str, Tensor], class_names: Sequence[str], rng: torch.Generator
) -> Reaction:
    """Return what the probabilities `before` `[N, K]` and `after` the change, `[N, K]` by variant, say; N >= 1.

    Told is the variant that changes most decisions, of equal ones that which moves the probabilities most.
    """
    decided = before.argmax(dim=1)
    shares = {name: float((p.argmax(dim=1) != decided).double().mean()) for name, p in after.items()}
    shifts = {name: float((p - before).abs().sum()) for name, p in after.items()}
    variant = max(after, key=lambda name: (shares[name], shifts[name]))
    now = after[variant].argmax(dim=1)
    changed, level = now != decided, 1 - (1 - LEVEL) / len(after)
    towards = int(now[changed].bincount().argmax()) if bool(changed.any()) else None
    moved = after[variant] - before
    told = [moved.abs().sum(dim=1) / 2] + ([] if towards is None else [moved[:, towards]])
    shift, *rises = bootstrap_means(torch.stack(told, dim=1), rng, level)
    return Reaction(
        strength=strength,
        variant=variant,
        variants=shares,
        changed=wilson_interval(int(changed.sum()), len(changed), level),
        shift=shift,
        towards=None if towards is None else class_names[towards],
        rise=rises[0] if rises else Interval(value=None),
    ).model_copy(update=_of_class_hit_most(decided, now, moved, len(after), class_names, rng=rng))


def _of_class_hit_most(
    decided: Tensor,
    now: Tensor,
    moved: Tensor,
    variants: int,
    class_names: Sequence[str],
    *,
    rng: torch.Generator,
) -> dict[str, object]:
    """Return the fields of the class whose decisions change most, beyond what few images let it seem."""
    counts, hits = decided.bincount(), decided[now != decided].bincount(minlength=int(decided.max()) + 1)
    enough = [c for c, count in enumerate(counts.tolist()) if count >= FEWEST]
    if not enough:
        return {}
    level = 1 - (1 - LEVEL) / (variants * len(enough))
    shares = {c: wilson_interval(int(hits[c]), int(counts[c]), level) for c in enough}
    worst = max(enough, key=lambda c: (shares[c].low or 0.0, shares[c].value or 0.0))
    fall = bootstrap_mean(-moved[decided == worst, worst], rng, level)
    gone = now[(decided == worst) & (now != worst)]
    return {
        "of_class": class_names[worst],
        "class_towards": class_names[int(gone.bincount().argmax())] if len(gone) else None,
        "class_changed": shares[worst],
        "class_fall": fall,
    }
