"""Make edits smaller until they no longer shrink: the second phase of the search for the smallest change.

Per image, with its own tuned generator G, its inversion I and the log-odds that the target class has to have:

    minimise mean|G(w) - I|  subject to  log-odds(C(G(w))) >= goal

The edit that the first phase found is pulled straight back towards the pivot for as long as it is valid. From there
Adam descends on `WEIGHT mean|G(w) - I| - price log-odds`. Every image has a price of its own, that of its multiplier
(`balance.Push`) times `exp(STIFFNESS shortfall)`: it answers a shortfall at once, falls on past the goal, and is smooth
there. Steps are a share of the edit's own size in w+, so that large and small edits, and generators of any spread, take
the same number of them, and become shorter on a cosine. The smallest valid iterate is kept; at the end the last iterate
is brought to the goal on its line to the pivot. An edit that no longer shrinks has converged and, where steps are short
by then, leaves the batch. An edit that is still well beyond its goal was thrown there by an answer that jumps, and had
no steps left for the way back: it descends once more, from where it is. Images do not influence each other, and nothing
is drawn at random.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from audit.classifiers.classifier import Classifier
from audit.counterfactual.balance import Push
from audit.counterfactual.batches import Batch
from audit.counterfactual.iterates import SATURATED, Iterates, is_valid, log_odds
from audit.generator.protocol import Generator
from audit.inversion.adam import RowAdam, cosine

WEIGHT = 100.0
"""Weight of the mean absolute pixel change beside a log-odds, before the push has found its own."""
AIM = 0.03
"""Log-odds aimed for beyond the operating point: less than alignment's, since a soft model pays for each with a larger
edit (benchmarks/README.md)."""
STIFFNESS = 0.5
"""By how much the logarithm of the price rises for a shortfall of one in log-odds. Without it, models whose answers
jump throw some images from far short of the goal to far beyond (benchmarks/README.md)."""
BOUND = 4.0
"""Largest change of that logarithm."""
BETAS = (0.8, 0.95)
"""Of Adam. The gradient of an absolute value jumps where a pixel's change turns its sign: a long memory misleads
(benchmarks/README.md)."""
STEP = 0.3
"""First step in w+, in units of the mean absolute difference between the edit's code and the pivot."""
LEAST = 0.02
"""Share by which an edit has to become smaller to count as shrinking."""
PATIENCE = 40
"""Steps, or a third of all if that is more, in which an edit that has converged did not shrink. Before the last third
none leaves the batch: that long steps lead no further says little."""
BISECTIONS = 5
"""Halvings of the line from an edit to the pivot."""
BEYOND = 0.5
"""Log-odds beyond its goal at which an edit has not been led to the goal; those that have end within hundredths."""
NEAREST, FARTHEST = 0.9, 1.05
"""Share of an edit beyond which it is not pulled back at the end, and to which a last iterate that is short of its goal
is carried on before: descent has left little to gain there."""


def shrink(
    generator: Generator,
    classifier: Classifier,
    batch: Batch,
    iterates: Iterates,
    most: int,
    on_step: Callable[[int], None] = lambda images: None,
) -> Tensor:
    """Make the edits chosen among `iterates` smaller, in at most `most` steps; return which have converged, bool `[N]`.

    An edit that ends beyond its goal takes as many steps again. What is found is added to `iterates`. All N images are
    worked on together: the caller divides what does not fit. Both networks are in evaluation mode with frozen
    parameters. `on_step` is told after every step how many images took it.
    """
    rows = torch.arange(len(batch.goals), device=batch.goals.device)
    converged = _descend(generator, classifier, batch, iterates, rows, most=most, on_step=on_step)
    odds = torch.logit(iterates.confidence.double()).clamp(max=SATURATED)
    again = (iterates.reached & (odds > batch.goals + BEYOND)).nonzero()[:, 0]
    if len(again):
        converged[again] = _descend(
            generator, classifier, batch.select(again), iterates, again, most=most, on_step=on_step
        )
    return converged


def _descend(
    generator: Generator,
    classifier: Classifier,
    batch: Batch,
    iterates: Iterates,
    all_rows: Tensor,
    *,
    most: int,
    on_step: Callable[[int], None],
) -> Tensor:
    """Descend from the edits chosen at the rows `[n]` of `iterates`, which are those of `batch`; return as `shrink`."""
    start = _pulled_back(generator, classifier, batch, iterates.latents[all_rows])
    adam, push = RowAdam(start, BETAS), Push(batch.goals, AIM)
    size, last = STEP * _mean(start - batch.pivots), start.clone()
    mark, rows = torch.full_like(size, torch.inf), torch.arange(len(start), device=start.device)
    since, patience = torch.zeros_like(rows), max(PATIENCE, most // 3)
    short, converged = torch.zeros(2, len(rows), dtype=torch.bool, device=rows.device)
    codes, left = start, batch
    for number in range(most + 1):
        leaf = codes.clone().requires_grad_()
        with torch.set_grad_enabled(number < most):
            images = generator.images(leaf, deltas=left.deltas)
            logits = classifier(images)
            odds, change = log_odds(logits, left.targets), _mean(images - left.inversions)
        places = all_rows[rows]
        short[rows] = ~iterates.observe(images.detach(), codes, logits.detach(), places)
        last[rows] = codes
        reached, smallest = iterates.reached[places], iterates.change[places]
        shrinking = reached & (smallest < mark[rows] * (1 - LEAST))
        mark[rows[shrinking]], since[rows[shrinking]] = smallest[shrinking], number
        converged[rows] = reached & (number - since[rows] >= patience)
        if number == most:
            break
        push.observe(logits.detach(), left.targets, rows)
        with torch.enable_grad():
            shortfall = (left.goals + AIM - odds).detach()
            price = push.value[rows] * (STIFFNESS * shortfall).clamp(-BOUND, BOUND).exp()
            loss = WEIGHT * change - price * odds
        (gradient,) = torch.autograd.grad(loss.sum(), leaf)
        step = torch.zeros_like(codes)
        adam.update(step, gradient, 1.0)  # about 1 whatever the gradient: the image's own size gives it a length
        codes = codes + (cosine(number, most) * size[rows]).view(-1, 1, 1) * step
        on_step(len(rows))
        leave = converged[rows] & (number >= most - patience)
        if leave.all():
            break
        if leave.any():
            rows, left, codes = rows[~leave], left.select(~leave), codes[~leave]
            adam.keep(~leave)
    ends = torch.where(short.view(-1, 1, 1), batch.pivots.lerp(last, FARTHEST), iterates.latents[all_rows])
    _close(generator, classifier, batch, iterates, all_rows, ends)
    return converged


@torch.no_grad()
def _close(
    generator: Generator, classifier: Classifier, batch: Batch, iterates: Iterates, rows: Tensor, ends: Tensor
) -> None:
    """Pull back the edits of the codes `ends`, where valid and hardly larger than the smallest, or else that one.

    `batch` and `ends` are of the images at `rows` of `iterates`.
    """
    reached = iterates.reached[rows].nonzero()[:, 0]
    rows = rows[reached]
    if len(rows):
        batch, ends = batch.select(reached), ends[reached]
        images = generator.images(ends, deltas=batch.deltas)
        near = _mean(images - batch.inversions) < FARTHEST * iterates.change[rows]
        near &= is_valid(classifier(images), batch.targets, batch.goals)
        codes = torch.where(near.view(-1, 1, 1), ends, iterates.latents[rows])
        codes = _pulled_back(generator, classifier, batch, codes, NEAREST)
        images = generator.images(codes, deltas=batch.deltas)
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
