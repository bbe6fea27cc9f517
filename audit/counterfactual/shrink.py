"""Make edits smaller until they no longer shrink: the second phase of the search for the smallest change.

Per image, with its own tuned generator G, its inversion I and the log-odds that the target class has to have:

    minimise mean|G(w) - I|  subject to  log-odds(C(G(w))) >= goal

The edit that the first phase found is pulled straight back towards the pivot for as long as it is valid. From there
Adam descends on `WEIGHT mean|G(w) - I| + push max(0, goal + AIM - log-odds)`, in which every image has a multiplier
(`balance.Push`) of its own. The smallest valid iterate is kept, and at the end pulled back as at the start. Steps are a
share of the edit's own size in w+, so that large and small edits, and generators of any spread, take the same number of
them. Where an image has not become smaller for a while its step is halved, and if it has gone astray it returns to its
smallest valid iterate; when halving no longer helps it has converged and leaves the batch. Images do not influence each
other, and nothing is drawn at random.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from audit.classifiers.classifier import Classifier
from audit.counterfactual.balance import Push
from audit.counterfactual.batches import Batch
from audit.counterfactual.iterates import Iterates, is_valid, log_odds
from audit.generator.protocol import Generator
from audit.inversion.adam import RowAdam

WEIGHT = 100.0
"""Weight of the mean absolute pixel change beside a shortfall of one in log-odds, before the push has found its own."""
AIM = 0.03
"""Log-odds aimed for beyond the operating point: less than alignment's, since a soft model pays for each with a larger
edit (benchmarks/README.md)."""
BETAS = (0.8, 0.95)
"""Of Adam. The gradient of an absolute value jumps where a pixel's change turns its sign: a long memory misleads
(benchmarks/README.md)."""
STEP = 0.3
"""First step in w+, in units of the mean absolute difference between the edit's code and the pivot."""
HALVINGS = 4
"""How often the step is halved before an edit counts as converged."""
PATIENCE = 10
"""Valid iterates of which none is smaller by `LEAST` after which the step is halved."""
LONGEST = 20
"""Steps after which it is halved all the same: the way back to a valid iterate can take as many."""
LEAST = 0.02
"""Share by which an edit has to become smaller to count as shrinking."""
ASTRAY = 1.3
"""Times the smallest change beyond which an iterate is given up for the one with that change, when the step is halved.
The others go on where they are: the smallest valid iterate lies in a corner, from which a descent starts badly."""
BISECTIONS = 5
"""Halvings of the line from an edit to the pivot."""
NEAREST = 0.9
"""Share of the smallest edit beyond which it is not pulled back at the end: descent has left little to gain there."""


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
    whole, codes = batch, _pulled_back(generator, classifier, batch, iterates.latents)
    size, rows = STEP * _mean(codes - batch.pivots), torch.arange(len(codes), device=codes.device)
    adam, push = RowAdam(codes, BETAS), Push(batch.goals, AIM)
    mark = torch.full_like(size, torch.inf)
    since, idle, seen, halved = (torch.zeros_like(rows) for _ in range(4))
    for number in range(most + 1):
        leaf = codes.clone().requires_grad_()
        with torch.set_grad_enabled(number < most):
            images = generator.images(leaf, deltas=batch.deltas)
            logits = classifier(images)
            odds, change = log_odds(logits, batch.targets), _mean(images - batch.inversions)
        valid = iterates.observe(images.detach(), codes, logits.detach(), rows)
        reached, smallest = iterates.reached[rows], iterates.change[rows]
        shrinking = reached & (smallest < mark[rows] * (1 - LEAST))
        mark[rows[shrinking]], since[rows[shrinking]], seen[rows[valid]] = smallest[shrinking], number, number
        idle[rows] = torch.where(shrinking, 0, idle[rows] + valid)
        if number == most:
            break
        push.observe(logits.detach(), batch.targets, rows)
        with torch.enable_grad():
            loss = WEIGHT * change + push.value[rows] * (batch.goals + AIM - odds).clamp_min(0)
        (gradient,) = torch.autograd.grad(loss.sum(), leaf)
        step = torch.zeros_like(codes)
        adam.update(step, gradient, 1.0)  # about 1 whatever the gradient: the image's own size gives it a length
        codes = codes + size[rows].view(-1, 1, 1) * step
        on_step(len(rows))
        stale = ((idle[rows] >= PATIENCE) | (number - since[rows] >= LONGEST)) & reached
        if stale.any():
            slower = rows[stale]
            halved[slower] += 1
            size[slower], since[slower], idle[slower] = size[slower] / 2, number, 0
            astray = stale & ((change.detach() > ASTRAY * smallest) | (number - seen[rows] >= LONGEST))
            codes = torch.where(astray.view(-1, 1, 1), iterates.latents[rows], codes)
            stay = halved[rows] <= HALVINGS
            if not stay.any():
                break
            if not stay.all():
                rows, batch, codes = rows[stay], batch.select(stay), codes[stay]
                adam.keep(stay)
    _pull_back_found(generator, classifier, whole, iterates)
    return halved > HALVINGS


@torch.no_grad()
def _pull_back_found(generator: Generator, classifier: Classifier, batch: Batch, iterates: Iterates) -> None:
    rows = iterates.reached.nonzero()[:, 0]
    if len(rows):
        found = batch.select(rows)
        codes = _pulled_back(generator, classifier, found, iterates.latents[rows], NEAREST)
        images = generator.images(codes, deltas=found.deltas)
        iterates.observe(images, codes, classifier(images), rows)


@torch.no_grad()
def _pulled_back(
    generator: Generator, classifier: Classifier, batch: Batch, codes: Tensor, nearest: float = 0.0
) -> Tensor:
    """Codes on the line from `codes [N, L, w]` to the pivots, as near to these as is valid and `nearest`, by bisection.

    `nearest` is the share of the line that is left at least.
    """
    invalid, valid = torch.full_like(batch.goals, nearest), torch.ones_like(batch.goals)
    for _ in range(BISECTIONS):
        middle = (invalid + valid) / 2
        between = batch.pivots.lerp(codes, middle.view(-1, 1, 1))
        fine = is_valid(classifier(generator.images(between, deltas=batch.deltas)), batch.targets, batch.goals)
        valid, invalid = torch.where(fine, middle, valid), torch.where(fine, invalid, middle)
    return batch.pivots.lerp(codes, valid.view(-1, 1, 1))


def _mean(difference: Tensor) -> Tensor:
    return difference.abs().flatten(1).mean(dim=1)
