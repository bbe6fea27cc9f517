"""Make edits smaller until they no longer shrink: the second phase of the search for the smallest change.

Per image, with its own tuned generator G, its inversion I and the log-odds that the target class has to have:

    minimise mean|G(w) - I|  subject to  log-odds(C(G(w))) >= goal

The edit that the first phase found is pulled straight back towards the pivot for as long as it is valid. From there
Adam descends on `WEIGHT mean|G(w) - I| + push max(0, goal + AIM - log-odds)`, in which every image has a multiplier
(`balance.Push`) of its own. The smallest valid iterate is kept. Steps are a share of the edit's own size in w+, so that
large and small edits, and generators of any spread, take the same number of them. Where an image has not become smaller
for a while it goes back to its smallest valid iterate with half the step; when halving no longer helps it has converged
and leaves the batch. Images do not influence each other, and nothing is drawn at random.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from audit.classifiers.classifier import Classifier
from audit.counterfactual.balance import AIM, Push
from audit.counterfactual.batches import Batch
from audit.counterfactual.iterates import Iterates, is_valid, log_odds
from audit.generator.protocol import Generator
from audit.inversion.adam import RowAdam

WEIGHT = 100.0
"""Weight of the mean absolute pixel change beside a shortfall of one in log-odds, before the push has found its own."""
BETAS = (0.8, 0.95)
"""Of Adam. The gradient of an absolute value jumps where a pixel's change turns its sign: a long memory misleads
(benchmarks/README.md)."""
STEP = 0.2
"""First step in w+, in units of the mean absolute difference between the edit's code and the pivot."""
HALVINGS = 4
"""How often the step is halved before an edit counts as converged."""
PATIENCE = 10
"""Steps without an edit that is smaller by `LEAST` after which the step is halved."""
LEAST = 0.02
"""Share by which an edit has to become smaller to count as shrinking."""
BISECTIONS = 5
"""Halvings of the line from the edit found to the pivot."""


def shrink(
    generator: Generator,
    classifier: Classifier,
    batch: Batch,
    iterates: Iterates,
    most: int,
    on_step: Callable[[int], None] = lambda images: None,
) -> Tensor:
    """Make the edits chosen among `iterates` smaller, in at most `most` steps; return which have converged, bool `[N]`.

    What is found is added to `iterates`. All N images are worked on together: the caller divides what does not fit.
    Both networks are in evaluation mode with frozen parameters. `on_step` is told after every step how many images took
    it.
    """
    start = _pulled_back(generator, classifier, batch, iterates.latents)
    # An iterate is its anchor and so many of the image's own steps: Adam, whose steps are about 1, counts them.
    size, anchor, moves = STEP * _mean(start - batch.pivots), start, torch.zeros_like(start)
    adam, push = RowAdam(moves, BETAS), Push(batch.goals)
    rows = torch.arange(len(start), device=start.device)
    mark, since, halved = torch.full_like(size, torch.inf), torch.zeros_like(rows), torch.zeros_like(rows)
    for number in range(most + 1):
        codes = (anchor + size[rows].view(-1, 1, 1) * moves).requires_grad_()
        with torch.set_grad_enabled(number < most):
            images = generator.images(codes, deltas=batch.deltas)
            logits = classifier(images)
            odds, change = log_odds(logits, batch.targets), _mean(images - batch.inversions)
        iterates.observe(images.detach(), codes.detach(), logits.detach(), rows)
        reached = iterates.reached[rows]
        shrinking = rows[reached & (iterates.change[rows] < mark[rows] * (1 - LEAST))]
        mark[shrinking], since[shrinking] = iterates.change[shrinking], number
        if number == most:
            break
        push.observe(logits.detach(), batch.targets, rows)
        with torch.enable_grad():
            loss = WEIGHT * change + push.value[rows] * (batch.goals + AIM - odds).clamp_min(0)
        (gradient,) = torch.autograd.grad(loss.sum(), codes)
        adam.update(moves, gradient, 1.0)
        on_step(len(rows))
        stale = (number - since[rows] >= PATIENCE) & reached
        if stale.any():
            back = rows[stale]
            halved[back] += 1
            size[back], since[back] = size[back] / 2, number
            anchor = anchor.masked_scatter(stale.view(-1, 1, 1), iterates.latents[back])
            moves[stale] = 0
            stay = halved[rows] <= HALVINGS
            if not stay.any():
                break
            if not stay.all():
                rows, batch, anchor, moves = rows[stay], batch.select(stay), anchor[stay], moves[stay]
                adam.keep(stay)
    return halved > HALVINGS


@torch.no_grad()
def _pulled_back(generator: Generator, classifier: Classifier, batch: Batch, codes: Tensor) -> Tensor:
    """Codes on the line from `codes [N, L, w]` towards the pivots, as near to them as is valid by bisection."""
    invalid, valid = torch.zeros_like(batch.goals), torch.ones_like(batch.goals)
    for _ in range(BISECTIONS):
        middle = (invalid + valid) / 2
        between = batch.pivots.lerp(codes, middle.view(-1, 1, 1))
        fine = is_valid(classifier(generator.images(between, deltas=batch.deltas)), batch.targets, batch.goals)
        valid, invalid = torch.where(fine, middle, valid), torch.where(fine, invalid, middle)
    return batch.pivots.lerp(codes, valid.view(-1, 1, 1))


def _mean(difference: Tensor) -> Tensor:
    return difference.abs().flatten(1).mean(dim=1)
