"""How far an image must be moved before the classifier errs: minimal distances by bisection, and their median.

The distance that is reported was reached by an image that fools, so it is an upper bound of the true one; that no
nearer image exists is not proven. FAB gives the first bound. Then every image has an interval of its own: below lies
the largest radius at which gradient ascent failed, above the nearest adversarial image, and a success at any radius
lowers the upper end to the distance really reached. Ascent starts from the nearest adversarial image, drawn into the
smaller ball, and climbs the margin, whose gradient does not vanish where the classifier is sure.
"""

import math

import torch
from scipy.stats import binom
from torch import Tensor, nn

from audit.classifiers.mode import preserve_mode
from audit.errors import MetricError
from audit.results import Interval
from audit.robustness.attacks.ball import Norm, ascent, distance, project, random_offset
from audit.robustness.attacks.fab import fab_minimal, nearest_on_line
from audit.robustness.attacks.losses import margin
from audit.robustness.attacks.sight import Sight
from audit.robustness.attacks.target import Target

STEP_SHARE = 2.5
"""Ascent's step in units of eps / steps, so that an image can cross its ball (Madry et al. 2018, section 2.1)."""


def _climb(target: Target, rows: Tensor, start: Tensor, eps: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """Climb the margin of the images `rows` `[n]` from `start` inside balls of radii `eps` `[n]`.

    Returns the last iterates and whether they fool `[n]`.
    """
    images, labels, norm = target.images[rows], target.labels[rows], target.norm
    result, fooled = start.clone(), torch.zeros(len(rows), dtype=torch.bool, device=images.device)
    active, current = torch.arange(len(rows), device=images.device), start
    for step in range(steps + 1):
        last = step == steps
        with torch.set_grad_enabled(not last):
            current = current.detach().requires_grad_(not last)
            margins = margin(target.logits(current), labels[active])
        fools = margins.detach() > 0
        result[active], fooled[active] = current.detach(), fools
        kept = ~fools
        if last or not bool(kept.any()):
            break
        gradient = target.gradient(margins, current)[kept]
        active, moved = active[kept], current.detach()[kept]
        target.note(rows[active], gradient)
        step_sizes = eps[active] * STEP_SHARE / steps
        current = project(moved + ascent(gradient, step_sizes, norm), images[active], eps[active], norm)
    return result, fooled


def minimal_distances(
    classifier: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    norm: Norm,
    largest: float,
    bisections: int,
    steps: int,
    generator: torch.Generator,
    sight: Sight | None = None,
) -> tuple[Tensor, Tensor]:
    """Return how far each of `images` `[N, C, H, W]` is from its nearest adversarial image found, and these images.

    The distances `[N]` are in pixel units; 0: misclassified as it is; inf: nothing within `largest` fools. `steps` are
    those of FAB for each target class and of each of the `bisections` runs of gradient ascent. Random starts come from
    `generator`, `sight` takes the account of the gradients, the classifier keeps its mode. Raises MetricError on
    images, labels or numbers out of range, and ClassifierError on logits or gradients that are not finite.
    """
    target = Target("the search for minimal distances", classifier, images, labels, norm, sight)
    target.check_eps(largest)
    if bisections < 1:
        raise MetricError(f"Minimal distances need at least 1 bisection; given: {bisections}.")
    images, labels = target.images, target.labels
    nearest, reached = fab_minimal(classifier, images, labels, norm=norm, steps=steps, generator=generator, sight=sight)
    reached = torch.where(reached <= largest, reached, torch.inf)

    def attempt(rows: Tensor, start: Tensor, eps: Tensor) -> Tensor:
        """Attack the images `rows` from `start` within `eps` (of the whole batch); return the rows that stood."""
        start = project(start[rows], images[rows], eps[rows], norm)
        candidates, fooled = _climb(target, rows, start, eps[rows], steps)
        hit = rows[fooled]
        if len(hit) > 0:
            with torch.no_grad():
                closer = nearest_on_line(classifier, images[hit], labels[hit], candidates[fooled])
            nearest[hit], reached[hit] = closer, distance(closer, images[hit], norm)
        return rows[~fooled]

    with preserve_mode(classifier):
        if len(without := torch.isinf(reached).nonzero()[:, 0]) > 0:
            offset = random_offset(images.shape, largest, norm, generator).to(images)
            attempt(without, images + offset, torch.full_like(reached, largest))
        bounded = (torch.isfinite(reached) & (reached > 0)).nonzero()[:, 0]
        stood_at = torch.zeros_like(reached)
        for _ in range(bisections if len(bounded) > 0 else 0):
            eps = (stood_at + reached) / 2
            stood = attempt(bounded, nearest, eps)
            stood_at[stood] = eps[stood]
    return reached, nearest


def median_distance(distances: Tensor, largest: float, level: float = 0.95) -> Interval:
    """Return the smallest distance within which at least half of the images `[N]` are fooled, with its interval.

    Images that stand (inf) count as beyond `largest`: the value is None if more than half of them do. The interval runs
    between two order statistics and needs no assumption on the distribution: the number of images below the median is
    binomial with share 1/2 (Conover 1999, section 3.2; David & Nagaraja 2003, section 7.1). An end is as far as it can
    be told: the lower one is 0 where there are too few images and `largest` where all that is known is that the median
    lies beyond; the upper one is None where it lies beyond `largest` or there are too few images. Raises MetricError on
    a distance that is not a number or negative.
    """
    if bool(torch.isnan(distances).any()) or bool((distances < 0).any()):
        raise MetricError("A minimal distance is negative or not a number: it must be 0 or more, or infinite.")
    n = len(distances)
    if n == 0:
        return Interval(value=None, n=0, level=level)
    ordered = [value if value <= largest else math.inf for value in distances.double().sort().values.tolist()]
    value = ordered[(n - 1) // 2]
    # The largest rank r, from 1, with P(fewer than r images below the median) <= (1 - level) / 2; 0 if there is none.
    rank = int(binom.ppf((1 - level) / 2, n, 0.5))
    low = min(ordered[rank - 1], largest) if rank > 0 else 0.0
    high = ordered[n - rank] if rank > 0 else math.inf
    return Interval(
        value=value if math.isfinite(value) else None,
        low=low,
        high=high if math.isfinite(high) else None,
        level=level,
        n=n,
    )
