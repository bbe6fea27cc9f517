"""Make edits smaller until they no longer shrink: the second phase of the search for the smallest change.

Per image, with its own tuned generator G, its inversion I and the log-odds that the target class has to have:

    minimise mean|X - I|  subject to  log-odds(C(X)) >= goal,  X = I + M (G(w) - I)

over the codes w and the shares of a coarse grid, from which M is interpolated (`blend.py`): all 1 at first, so that X
is what the generator draws, they leave out of an edit what its goal does not need. The edit that the first phase found
is pulled straight back towards the pivot for as long as it is valid. From there Adam descends on `WEIGHT mean|X - I| -
price log-odds`. Every image has a price of its own, that of its multiplier (`balance.Push`) times `exp(STIFFNESS
shortfall)`: it answers a shortfall at once, falls on past the goal, and is smooth there. Steps in w+ are a share of the
edit's own size there, so that large and small edits, and generators of any spread, take the same number of them; all
become shorter on a cosine.

The smallest valid iterate is kept; at the end the last iterate is brought to the goal on its line to the pivot. An edit
that no longer shrinks has converged and, where steps are short by then, leaves the batch. An edit that is still well
beyond its goal was thrown there by an answer that jumps, and had no steps left for the way back: it descends once more,
from where it is. Images do not influence each other, and nothing is drawn at random.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from audit.classifiers.classifier import Classifier
from audit.counterfactual.balance import Push
from audit.counterfactual.batches import Batch
from audit.counterfactual.blend import blended
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
SHARE_STEP = 0.1
"""First step of the shares of the grid, which lie in [0, 1]."""
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
    *,
    cells: int = 0,
) -> Tensor:
    """Make the edits chosen among `iterates` smaller, in at most `most` steps; return which have converged, bool `[N]`.

    `cells` are those of a side of the grid of shares; 0: an edit is all that the generator draws. An edit that ends
    beyond its goal takes as many steps again. What is found is added to `iterates`. All N images are worked on at once:
    the caller divides what does not fit. Both networks are in evaluation mode with frozen parameters. `on_step` is told
    after every step how many images took it.
    """
    rows = torch.arange(len(batch.goals), device=batch.goals.device)
    if cells:
        iterates.shares = batch.goals.new_ones(len(rows), 1, cells, cells)
    converged = _descend(generator, classifier, batch, iterates, rows, most=most, on_step=on_step)
    odds = torch.logit(iterates.confidence.double()).clamp(max=SATURATED)
    again = (iterates.reached & (odds > batch.goals + BEYOND)).nonzero()[:, 0]
    if len(again):
        converged[again] = _descend(
            generator, classifier, batch.select(again), iterates, again, most=most, on_step=on_step
        )
    return converged


@dataclass(frozen=True)
class _Edits:
    """Edits of n images: their codes `[n, L, w]`, and the shares `[n, 1, g, g]` of a grid; None: 1 everywhere."""

    codes: Tensor
    shares: Tensor | None

    def images(self, generator: Generator, batch: Batch) -> Tensor:
        drawn = generator.images(self.codes, deltas=batch.deltas)
        return drawn if self.shares is None else blended(batch.inversions, drawn, self.shares)

    def select(self, rows: Tensor) -> "_Edits":
        return _Edits(self.codes[rows], None if self.shares is None else self.shares[rows])

    def put(self, rows: Tensor, others: "_Edits") -> None:
        """Replace those at `rows` by `others`."""
        self.codes[rows] = others.codes
        if self.shares is not None and others.shares is not None:
            self.shares[rows] = others.shares

    def at(self, pivots: Tensor, place: Tensor | float) -> "_Edits":
        """Return what lies at `place` `[n]` of the line from the pivots (0) to the codes (1) and beyond."""
        share = place.view(-1, 1, 1) if isinstance(place, Tensor) else place
        return _Edits(pivots.lerp(self.codes, share), self.shares)

    def copy(self, gradients: bool = False) -> "_Edits":
        """Return a copy, one that gradients are taken by if `gradients`."""
        shares = None if self.shares is None else self.shares.clone().requires_grad_(gradients)
        return _Edits(self.codes.clone().requires_grad_(gradients), shares)

    def observe(self, iterates: Iterates, images: Tensor, logits: Tensor, rows: Tensor) -> Tensor:
        """Show these edits, and what is drawn and said of them, to the iterates at `rows`; return which are valid."""
        return iterates.observe(images.detach(), self.codes, logits.detach(), rows, self.shares)


def _chosen(iterates: Iterates, rows: Tensor) -> _Edits:
    return _Edits(iterates.latents[rows], None if iterates.shares is None else iterates.shares[rows])


class _Steps:
    """Adam on edits; the length of a step is the caller's."""

    def __init__(self, edits: _Edits) -> None:
        self._of_codes = RowAdam(edits.codes, BETAS)
        self._of_shares = None if edits.shares is None else RowAdam(edits.shares, BETAS)

    def take(self, edits: _Edits, loss: Tensor, by: _Edits, sizes: Tensor, shorter: float) -> _Edits:
        """Step from `edits` down the gradient of `loss` by `by`, which are the same; `sizes [n]` are those in w+.

        What Adam gives is about 1 whatever the gradient.
        """
        leaves = [by.codes] if by.shares is None else [by.codes, by.shares]
        gradients, step = torch.autograd.grad(loss.sum(), leaves), torch.zeros_like(edits.codes)
        self._of_codes.update(step, gradients[0], 1.0)
        codes, shares = edits.codes + (shorter * sizes).view(-1, 1, 1) * step, edits.shares
        if shares is not None and self._of_shares is not None:
            shares = shares.clone()
            self._of_shares.update(shares, gradients[1], SHARE_STEP * shorter)
            shares.clamp_(0, 1)
        return _Edits(codes, shares)

    def keep(self, rows: Tensor) -> None:
        self._of_codes.keep(rows)
        if self._of_shares is not None:
            self._of_shares.keep(rows)


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
    edits = _pulled_back(generator, classifier, batch, _chosen(iterates, all_rows))
    steps, push, last = _Steps(edits), Push(batch.goals, AIM), edits.copy()
    size = STEP * _mean(edits.codes - batch.pivots)
    mark, rows = torch.full_like(size, torch.inf), torch.arange(len(size), device=size.device)
    since, patience = torch.zeros_like(rows), max(PATIENCE, most // 3)
    short, converged = torch.zeros(2, len(rows), dtype=torch.bool, device=rows.device)
    left = batch
    for number in range(most + 1):
        leaf = edits.copy(gradients=True)
        with torch.set_grad_enabled(number < most):
            images = leaf.images(generator, left)
            logits = classifier(images)
            odds, change = log_odds(logits, left.targets), _mean(images - left.inversions)
        places = all_rows[rows]
        short[rows] = ~edits.observe(iterates, images, logits, places)
        last.put(rows, edits)
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
        edits = steps.take(edits, loss, leaf, size[rows], cosine(number, most))
        on_step(len(rows))
        leave = converged[rows] & (number >= most - patience)
        if leave.all():
            break
        if leave.any():
            rows, left, edits = rows[~leave], left.select(~leave), edits.select(~leave)
            steps.keep(~leave)
    ends, best = last.at(batch.pivots, FARTHEST), _chosen(iterates, all_rows)
    ends.put(~short, best.select(~short))
    _close(generator, classifier, batch, iterates, all_rows, ends)
    return converged


@torch.no_grad()
def _close(
    generator: Generator, classifier: Classifier, batch: Batch, iterates: Iterates, rows: Tensor, ends: _Edits
) -> None:
    """Pull back the edits `ends`, where valid and hardly larger than the smallest, or else that one.

    `batch` and `ends` are of the images at `rows` of `iterates`.
    """
    reached = iterates.reached[rows].nonzero()[:, 0]
    rows = rows[reached]
    if len(rows):
        batch, ends = batch.select(reached), ends.select(reached)
        images = ends.images(generator, batch)
        near = _mean(images - batch.inversions) < FARTHEST * iterates.change[rows]
        near &= is_valid(classifier(images), batch.targets, batch.goals)
        best = _chosen(iterates, rows)
        best.put(near, ends.select(near))
        edits = _pulled_back(generator, classifier, batch, best, NEAREST)
        images = edits.images(generator, batch)
        edits.observe(iterates, images, classifier(images), rows)


@torch.no_grad()
def _pulled_back(
    generator: Generator, classifier: Classifier, batch: Batch, edits: _Edits, nearest: float = 0.0
) -> _Edits:
    """Edits on the line from `edits` to the pivots, as near to these as is valid and `nearest`, by bisection.

    `nearest` is the share of the line that is left at least.
    """
    invalid, valid = torch.full_like(batch.goals, nearest), torch.ones_like(batch.goals)
    for _ in range(BISECTIONS):
        middle = (invalid + valid) / 2
        images = edits.at(batch.pivots, middle).images(generator, batch)
        fine = is_valid(classifier(images), batch.targets, batch.goals)
        valid, invalid = torch.where(fine, middle, valid), torch.where(fine, invalid, middle)
    return edits.at(batch.pivots, valid)


def _mean(difference: Tensor) -> Tensor:
    return difference.abs().flatten(1).mean(dim=1)
