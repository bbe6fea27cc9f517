"""Other ways to make an edit smaller than the second phase of the search (`counterfactual/shrink.py`).

    python benchmarks/search_trials.py [--n 16] [--first 8] [--seed 7] [--models trades …] [--trials NAME …] [--cache F]

Each trial is that phase with `shrink_local = false` but for what its name says, on the query images from `--first` on
of `benchmarks/search.py`. They are held against a change that the phantom knows by intervention and that no trial is
told, and never against the index: columns are those of `benchmarks/search.py`, and the steps that an image took.
`known edit` is no trial but the floor that it is for a search: it begins where the inversion's own weights draw the
known edit best.
"""

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from search import line, prepare
from torch import Tensor
from torch.nn.functional import avg_pool2d

from audit.classifiers.classifier import Classifier
from audit.counterfactual.balance import Push
from audit.counterfactual.batches import Batch
from audit.counterfactual.descent import code_unit
from audit.counterfactual.iterates import Iterates, goal_of, is_valid, log_odds
from audit.counterfactual.protocol import SearchNetworks
from audit.counterfactual.shrink import (
    AIM,
    BETAS,
    BISECTIONS,
    BOUND,
    FARTHEST,
    LEAST,
    NEAREST,
    PATIENCE,
    STEP,
    STIFFNESS,
    WEIGHT,
)
from audit.counterfactual.spruce import align
from audit.data.phantom import HEALTHY
from audit.generator.protocol import Generator
from audit.inversion.adam import RowAdam, cosine

HALVINGS, VALID, LONGEST, ASTRAY = 4, 10, 20, 1.3
"""Of steps that are halved: how often, after how many valid iterates or how many in all of which none is smaller by
`LEAST`, and times the smallest change beyond which an iterate is then given up for the one with that change."""
DIFFERENCE = 0.01
"""Change of a code by which the generator's derivatives are measured."""
CONDITION = 1e-4
"""Smallest eigenvalue of the whitened geometry, in units of the largest."""


@dataclass(frozen=True)
class Trial:
    """What a descent does otherwise than the second phase.

    `schedule` is how steps become shorter: on a "cosine"; "halved" where an edit no longer shrinks; "geometric", each
    `decay` times the one before; or "constant". `stiffness` is that of the price; with 0 a shortfall has the
    multiplier's own price, and beyond the goal there is none. Valid edits past the goal are drawn to the pivot by the
    power `drawn` of the share that they are past it by. With `averaged` edits are means of what a descent without
    momentum visits, later ones weighing more.
    `geometry` is what gives a step its shape: "image", as in the second phase; "layers", the size of the edit in each
    layer; "pixels", how little a layer moves the pixels; "whitened", a rotation in which all directions move them
    alike, as far as `power` goes. Only layers `layers` are edited, or in the first `coarse` steps the early ones first.
    `penalty` is "absolute", "smoothed" below `softness`, "reweighted" by 1 / (change + softness), or "blurred" by four
    pixels in the first `coarse` steps. `threshold` is that of a proximal step on the codes, in units of the step.
    `along` are the tuned weights that are pulled along: "scales", one factor for each; "free", every one whose name
    holds one of `parts`; by steps of `pace` times their mean size. `pull` is whether the end is pulled back.
    """

    aim: float = AIM
    pull: bool = True
    step: float = STEP
    most: int = 110
    betas: tuple[float, float] = BETAS
    schedule: str = "cosine"
    decay: float = 0.97
    stiffness: float = STIFFNESS
    drawn: float = 0.0
    averaged: float = 0.0
    start: str = "aligned"
    geometry: str = "image"
    power: float = 0.5
    layers: tuple[int, int] | None = None
    penalty: str = "absolute"
    softness: float = 0.005
    coarse: int = 0
    threshold: float = 0.0
    along: str = ""
    pace: float = 0.1
    parts: tuple[str, ...] = ("",)


TRIALS = {
    "default": Trial(),
    "the default before": Trial(schedule="halved", stiffness=0, step=0.3, most=120),
    "stiffness 0": Trial(stiffness=0),
    "stiffness .25": Trial(stiffness=0.25),
    "stiffness 1": Trial(stiffness=1.0),
    "drawn to the pivot where past the goal": Trial(drawn=0.5),
    "geometric, .97": Trial(schedule="geometric"),
    "averaged": Trial(schedule="constant", averaged=0.9, betas=(0.0, 0.95), step=0.2, stiffness=0),
    "not pulled back at the end": Trial(pull=False),
    "aim .1": Trial(aim=0.1),
    "aim .1, not pulled back": Trial(aim=0.1, pull=False),
    "aim .01": Trial(aim=0.01),
    "from the pivot": Trial(start="pivot"),
    "1000 steps": Trial(most=1000),
    "the known edit": Trial(start="known"),
    "steps by the edit of each layer": Trial(geometry="layers"),
    "steps by the pixels a layer moves": Trial(geometry="pixels"),
    "whitened": Trial(geometry="whitened"),
    "half whitened": Trial(geometry="whitened", power=0.25),
    "layers 0 to 5": Trial(layers=(0, 6)),
    "layers 2 to 7": Trial(layers=(2, 8)),
    "layers 4 to 9": Trial(layers=(4, 10)),
    "reweighted, .005": Trial(penalty="reweighted"),
    "reweighted, .02": Trial(penalty="reweighted", softness=0.02),
    "smoothed, .005": Trial(penalty="smoothed"),
    "proximal on codes, .1": Trial(threshold=0.1),
    "coarse to fine: blurred for 40": Trial(penalty="blurred", coarse=40),
    "coarse to fine: early layers for 40": Trial(coarse=40),
    "scales of the weights along, .02": Trial(along="scales", pace=0.02),
    "weights along, .03": Trial(along="free", pace=0.03),
    "weights along, .1": Trial(along="free"),
    "weights along, .3": Trial(along="free", pace=0.3),
    "weights of the fine layers along, .1": Trial(along="free", parts=("b32", "b64")),
    "weights of the coarse layers along, .1": Trial(along="free", parts=("b4.", "b8.")),
}


@dataclass(frozen=True)
class Drawing:
    """Draws a batch from its codes and what is added to its tuned weights, and says what the classifier sees."""

    generator: Generator
    classifier: Classifier
    batch: Batch
    names: tuple[str, ...]
    scales: bool

    def images(self, codes: Tensor, more: Sequence[Tensor], rows: Tensor | slice = slice(None)) -> Tensor:
        deltas = {name: addition[rows] for name, addition in self.batch.deltas.items()}
        for name, one in zip(self.names, more, strict=True):
            deltas[name] = deltas[name] * (1 + one) if self.scales else deltas[name] + one
        return self.generator.images(codes, deltas=deltas)

    @torch.no_grad()
    def pulled_back(self, codes: Tensor, more: Sequence[Tensor], nearest: float) -> tuple[Tensor, list[Tensor]]:
        """Return what lies nearest to the inversion on the straight line to it, and is valid."""
        batch = self.batch
        low, high = torch.full_like(batch.goals, nearest), torch.ones_like(batch.goals)

        def at(share: Tensor) -> tuple[Tensor, list[Tensor]]:
            return batch.pivots.lerp(codes, like(share, codes)), [
                one * like(share, one) if one.ndim > 1 else one for one in more
            ]

        for _ in range(BISECTIONS):
            middle = (low + high) / 2
            fine = is_valid(self.classifier(self.images(*at(middle))), batch.targets, batch.goals)
            high, low = torch.where(fine, middle, high), torch.where(fine, low, middle)
        return at(high)


def like(row: Tensor, values: Tensor) -> Tensor:
    return row.view(-1, *[1] * (values.ndim - 1))


def descend(drawing: Drawing, trial: Trial, iterates: Iterates, start: Tensor, shape: Tensor) -> None:
    """Descend from the codes `start` as `trial` says, by steps of the geometry `shape`; add what is found."""
    batch, more = drawing.batch, []
    if trial.along == "scales":
        more = [torch.zeros_like(batch.goals).view(-1, *[1] * (batch.deltas[n].ndim - 1)) for n in drawing.names]
    elif trial.along == "free":
        more = [torch.zeros_like(batch.deltas[name]) for name in drawing.names]
    units = [trial.pace * (1 if drawing.scales else batch.deltas[n].abs().flatten(1).mean(1)) for n in drawing.names]
    kept, ends, codes = [one.clone() for one in more], [one.clone() for one in (start, *more)], start
    size = trial.step * (codes - batch.pivots).abs().flatten(1).mean(1)
    if trial.start == "pivot":
        codes = batch.pivots.clone()
    if trial.geometry == "layers":
        by_layer = (start - batch.pivots).abs().mean(2, keepdim=True)
        shape = by_layer / by_layer.mean(1, keepdim=True)
    first, push = size.clone(), Push(batch.goals, trial.aim)
    mean, visited, total = codes, codes, 0.0
    with torch.no_grad():
        before = log_odds(drawing.classifier(batch.inversions), batch.targets)
    adams = [RowAdam(one.flatten(1), trial.betas) for one in (codes, *more)]
    mark, layers = torch.full_like(size, torch.inf), torch.arange(codes.shape[1])
    rows = torch.arange(len(size))
    since, idle, seen, halved = (torch.zeros_like(rows) for _ in range(4))
    short, patience = torch.zeros_like(rows, dtype=torch.bool), max(PATIENCE, trial.most // 3)
    for number in range(trial.most + 1):
        leaves = [one.clone().requires_grad_() for one in (codes, *more)]
        images = drawing.images(leaves[0], leaves[1:], rows)
        logits = drawing.classifier(images)
        odds, edit = log_odds(logits, batch.targets[rows]), images - batch.inversions[rows]
        change = edit.detach().abs().flatten(1).mean(1)
        valid = iterates.observe(images.detach(), codes, logits.detach(), rows)
        better, short[rows] = iterates.step[rows] == iterates.last[rows], ~valid
        for old, new in zip(kept, more, strict=True):
            old[rows[better]] = new[better]
        for old, new in zip(ends, (codes, *more), strict=True):
            old[rows] = new
        reached, smallest = iterates.reached[rows], iterates.change[rows]
        shrinking = reached & (smallest < mark[rows] * (1 - LEAST))
        mark[rows[shrinking]], since[rows[shrinking]], seen[rows[valid]] = smallest[shrinking], number, number
        idle[rows] = torch.where(shrinking, 0, idle[rows] + valid)
        if number == trial.most:
            break
        push.observe(logits.detach(), batch.targets[rows], rows)
        shortfall = batch.goals[rows] + trial.aim - odds
        rise = (trial.stiffness * shortfall.detach()).clamp(-BOUND, BOUND).exp()
        price = push.value[rows] * (rise if trial.stiffness else (shortfall.detach() > 0).float())
        loss = WEIGHT * penalty(trial, edit, number) - price * odds
        gradients = [one.flatten(1) for one in torch.autograd.grad(loss.sum(), leaves)]
        mask = torch.ones(len(layers))
        if trial.layers is not None:
            mask = ((layers >= trial.layers[0]) & (layers < trial.layers[1])).float()
        elif trial.coarse and trial.penalty == "absolute":
            mask = (layers < len(layers) * (0.4 + 0.6 * number / trial.coarse)).float()
        if shape.ndim == 2:
            gradients[0] = gradients[0] @ shape
        steps = [torch.zeros_like(one) for one in gradients]
        for adam, step, gradient in zip(adams, steps, gradients, strict=True):
            adam.update(step, gradient, 1.0)
        step = (steps[0] @ shape.mT if shape.ndim == 2 else steps[0]).view_as(codes)
        if shape.ndim == 3:
            step = step * (shape[rows] if len(shape) > 1 else shape)
        schedules = {"cosine": cosine(number, trial.most), "geometric": trial.decay**number}
        shorter = schedules.get(trial.schedule, 1.0)
        if trial.drawn:
            share = (batch.goals + trial.aim - before)[rows] / (odds.detach() - before[rows])
            left = like(share.clamp(0.5, 1) ** trial.drawn, codes)
            codes = torch.where(like(valid, codes), batch.pivots[rows].lerp(codes, left), codes)
        moved = shorter * like(size[rows], codes) * step * mask.view(1, -1, 1)
        if trial.averaged:
            total += number + 1
            visited = visited + moved
            mean = mean.lerp(visited, (number + 1) / total)
            codes = visited.lerp(mean, trial.averaged)
        else:
            codes = codes + moved
        if trial.threshold:
            away = codes - batch.pivots[rows]
            codes = batch.pivots[rows] + away.sign() * (away.abs() - trial.threshold * like(size[rows], away)).relu()
        slowed = shorter * (size / first)[rows]
        for place, (one, by, unit) in enumerate(zip(more, steps[1:], units, strict=True)):
            length = slowed * (unit[rows] if torch.is_tensor(unit) else unit)
            more[place] = one + like(length, one) * by.view_as(one)
        stale = ((idle[rows] >= VALID) | (number - since[rows] >= LONGEST)) & reached
        stay = torch.ones_like(stale)
        if trial.schedule == "halved" and stale.any():
            slower = rows[stale]
            halved[slower] += 1
            size[slower], since[slower], idle[slower] = size[slower] / 2, number, 0
            astray = stale & ((change > ASTRAY * smallest) | (number - seen[rows] >= LONGEST))
            codes = torch.where(like(astray, codes), iterates.latents[rows], codes)
            more = [torch.where(like(astray, new), old[rows], new) for old, new in zip(kept, more, strict=True)]
            stay = halved[rows] <= HALVINGS
        elif trial.schedule != "halved" and number >= trial.most - patience:
            stay = ~reached | (number - since[rows] < patience)
        if not stay.any():
            break
        if not stay.all():
            rows, codes, more, mean, visited = (
                rows[stay], codes[stay], [one[stay] for one in more], mean[stay], visited[stay]
            )  # fmt: skip
            for adam in adams:
                adam.keep(stay)
    if trial.pull:
        best = (iterates.latents, *kept)
        ends = [torch.where(like(short, one), one, old) for one, old in zip(ends, best, strict=True)]
        close(drawing, iterates, kept, ends, short)


@torch.no_grad()
def close(drawing: Drawing, iterates: Iterates, kept: list[Tensor], ends: list[Tensor], short: Tensor) -> None:
    """Pull back the edits `ends`, farther where they are `short` of their goals, or the smallest valid ones."""
    batch, far = drawing.batch, torch.where(short, FARTHEST, 1.0)
    ends = [batch.pivots.lerp(ends[0], like(far, ends[0])), *(one * like(far, one) for one in ends[1:])]
    images = drawing.images(ends[0], ends[1:])
    near = (images - batch.inversions).abs().flatten(1).mean(1) < FARTHEST * iterates.change
    near &= is_valid(drawing.classifier(images), batch.targets, batch.goals)
    chosen = [torch.where(like(near, one), one, old) for one, old in zip(ends, (iterates.latents, *kept), strict=True)]
    codes, more = drawing.pulled_back(chosen[0], chosen[1:], NEAREST)
    images = drawing.images(codes, more)
    iterates.observe(images, codes, drawing.classifier(images))


def penalty(trial: Trial, edit: Tensor, number: int) -> Tensor:
    """Return the size `[n]` of the edits at step `number`, as `trial` measures it."""
    size = edit.abs()
    if trial.penalty == "smoothed":
        size = (edit.square() + trial.softness**2).sqrt()
    elif trial.penalty == "reweighted":
        now = edit.detach().abs()
        weight = 1 / (now + trial.softness)
        size = size * weight * like(now.flatten(1).sum(1) / (weight * now).flatten(1).sum(1).clamp_min(1e-9), now)
    change = size.flatten(1).mean(1)
    if trial.penalty == "blurred" and number < trial.coarse:
        share = 1 - number / trial.coarse
        change = share * avg_pool2d(edit, 4, 1, 2).abs().flatten(1).mean(1) + (1 - share) * change
    return change


def drawn_known(generator: Generator, batch: Batch, known: Tensor, steps: int = 300) -> Tensor:
    """Return the codes with which the tuned weights draw the known edit best."""
    codes, wanted = batch.pivots.clone(), batch.inversions + known
    adam = RowAdam(codes, (0.9, 0.99))
    for number in range(steps):
        leaf = codes.clone().requires_grad_()
        away = (generator.images(leaf, deltas=batch.deltas) - wanted).square()
        (gradient,) = torch.autograd.grad(100 * (away + 1e-5).sqrt().mean((1, 2, 3)).sum(), leaf)
        adam.update(codes, gradient, 0.03 * code_unit(generator) * cosine(number, steps))
    return codes


@torch.no_grad()
def sensitivity(generator: Generator, batch: Batch) -> Tensor:
    """Return the mean of J'J `[L w, L w]`, with J the derivative of the pixels by the codes, over the images."""
    total = torch.zeros(batch.pivots[0].numel(), batch.pivots[0].numel())
    for row in range(len(batch.goals)):
        one = batch.select(torch.tensor([row]))
        base, moved = generator.images(one.pivots, deltas=one.deltas).flatten(1), []
        for some in torch.eye(len(total)).split(32):
            deltas = {name: addition.expand(len(some), *addition.shape[1:]) for name, addition in one.deltas.items()}
            codes = one.pivots + DIFFERENCE * some.view(-1, *one.pivots.shape[1:])
            moved.append((generator.images(codes, deltas=deltas).flatten(1) - base) / DIFFERENCE)
        total += torch.cat(moved) @ torch.cat(moved).mT
    return total


def shape_of(trial: Trial, generator: Generator, batch: Batch) -> Tensor:
    """Return what steps are multiplied by: `[1, L, 1]`, or a matrix `[L w, L w]`."""
    if trial.geometry not in {"pixels", "whitened"}:
        return torch.ones(1, 1, 1)
    moves = sensitivity(generator, batch.select(torch.arange(min(3, len(batch.goals)))))
    if trial.geometry == "pixels":
        by_layer = 1 / moves.diagonal().view(generator.num_ws, -1).mean(1).sqrt()
        return (by_layer / by_layer.mean()).view(1, -1, 1)
    values, vectors = torch.linalg.eigh(moves.double())
    root = (vectors * values.clamp_min(CONDITION * values.max()) ** -trial.power) @ vectors.mT
    return (root / root.diagonal().mean()).float()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=16)
    parser.add_argument("--first", type=int, default=8)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--models", nargs="*", default=["trades", "plain", "shortcut"])
    parser.add_argument("--trials", nargs="*", choices=TRIALS, default=TRIALS, metavar="NAME")
    parser.add_argument("--cache", type=Path)
    args = parser.parse_args()
    work = prepare(args.n, args.seed, cache=args.cache)
    places = torch.arange(args.first, args.n)
    queried, generator = work.queried.select(places), work.networks.loaded.generator
    masks = {name: mask[places] for name, mask in work.masks.items()}
    for model in args.models:
        print(model, flush=True)
        classifier, calibrated = work.models[model], work.subject(model).calibrated
        targets, known = torch.full_like(queried.labels, HEALTHY), work.known(model)[places]
        batch = Batch(
            queries=queried.images,
            inversions=queried.inversion.images,
            pivots=queried.inversion.pivots,
            deltas={name: rows[torch.arange(len(places))] for name, rows in queried.inversion.deltas.items()},
            sources=classifier(queried.images).argmax(1),
            targets=targets,
            goals=goal_of(calibrated.operating_point, targets),
        )
        search = SearchNetworks(generator, None)
        aligned = align(work.context.config.counterfactual, calibrated, search, batch, lambda images: None).iterates
        for name in args.trials:
            trial, begun = TRIALS[name], time.process_time()
            tuned = tuple(one for one in sorted(batch.deltas) if trial.along and any(p in one for p in trial.parts))
            drawing = Drawing(generator, classifier, batch, tuned, trial.along == "scales")
            codes = drawn_known(generator, batch, known) if trial.start == "known" else aligned.latents
            start = drawing.pulled_back(codes, [torch.zeros(1)] * len(tuned), 0.0)[0]
            iterates = batch.iterates()
            iterates.observe(batch.inversions, batch.pivots, classifier(batch.inversions))
            descend(drawing, trial, iterates, start, shape_of(trial, generator, batch))
            edits = (iterates.images - batch.inversions)[:, 0]
            taken = float(iterates.last.float().mean()) - 1 - trial.pull
            spent = (time.process_time() - begun) / len(edits)
            print(
                f"  {name:40} {line(edits, known[:, 0], masks)}   median L1 {edits.abs().mean((1, 2)).median():.4f}   "
                f"reached {iterates.reached.float().mean():.2f}   {taken:.0f} steps, {spent:.2f} s of CPU an image",
                flush=True,
            )


if __name__ == "__main__":
    main()
