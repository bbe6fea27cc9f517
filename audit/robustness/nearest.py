"""Distances to the nearest adversarial images: of a search by bisection, or of an attack that looks for them."""

import math
from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from audit.classifiers.slices import sparing
from audit.config import DistanceConfig, eps_value
from audit.data.audit_set import AuditSet
from audit.results import MinimalDistance
from audit.robustness.accuracy import device_of
from audit.robustness.attacks.ball import Norm, distance
from audit.robustness.attacks.blind import Account
from audit.robustness.attacks.checks import name_of
from audit.robustness.attacks.registry import ChosenAttack, radii_of
from audit.robustness.attacks.sight import Sight
from audit.robustness.balls import Ball
from audit.robustness.batch import BEFORE, SMALLER, Batch, Task, answers_to
from audit.robustness.distance import median_distance, minimal_distances
from audit.robustness.examples import EXAMPLES, Fooled, most_fragile
from audit.robustness.tally import Attacked, Tally, enter, takes_gradients
from audit.runtime.progress import stage_progress
from audit.runtime.seeds import stage_generator

CODE = (__name__,)
"""What distances depend on: this module and all that it imports."""


def enter_minimal(task: Task, measured: Attacked, attack: ChosenAttack, norm: Norm, chosen: AuditSet) -> None:
    """Run an attack that looks for the nearest adversarial images: their distances, and the accuracy at every radius.

    A distance is that of an image that fools, so that both are bounds, as those of any attack are.
    """
    largest = 1.0 if norm == "Linf" else math.sqrt(math.prod(chosen.image_shape))
    found, tally = torch.empty(len(chosen)), Tally.of(len(chosen))

    def reached(batch: Batch) -> tuple[Tensor, Tensor, Tensor, bool]:
        """Return distances, which images were never seen, answers, and whether any gradient was taken."""
        met = sparing(task.classifier, partial(task.cascade, batch, attack.name, norm, largest))
        far = torch.where(met.standing, torch.inf, distance(met.images, batch.images, norm))
        answers = answers_to(task.classifier, met, batch.labels)
        return far.cpu(), met.sight.blind.cpu(), answers.cpu(), bool(met.sight.taken.any())

    with stage_progress(f"{attack.name} on {name_of(task.classifier)}", len(chosen)) as advance:
        for batch, rows in task.batches(chosen):
            found[rows], tally.blind[rows], tally.answers[rows], seen = task.kept(
                attack.name,
                partial(reached, batch),
                chosen.select(rows),
                CODE,
                norm=norm,
                largest=largest,
                first=batch.first,
            )
            tally.seen |= seen
            advance(len(rows))
    place, smaller = task.outcomes.index(attack.name), 0.0
    for radius in sorted(radii_of(task.config).get(norm, ()), key=eps_value):
        ball = Ball(attack.name, norm, radius)
        stands = found > ball.eps
        fell = torch.where(found <= smaller, SMALLER, torch.where(stands, -1, place))
        fell[found == 0] = BEFORE
        answers = torch.where(stands, chosen.row_labels, tally.answers)
        enter(task, measured, ball, Tally(stands, tally.blind & stands, fell, answers, seen=tally.seen), chosen)
        smaller = ball.eps
    row = _distance_row(chosen, found, norm, largest, attack.name)
    measured.robust.distances.append(row)
    if takes_gradients(task, attack.name, tally.seen):
        measured.accounts[row.path] = _distance_account(
            attack.name, f"{attack.name} in {_said(norm)}", found, tally.blind
        )


def searched_distances(task: Task, chosen: AuditSet, norm: Norm) -> tuple[MinimalDistance, Account, list[Fooled]]:
    """Search the nearest adversarial images; returns their distances, what the search saw, and the most fragile."""
    classifier, settings = task.classifier, task.config.distance
    assert settings is not None
    rows = chosen.select(range(min(settings.n, len(chosen))))
    found, blind = torch.empty(len(rows)), torch.zeros(len(rows), dtype=torch.bool)
    fragile: list[Fooled] = []
    with stage_progress(f"minimal distances of {name_of(classifier)}", len(rows)) as advance:
        for at, near in distances_by_batch(task, rows, norm):
            found[at], blind[at], few = near
            fragile = most_fragile([*fragile, *few])
            advance(len(at))
    where = f"The search for minimal distances in {_said(norm)}"
    row = _distance_row(rows, found, norm, _largest(settings, norm))
    return row, _distance_account("distance", where, found, blind), task.still_fooled(fragile, rows)


def _largest(settings: DistanceConfig, norm: Norm) -> float:
    return eps_value(settings.largest_linf) if norm == "Linf" else settings.largest_l2


_Near = tuple[Tensor, Tensor, list[Fooled]]
"""Distances of a batch, which of its images were never seen, and those that the smallest perturbations fool."""


def distances_by_batch(task: Task, chosen: AuditSet, norm: Norm) -> Iterator[tuple[Tensor, _Near]]:
    """Yield the places of every batch of the images searched, the first of those `chosen`, with what was found."""
    classifier, config, device = task.classifier, task.config, device_of(task.classifier)
    settings = config.distance
    assert settings is not None
    rows = chosen.select(range(min(settings.n, len(chosen))))
    labels, largest, bisections, steps = rows.row_labels, _largest(settings, norm), settings.bisections, config.steps

    def measure(at: Tensor) -> _Near:
        images, sight = rows.images(at), Sight.of(len(at), device)
        distances, nearest = minimal_distances(
            classifier,
            images.to(device),
            labels[at].to(device),
            norm=norm,
            largest=largest,
            bisections=bisections,
            steps=steps,
            generator=stage_generator(task.seed, f"robustness/distance/{norm}/{int(at[0])}"),
            sight=sight,
        )
        far = distances.cpu()
        return far, sight.blind.cpu(), _reached(images, nearest.cpu(), far, at, f"robust.distances.{norm}")

    for at in rows.places(config.batch_size):
        work = partial(sparing, classifier, partial(measure, at))
        near = task.stages.kept(
            "minimal distances", work, CODE, images=rows.select(at).content, norm=norm, largest=largest,
            bisections=bisections, steps=steps, seed=task.seed, first=int(at[0]),
        )  # fmt: skip
        yield at, near


def _said(norm: Norm) -> str:
    return "L-inf" if norm == "Linf" else norm


def _distance_row(
    rows: AuditSet, found: Tensor, norm: Norm, largest: float, attack: str | None = None
) -> MinimalDistance:
    known = zip(rows.row_ids, found.tolist(), strict=True)
    return MinimalDistance(
        norm=norm,
        median=median_distance(found, largest),
        largest=largest,
        attack=attack,
        n=len(rows),
        standing=int((found == torch.inf).sum()),
        distances_by_image={row_id: value if value < torch.inf else None for row_id, value in known},
    )


def _distance_account(kind: str, where: str, found: Tensor, blind: Tensor) -> Account:
    # A distance that a random start happened on is over-stated as well: no nearer image was looked for.
    return Account(kind, where, int((blind & (found > 0)).sum()), int((found > 0).sum()))


def _reached(images: Tensor, nearest: Tensor, distances: Tensor, rows: Tensor, metric: str) -> list[Fooled]:
    """Return the images of a batch that the smallest perturbations fool, with these and their sizes."""
    order = [i for i in distances.argsort(stable=True).tolist() if 0 < distances[i] < torch.inf][:EXAMPLES]
    return [
        Fooled(int(rows[i]), images[i].clone(), nearest[i].clone(), metric, distance=float(distances[i])) for i in order
    ]
