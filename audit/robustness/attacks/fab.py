"""FAB-T: the targeted Fast Adaptive Boundary attack, which looks for the nearest adversarial image (Croce & Hein 2020).

arXiv 1907.02044, algorithm 1, against one wrong class at a time as in section 4 of arXiv 2003.01690. A step linearises
the boundary z_t = z_y at the iterate, projects iterate and original onto it inside the box (fab_projection.py), and
moves beyond it along a mixture of both that is drawn to the original.

One forward and one backward pass a step: the pass that tells whether an iterate fools is the one it is linearised with.
Where it fools, the paper takes a step back towards the original and linearises there, at a second forward pass; here
the plane found at the fooling iterate is kept for the point stepped back to, which is only 10 % nearer.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from audit.errors import MetricError
from audit.robustness.attacks.ball import Norm, distance, per_image, random_offset
from audit.robustness.attacks.checks import checked_logits
from audit.robustness.attacks.fab_projection import shortest_step
from audit.robustness.attacks.losses import margin, targeted_margin
from audit.robustness.attacks.sight import Sight
from audit.robustness.attacks.target import Target

LARGEST_MIX = 0.1
"""alpha_max: the largest share that the projection of the original has in a step."""
OVERSHOOT = 1.05
"""eta: how far a step goes, the distance to the linearised boundary being 1."""
STEP_BACK = 0.9
"""beta: the share of its offset that an iterate keeps when it fools."""
LINE_STEPS = 3
"""Forward passes of the final search on the line to the original."""
BEYOND = 0.02
"""Share of the margin at the interval's adversarial end at which the final search aims."""
START_RADIUS = {"Linf": 0.1, "L2": 1.0}
"""Restarts begin within half of this radius while no adversarial image and no eps says better."""


@dataclass(frozen=True)
class _Effort:
    """How long is searched: steps for each of the likeliest wrong classes, restarts, and how far.

    Restarts begin within half of `radius`; an adversarial image within `enough` of its original is not improved.
    """

    steps: int
    restarts: int
    target_classes: int
    radius: float
    enough: float

    def __post_init__(self) -> None:
        """Raise MetricError on a count below 1."""
        if self.steps < 1 or self.restarts < 1 or self.target_classes < 1:
            raise MetricError(
                "FAB needs at least 1 step, 1 restart and 1 target class; "
                f"given: steps {self.steps}, restarts {self.restarts}, target classes {self.target_classes}."
            )


@dataclass
class _Nearest:
    """The nearest adversarial image of each image and its distance, inf where there is none."""

    images: Tensor
    distance: Tensor

    def update(self, rows: Tensor, candidates: Tensor, originals: Tensor, fooling: Tensor, norm: Norm) -> None:
        reached = torch.where(fooling, distance(candidates, originals, norm), torch.inf)
        nearer = reached < self.distance[rows]
        self.images[rows[nearer]] = candidates[nearer]
        self.distance[rows[nearer]] = reached[nearer]


def _boundary_step(
    current: Tensor, originals: Tensor, gradient: Tensor, difference: Tensor, fooling: Tensor, norm: Norm
) -> Tensor:
    """Return the next iterate from `current` `[n, C, H, W]`, where z_t - z_y is `difference` with slope `gradient`."""
    offset = (current - originals).flatten(1)
    kept = torch.where(fooling, STEP_BACK, 1.0).to(offset)
    base, normals = originals.flatten(1), gradient.flatten(1)
    points = torch.stack([base + kept[:, None] * offset, base])
    # What z_t - z_y still lacks at both points, by the linear model around `current`.
    fall = (normals * offset).sum(dim=1)
    gap = torch.stack([(1 - kept) * fall, fall]) - difference
    step = shortest_step(points, normals, gap, norm)
    near, far = step.abs().amax(dim=2) if norm == "Linf" else step.norm(dim=2)
    mix = (near / (near + far).clamp_min(1e-12)).clamp_max(LARGEST_MIX)
    moved = points.add_(step, alpha=OVERSHOOT)
    return torch.lerp(moved[0], moved[1], mix[:, None]).clamp_(0, 1).view_as(current)


def _run(target: Target, rows: Tensor, classes: Tensor, start: Tensor, nearest: _Nearest, effort: _Effort) -> None:
    """Attack the images `rows` of the batch towards `classes` `[N]` from `start` `[N, C, H, W]`."""
    images, labels, current = target.images, target.labels, start[rows]
    for step in range(effort.steps + 1):
        last = step == effort.steps
        with torch.set_grad_enabled(not last):
            current = current.detach().requires_grad_(not last)
            logits = target.logits(current)
            difference = targeted_margin(logits, labels[rows], classes[rows])
        fooling = margin(logits.detach(), labels[rows]) > 0
        nearest.update(rows, current.detach(), images[rows], fooling, target.norm)
        kept = nearest.distance[rows] > effort.enough
        if last or not bool(kept.any()):
            return
        gradient = target.gradient(difference, current)
        target.note(rows, gradient)
        moved = _boundary_step(current.detach(), images[rows], gradient, difference.detach(), fooling, target.norm)
        rows, current = (rows, moved) if bool(kept.all()) else (rows[kept], moved[kept])


def nearest_on_line(
    classifier: nn.Module, images: Tensor, labels: Tensor, adversarial: Tensor, steps: int = LINE_STEPS
) -> Tensor:
    """Return adversarial images `[N, C, H, W]` not farther from `images` than `adversarial`, on the line between.

    The final search of the paper: the boundary is where the margin, taken as linear between the ends of an interval,
    is zero; `steps` forward passes narrow that interval, besides one at each of the first ends. An image whose
    `adversarial` does not fool is returned as `adversarial`. Mode and gradients are the caller's to settle.
    """
    low, high = torch.zeros(len(images)).to(images), torch.ones(len(images)).to(images)
    low_margin = margin(checked_logits(classifier, images), labels)
    high_margin = margin(checked_logits(classifier, adversarial), labels)
    fooled = (high_margin > 0) & (low_margin <= 0)
    for _ in range(steps):
        # A little beyond zero: on the boundary itself the rounding of another batch could undo what was found.
        share = ((BEYOND * high_margin - low_margin) / (high_margin - low_margin).clamp_min(1e-12)).clamp(0.05, 0.95)
        middle = low + (high - low) * share
        found = margin(checked_logits(classifier, torch.lerp(images, adversarial, per_image(middle, images))), labels)
        fools = found > 0
        low, low_margin = torch.where(fools, low, middle), torch.where(fools, low_margin, found)
        high, high_margin = torch.where(fools, middle, high), torch.where(fools, found, high_margin)
    moved = torch.lerp(images, adversarial, per_image(high, images))
    return torch.where(per_image(fooled & (high < 1), images), moved, adversarial)


def _search(target: Target, effort: _Effort, generator: torch.Generator) -> _Nearest:
    """Find the nearest adversarial images."""
    images, labels, norm = target.images, target.labels, target.norm
    with target.attacked() as logits:
        nearest = _Nearest(images.clone(), torch.full((len(images),), torch.inf, device=images.device))
        nearest.distance[logits.argmax(dim=1) != labels] = 0
        # The label is sorted to the end, where no target is taken from.
        order = logits.float().scatter(1, labels[:, None], -torch.inf).argsort(dim=1, descending=True)

        def standing() -> Tensor:
            return (nearest.distance > effort.enough).nonzero().flatten()

        for restart in range(effort.restarts):
            for rank in range(min(effort.target_classes, logits.shape[1] - 1)):
                if len(rows := standing()) == 0:
                    return nearest
                start = images
                if restart > 0:
                    unit = random_offset(images.shape, 0.5, norm, generator).to(images)
                    within = per_image(nearest.distance.clamp_max(effort.radius), images)
                    start = (images + unit * within).clamp(0, 1)
                _run(target, rows, order[:, rank], start, nearest, effort)
        rows = standing()
        rows = rows[torch.isfinite(nearest.distance[rows])]
        if len(rows) > 0:
            with torch.no_grad():
                moved = nearest_on_line(target.classifier, images[rows], labels[rows], nearest.images[rows])
            nearest.update(rows, moved, images[rows], torch.ones_like(rows, dtype=torch.bool), norm)
        return nearest


def fab_minimal(
    classifier: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    generator: torch.Generator,
    norm: Norm = "Linf",
    steps: int = 100,
    restarts: int = 1,
    target_classes: int = 9,
    sight: Sight | None = None,
) -> tuple[Tensor, Tensor]:
    """Return the nearest adversarial images `[N, C, H, W]` found in [0, 1] and their distances `[N]` in pixel units.

    Distance 0: the image is misclassified as it is; inf: nothing was found, and the image itself is returned. `steps`
    are those of each of the at most `target_classes` likeliest wrong classes (K - 1 if fewer). Restarts draw from
    `generator`, `sight` takes the account of the gradients. The classifier keeps its mode. Raises MetricError on
    images, labels or numbers out of range, and ClassifierError on logits or gradients that are not finite.
    """
    target = Target("FAB", classifier, images, labels, norm, sight)
    effort = _Effort(steps, restarts, target_classes, radius=START_RADIUS[norm], enough=0.0)
    nearest = _search(target, effort, generator)
    return nearest.images, nearest.distance


def fab_attack(
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
    sight: Sight | None = None,
) -> Tensor:
    """Return adversarial images `[N, C, H, W]` within `eps` (pixel units), the image itself where none was found.

    An image leaves the batch as soon as an adversarial one is found within `eps`. Otherwise as `fab_minimal`.
    """
    target = Target("FAB", classifier, images, labels, norm, sight)
    target.check_eps(eps)
    nearest = _search(target, _Effort(steps, restarts, target_classes, radius=eps, enough=eps), generator)
    found = per_image(nearest.distance <= eps, target.images)
    return target.within(torch.where(found, nearest.images, target.images), eps)
