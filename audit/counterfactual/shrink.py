"""Make edits smaller until they no longer shrink: the second phase of the search for the smallest change.

Per image, with its own tuned generator G, its inversion I and the log-odds that the target class has to have:

    minimise mean|X - I|  subject to  log-odds(C(X)) >= goal,  X = I + M (G(w) - I)

The edit that the first phase found is pulled straight back towards the pivot for as long as it is valid. From there
Adam descends in w on `WEIGHT mean|X - I| - price log-odds`. Every image has a price of its own, that of its multiplier
(`balance.Push`) times `exp(STIFFNESS shortfall)`: it answers a shortfall at once, falls on past the goal, and is
smooth there. Steps are a share of the edit's own size in w+, so that large and small edits, and generators of any
spread, take the same number of them, and become shorter on a cosine. The mask M is 1 at first, so that X is what the
generator draws; when the last steps begin, it becomes what can be seen of the smallest valid edit and what lies close
by (`blend.py`), and the descent goes on within it.

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
from audit.counterfactual.blend import around_visible, blended
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
SETTLING = 20
"""Steps for which an edit stays after its mask was made: without what is not seen it first falls short of its goal."""
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
    local: bool = True,
) -> Tensor:
    """Make the edits chosen among `iterates` smaller, in at most `most` steps; return which have converged, bool `[N]`.

    Without `local` an edit is all that the generator draws. An edit that ends beyond its goal takes as many steps
    again. What is found is added to `iterates`. All N images are worked on together: the caller divides what does not
    fit. Both networks are in evaluation mode with frozen parameters. `on_step` is told after every step how many
    images took it.
    """
    rows = torch.arange(len(batch.goals), device=batch.goals.device)
    if local:
        iterates.masks = torch.ones_like(batch.inversions[:, :1])
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
    """Edits of n images: their codes `[n, L, w]`, and their masks `[n, 1, H, W]`; None: 1 everywhere."""

    codes: Tensor
    masks: Tensor | None

    def images(self, generator: Generator, batch: Batch) -> Tensor:
        drawn = generator.images(self.codes, deltas=batch.deltas)
        return drawn if self.masks is None else blended(batch.inversions, drawn, self.masks)

    def select(self, rows: Tensor) -> "_Edits":
        return _Edits(self.codes[rows], None if self.masks is None else self.masks[rows])

    def put(self, rows: Tensor, others: "_Edits") -> None:
        """Replace those at `rows` by `others`."""
        self.codes[rows] = others.codes
        if self.masks is not None and others.masks is not None:
            self.masks[rows] = others.masks

    def at(self, pivots: Tensor, place: Tensor | float) -> "_Edits":
        """Return what lies at `place` `[n]` of the line from the pivots (0) to the codes (1) and beyond."""
        share = place.view(-1, 1, 1) if isinstance(place, Tensor) else place
        return _Edits(pivots.lerp(self.codes, share), self.masks)

    def observe(self, iterates: Iterates, images: Tensor, logits: Tensor, rows: Tensor) -> Tensor:
        """Show these edits, and what is drawn and said of them, to the iterates at `rows`; return which are valid."""
        return iterates.observe(images.detach(), self.codes, logits.detach(), rows, self.masks)


def _chosen(iterates: Iterates, rows: Tensor) -> _Edits:
    return _Edits(iterates.latents[rows], None if iterates.masks is None else iterates.masks[rows])


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
    adam, push = RowAdam(edits.codes, BETAS), Push(batch.goals, AIM)
    last = _chosen(iterates, all_rows)
    size = STEP * _mean(edits.codes - batch.pivots)
    mark, rows = torch.full_like(size, torch.inf), torch.arange(len(size), device=size.device)
    since, patience = torch.zeros_like(rows), max(PATIENCE, most // 3)
    short, converged = torch.zeros(2, len(rows), dtype=torch.bool, device=rows.device)
    masked_at, left = max(most - patience, most // 2), batch
    for number in range(most + 1):
        if number == masked_at and edits.masks is not None:  # before any image leaves
            edits, smaller = _masked(generator, batch, iterates, all_rows)
            mark *= smaller  # what the mask takes away is not the descent's doing
            adam = RowAdam(edits.codes, BETAS)
        leaf = edits.codes.clone().requires_grad_()
        with torch.set_grad_enabled(number < most):
            images = _Edits(leaf, edits.masks).images(generator, left)
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
        (gradient,) = torch.autograd.grad(loss.sum(), leaf)
        step = torch.zeros_like(gradient)
        adam.update(step, gradient, 1.0)  # about 1 whatever the gradient: the image's own size gives it a length
        codes = edits.codes + (cosine(number, most) * size[rows]).view(-1, 1, 1) * step
        edits = _Edits(codes, edits.masks)
        on_step(len(rows))
        leave = converged[rows] & (number >= masked_at + SETTLING)
        if leave.all():
            break
        if leave.any():
            rows, left, edits = rows[~leave], left.select(~leave), edits.select(~leave)
            adam.keep(~leave)
    ends, best = last.at(batch.pivots, FARTHEST), _chosen(iterates, all_rows)
    ends.put(~short, best.select(~short))
    _close(generator, classifier, batch, iterates, all_rows, ends)
    return converged


@torch.no_grad()
def _masked(generator: Generator, batch: Batch, iterates: Iterates, rows: Tensor) -> tuple[_Edits, Tensor]:
    """Return the edits chosen at `rows` with new masks, and the share of their mean change that these leave, `[n]`."""
    edits = _chosen(iterates, rows)
    changes = edits.images(generator, batch) - batch.inversions
    masks = around_visible(changes)
    smaller = _mean(masks * changes) / _mean(changes).clamp_min(torch.finfo(changes.dtype).tiny)
    return _Edits(edits.codes, masks), smaller


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
