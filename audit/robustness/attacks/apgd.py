"""Auto-PGD, untargeted and targeted, in an L-inf or L2 ball (Croce & Hein 2020, arXiv 2003.01690, algorithm 1).

Each sample halves its own step at checkpoints where its loss has risen too rarely, or where neither step nor best loss
has changed since the last one, and goes on from its best point. A step costs one forward and one backward pass: the
same pass gives the loss, the gradient and the decision, and the gradient of the best point is kept with it. A sample
that is fooled leaves the batch at once and the rest is packed together, so all state is one row a sample.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields

import torch
from torch import Tensor, nn

from audit.errors import MetricError
from audit.robustness.attacks.ball import Norm, ascent, per_image, project, random_offset
from audit.robustness.attacks.losses import LOSSES, LossName, targeted_dlr, targeted_margin
from audit.robustness.attacks.sight import Sight
from audit.robustness.attacks.target import Target

MOMENTUM = 0.75
"""Weight alpha of the new step against the last one (section 3.1, eq. 2)."""
RISES = 0.75
"""Share rho of the steps since the last checkpoint on which the loss must have risen (section 3.2, condition 1)."""


def checkpoints(steps: int) -> list[int]:
    """Return the numbers of steps, above 0 and below `steps`, after which step sizes are reviewed (section 3.2).

    They lie 0.22, then each time 0.03 less but at least 0.06 of all steps apart. These shares are rounded down (but to
    at least 1), as in the authors' own program; the paper rounds the sums up. For 100 steps both are the same; for few,
    step sizes are halved sooner, which finds slightly more.
    """
    period, less, least = (max(int(share * steps), 1) for share in (0.22, 0.03, 0.06))
    marks, mark = [], period
    while mark < steps:
        marks.append(mark)
        period = max(period - less, least)
        mark += period
    return marks


PairLoss = Callable[[Tensor, Tensor, Tensor], Tensor]
"""A loss `[N]` of logits `[N, K]`, labels `[N]` and target classes `[N]`, to be maximised."""


@dataclass(frozen=True)
class _Run:
    """How one run goes: the loss to climb, the radius in pixel units, the number of steps, where starts come from."""

    loss: PairLoss
    eps: float
    steps: int
    generator: torch.Generator


@dataclass
class _Result:
    """What was found so far, one row an image: the image, its loss where it still stands, and whether it stands."""

    images: Tensor
    loss: Tensor
    standing: Tensor


@dataclass
class _State:
    """What Auto-PGD remembers of each sample that still stands, one row each.

    A sample is an image, or an image with one of its target classes: `row` says which image of the result it is.
    """

    row: Tensor
    labels: Tensor
    targets: Tensor
    images: Tensor
    current: Tensor
    previous: Tensor
    gradient: Tensor
    loss: Tensor
    best: Tensor
    best_gradient: Tensor
    best_loss: Tensor
    step: Tensor
    rises: Tensor
    mark_loss: Tensor
    mark_halved: Tensor

    def keep(self, rows: Tensor) -> None:
        """Keep only the given rows, in their order."""
        for entry in fields(self):
            setattr(self, entry.name, getattr(self, entry.name).index_select(0, rows))


def _move(state: _State, eps: float, norm: Norm, first: bool) -> None:
    """Take one step with momentum (section 3.1, eqs. 1 and 2); the very first has nothing to keep going from."""
    current, step = state.current, per_image(state.step, state.current)
    moved = ascent(state.gradient, 1.0, norm).mul_(step).add_(current)
    moved = project(moved, state.images, eps, norm)
    if not first:
        # current + a (moved - current) + (1 - a) (current - previous), gathered.
        moved.mul_(MOMENTUM).add_(current, alpha=2 - 2 * MOMENTUM).sub_(state.previous, alpha=1 - MOMENTUM)
        moved = project(moved, state.images, eps, norm)
    state.previous, state.current = current, moved


def _remember_best(state: _State) -> None:
    better = state.loss > state.best_loss
    rows = better.nonzero().flatten()
    state.best.index_copy_(0, rows, state.current.index_select(0, rows))
    state.best_gradient.index_copy_(0, rows, state.gradient.index_select(0, rows))
    state.best_loss = torch.where(better, state.loss, state.best_loss)


def _review_steps(state: _State, since: int) -> None:
    """Halve the step of samples that meet condition 1 or 2, and put them back to their best point (section 3.2)."""
    rare = state.rises < RISES * since
    stuck = ~state.mark_halved & (state.mark_loss == state.best_loss)
    halved = rare | stuck
    rows = halved.nonzero().flatten()
    state.current = state.current.index_copy(0, rows, state.best.index_select(0, rows))
    state.gradient = state.gradient.index_copy(0, rows, state.best_gradient.index_select(0, rows))
    state.loss = torch.where(halved, state.best_loss, state.loss)
    state.step = torch.where(halved, state.step / 2, state.step)
    state.mark_loss, state.mark_halved = state.best_loss.clone(), halved
    state.rises = torch.zeros_like(state.rises)


def _first_of_each(rows: Tensor, n: int) -> Tensor:
    """Return the positions at which each of the values of `rows`, below `n`, stands first: the same on any device."""
    positions = torch.arange(len(rows), device=rows.device)
    first = torch.full((n,), len(rows), device=rows.device).scatter_reduce(0, rows, positions, "amin")
    return (first[rows] == positions).nonzero().flatten()


def _take_fooled(result: _Result, state: _State, wrong: Tensor) -> None:
    """Move fooled samples to the result; with them goes every other target class of the same image."""
    chosen = wrong.nonzero().flatten()
    chosen = chosen[_first_of_each(state.row[chosen], len(result.images))]
    result.images[state.row[chosen]] = state.current[chosen]
    result.standing[state.row[chosen]] = False
    state.keep(result.standing[state.row].nonzero().flatten())


def _take_best(result: _Result, state: _State) -> None:
    """Move the best points of samples that stand to the result where their loss is higher than what is there."""
    highest = result.loss.scatter_reduce(0, state.row, state.best_loss, "amax")
    chosen = ((state.best_loss == highest[state.row]) & (state.best_loss > result.loss[state.row])).nonzero().flatten()
    chosen = chosen[_first_of_each(state.row[chosen], len(result.images))]
    result.images[state.row[chosen]] = state.best[chosen]
    result.loss[state.row[chosen]] = state.best_loss[chosen]


def _climb(target: Target, state: _State, result: _Result, run: _Run) -> None:
    """Run Auto-PGD once on the samples of `state` and bring what it finds into `result`."""
    marks, last_mark = set(checkpoints(run.steps)), 0
    for done in range(run.steps + 1):
        if done:
            _move(state, run.eps, target.norm, first=done == 1)
        last = done == run.steps
        with torch.set_grad_enabled(not last):
            current = state.current.detach().requires_grad_(not last)
            logits = target.logits(current)
            losses = run.loss(logits, state.labels, state.targets)
        wrong = logits.argmax(dim=1) != state.labels
        if not last:
            state.gradient = target.gradient(losses, current)
            target.note(state.row, state.gradient)
        if done:
            state.rises += losses.detach() > state.loss
        state.loss = losses.detach()
        if bool(wrong.any()):
            _take_fooled(result, state, wrong)
            if len(state.row) == 0:
                return
        _remember_best(state)
        if done == 0:
            state.mark_loss = state.best_loss.clone()
        if done in marks:
            _review_steps(state, done - last_mark)
            last_mark = done
    _take_best(result, state)


def _attack(target: Target, result: _Result, rows: Tensor, classes: Tensor, run: _Run) -> None:
    """Attack the images `rows`, each towards its entry of `classes`, once from random starts."""
    centre = target.images[rows]
    offset = random_offset(centre.shape, run.eps, target.norm, run.generator).to(centre)
    start = project(centre + offset, centre, run.eps, target.norm)
    n, device = len(rows), centre.device
    never = torch.full((n,), -torch.inf, device=device)
    state = _State(
        row=rows,
        labels=target.labels[rows],
        targets=classes,
        images=centre,
        current=start,
        previous=start,
        gradient=torch.zeros_like(start),
        loss=never,
        best=start.clone(),
        best_gradient=torch.zeros_like(start),
        best_loss=never,
        step=torch.full((n,), 2 * run.eps, device=device),
        rises=torch.zeros(n, dtype=torch.int64, device=device),
        mark_loss=never,
        mark_halved=torch.zeros(n, dtype=torch.bool, device=device),
    )
    _climb(target, state, result, run)


def _check_counts(**counts: int) -> None:
    if min(counts.values()) < 1:
        given = ", ".join(f"{name} {count}" for name, count in counts.items())
        raise MetricError(f"Auto-PGD needs at least 1 of each of its counts; given: {given}.")


def _untouched(target: Target, logits: Tensor) -> _Result:
    """Return the result before any attack, given the clean `logits` `[N, K]`."""
    standing = logits.argmax(dim=1) == target.labels
    return _Result(target.images.clone(), torch.full_like(logits[:, 0], -torch.inf, dtype=torch.float32), standing)


def apgd_attack(
    classifier: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    eps: float,
    generator: torch.Generator,
    norm: Norm = "Linf",
    steps: int = 100,
    restarts: int = 1,
    loss: LossName = "ce",
    sight: Sight | None = None,
) -> Tensor:
    """Return adversarial images `[N, C, H, W]` in [0, 1] within `eps` (pixel units) of `images`, by Auto-PGD.

    `labels` are int64 `[N]`. An image that is misclassified comes back as it is, one that was fooled as the first
    iterate that did it, any other as the iterate of highest loss over all `restarts`. A run costs at most `steps + 1`
    forward and `steps` backward passes. Random starts come from `generator` alone, the classifier keeps its mode,
    `sight` takes the account of the gradients.
    Raises MetricError on images outside [0, 1], labels, eps or counts out of range and a loss that K does not allow,
    and ClassifierError on logits or gradients that are not finite.
    """
    target = Target("Auto-PGD", classifier, images, labels, norm, sight)
    target.check_eps(eps)
    _check_counts(steps=steps, restarts=restarts)

    def climbed(logits: Tensor, labels: Tensor, _: Tensor) -> Tensor:
        return LOSSES[loss](logits, labels)

    with target.attacked() as logits:
        result = _untouched(target, logits)
        for _ in range(restarts):
            rows = result.standing.nonzero().flatten()
            if len(rows) == 0:
                break
            _attack(target, result, rows, target.labels[rows], _Run(climbed, eps, steps, generator))
    return target.within(result.images, eps)


def apgd_targeted_attack(
    classifier: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    eps: float,
    generator: torch.Generator,
    norm: Norm = "Linf",
    steps: int = 100,
    restarts: int = 1,
    target_classes: int = 9,
    batch_size: int | None = None,
    sight: Sight | None = None,
) -> Tensor:
    """Return adversarial images as `apgd_attack` does, by Auto-PGD towards the most likely wrong classes in turn.

    Targets are the `target_classes` (at most K - 1) classes of largest clean logit besides the label. The loss is the
    targeted difference of logits ratio for K >= 4 and the targeted margin below. An image counts as fooled by any wrong
    class. When few images are left, several of their targets share a batch of at most `batch_size` rows (default N).
    Raises as `apgd_attack` does.
    """
    target = Target("targeted Auto-PGD", classifier, images, labels, norm, sight)
    target.check_eps(eps)
    _check_counts(steps=steps, restarts=restarts, target_classes=target_classes)
    width = len(images) if batch_size is None else batch_size
    with target.attacked() as logits:
        result = _untouched(target, logits)
        run = _Run(targeted_dlr if logits.shape[1] >= 4 else targeted_margin, eps, steps, generator)
        count = min(target_classes, logits.shape[1] - 1)
        likely = logits.float().scatter(1, target.labels[:, None], -torch.inf).topk(count, dim=1).indices
        for _ in range(restarts):
            tried = 0
            while tried < count:
                left = result.standing.nonzero().flatten()
                if len(left) == 0:
                    break
                together = max(1, min(count - tried, width // len(left)))
                classes = likely[left, tried : tried + together].T.flatten()
                _attack(target, result, left.repeat(together), classes, run)
                tried += together
    return target.within(result.images, eps)
