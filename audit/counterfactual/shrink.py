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

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from audit.classifiers.classifier import Classifier
from audit.counterfactual.balance import AIM, Push
from audit.counterfactual.iterates import is_valid, log_odds
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


@dataclass(frozen=True)
class Edits:
    """The N edits asked for: of `inversions [N, C, H, W]`, which `pivots [N, L, w]` draw with additions `deltas` to the
    generator's weights, towards the classes `targets [N]` with log-odds of at least `goals [N]`."""

    inversions: Tensor
    pivots: Tensor
    deltas: Mapping[str, Tensor]
    targets: Tensor
    goals: Tensor

    def select(self, rows: Tensor) -> "Edits":
        """The edits at `rows` (indices or a mask)."""
        deltas = {name: addition[rows] for name, addition in self.deltas.items()}
        return Edits(self.inversions[rows], self.pivots[rows], deltas, self.targets[rows], self.goals[rows])


@dataclass(frozen=True)
class Shrunk:
    """The smallest valid edits found: `images [N, C, H, W]`, their codes `latents [N, L, w]`, and what is said of them.

    `confidence` is the probability of the target class and `step` the iterate. Where no iterate was valid (`valid`
    False) it is the first one. `flip_step` is the first iterate assigned to the target (-1: none), `steps` the last
    iterate, `converged` whether the edit had stopped to shrink by then; `trace [N, T + 1]` is the probability of the
    target class at every iterate, and what it was last from then on.
    """

    images: Tensor
    latents: Tensor
    confidence: Tensor
    valid: Tensor
    step: Tensor
    flip_step: Tensor
    steps: Tensor
    converged: Tensor
    trace: Tensor


def shrink(
    generator: Generator,
    classifier: Classifier,
    edits: Edits,
    start: Tensor,
    most: int,
    on_step: Callable[[int], None] = lambda images: None,
) -> Shrunk:
    """Make edits smaller that begin at the codes `start [N, L, w]`, in at most `most` steps.

    All N images are worked on together: the caller divides what does not fit. Both networks are in evaluation mode
    with frozen parameters. `on_step` is told after every step how many images took it.
    """
    start = _pulled_back(generator, classifier, edits, start)
    kept = _Kept(edits.inversions.clone(), start.clone(), edits.targets)
    # An iterate is its anchor and so many of the image's own steps: Adam, whose steps are about 1, counts them.
    size, anchor, moves = STEP * _mean(start - edits.pivots), start, torch.zeros_like(start)
    adam, push = RowAdam(moves, BETAS), Push(edits.goals)
    rows = torch.arange(len(start), device=start.device)
    mark, since, halved = torch.full_like(size, torch.inf), torch.zeros_like(rows), torch.zeros_like(rows)
    for number in range(most + 1):
        codes = (anchor + size[rows].view(-1, 1, 1) * moves).requires_grad_()
        with torch.set_grad_enabled(number < most):
            images = generator.images(codes, deltas=edits.deltas)
            logits = classifier(images)
            odds, change = log_odds(logits, edits.targets), _mean(images - edits.inversions)
        kept.observe(rows, edits, images.detach(), codes.detach(), logits.detach())
        shrinking = rows[kept.change[rows] < mark[rows] * (1 - LEAST)]
        mark[shrinking], since[shrinking] = kept.change[shrinking], number
        if number == most:
            break
        push.observe(logits.detach(), edits.targets)
        with torch.enable_grad():
            loss = WEIGHT * change + push.value * (edits.goals + AIM - odds).clamp_min(0)
        (gradient,) = torch.autograd.grad(loss.sum(), codes)
        adam.update(moves, gradient, 1.0)
        on_step(len(rows))
        stale = (number - since[rows] >= PATIENCE) & kept.valid[rows]
        if stale.any():
            back = rows[stale]
            halved[back] += 1
            size[back], since[back] = size[back] / 2, number
            anchor = anchor.masked_scatter(stale.view(-1, 1, 1), kept.latents[back])
            moves[stale] = 0
            stay = halved[rows] <= HALVINGS
            if not stay.any():
                break
            if not stay.all():
                rows, edits, anchor, moves = rows[stay], edits.select(stay), anchor[stay], moves[stay]
                adam.keep(stay)
                push.keep(stay)
    return kept.shrunk(converged=halved > HALVINGS)


class _Kept:
    """The smallest valid iterate of each of N images so far; the first one where none was valid."""

    def __init__(self, images: Tensor, latents: Tensor, targets: Tensor) -> None:
        n, device = len(targets), targets.device
        self.images, self.latents = images, latents
        self.change = torch.full((n,), torch.inf, device=device)
        self.confidence = torch.zeros(n, device=device)
        self.step, self.last = torch.zeros_like(targets), torch.zeros_like(targets)
        self.flip_step = torch.full_like(targets, -1)
        self.trace: list[Tensor] = []

    @property
    def valid(self) -> Tensor:
        """Whether an iterate was valid, bool `[N]`."""
        return self.change.isfinite()

    @torch.no_grad()
    def observe(self, rows: Tensor, edits: Edits, images: Tensor, codes: Tensor, logits: Tensor) -> None:
        """Take the next iterate of the images at `rows`, whose `edits` these are."""
        step = len(self.trace)
        confidence = logits.softmax(dim=1).gather(1, edits.targets[:, None])[:, 0]
        self.trace.append(self.trace[-1].index_copy(0, rows, confidence) if step else confidence)
        change = _mean(images - edits.inversions)
        smaller = is_valid(logits, edits.targets, edits.goals) & (change < self.change[rows])
        self.change[rows[smaller]] = change[smaller]
        self.flip_step[rows[(self.flip_step[rows] < 0) & (logits.argmax(dim=1) == edits.targets)]] = step
        taken = smaller if step else torch.ones_like(smaller)
        self.images[rows[taken]], self.latents[rows[taken]] = images[taken], codes[taken]
        self.confidence[rows[taken]], self.step[rows[taken]] = confidence[taken], step
        self.last[rows] = step

    def shrunk(self, converged: Tensor) -> Shrunk:
        """What was found."""
        return Shrunk(
            images=self.images,
            latents=self.latents,
            confidence=self.confidence,
            valid=self.valid,
            step=self.step,
            flip_step=self.flip_step,
            steps=self.last,
            converged=converged,
            trace=torch.stack(self.trace, dim=1),
        )


@torch.no_grad()
def _pulled_back(generator: Generator, classifier: Classifier, edits: Edits, codes: Tensor) -> Tensor:
    """Codes on the line from `codes [N, L, w]` towards the pivots, as near to them as is valid by bisection."""
    invalid, valid = torch.zeros_like(edits.goals), torch.ones_like(edits.goals)
    for _ in range(BISECTIONS):
        middle = (invalid + valid) / 2
        between = edits.pivots.lerp(codes, middle.view(-1, 1, 1))
        fine = is_valid(classifier(generator.images(between, deltas=edits.deltas)), edits.targets, edits.goals)
        valid, invalid = torch.where(fine, middle, valid), torch.where(fine, invalid, middle)
    return edits.pivots.lerp(codes, valid.view(-1, 1, 1))


def _mean(difference: Tensor) -> Tensor:
    return difference.abs().flatten(1).mean(dim=1)
