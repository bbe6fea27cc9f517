"""Projected gradient descent in an L-inf or L2 ball around an image (Madry et al. 2018, eq. 2.1 and section 2.1).

Optionally with momentum (MI-FGSM: Dong et al. 2018, eqs. 6 and 7, from the random start of PGD).

Three things make it stronger and cheaper than the plain loop at the same number of steps: the best iterate is kept
rather than the last, a sample that is fooled leaves the batch at once, and a clean mistake counts without an attack.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from audit.errors import MetricError
from audit.robustness.attacks.ball import Norm, ascent, per_image, project, random_offset
from audit.robustness.attacks.losses import cross_entropy
from audit.robustness.attacks.sight import Sight
from audit.robustness.attacks.target import Target


@dataclass(frozen=True)
class _Climb:
    """How one run climbs: radius and step size in pixel units, number of steps, decay of the gradient's memory."""

    eps: float
    steps: int
    step_size: float
    momentum: float


def _accumulated(velocity: Tensor, gradient: Tensor, momentum: float) -> Tensor:
    """Return `momentum * velocity` plus the gradient over its own L1 norm, image by image; a zero one adds nothing."""
    length = gradient.flatten(1).abs().sum(dim=1)
    scale = torch.where(length > 0, 1 / length.clamp_min(1e-30), 0)
    return momentum * velocity + gradient * per_image(scale, gradient)


def _one_restart(target: Target, rows: Tensor, start: Tensor, climb: _Climb) -> tuple[Tensor, Tensor, Tensor]:
    """Run PGD once on the images `rows` `[n]` from `start`.

    Returns the best iterate, its loss `[n]` and whether it fools the classifier `[n]`.
    """
    images, labels = target.images[rows], target.labels[rows]
    best, best_loss = start.clone(), torch.full((len(images),), -torch.inf, device=images.device)
    fooled = torch.zeros(len(images), dtype=torch.bool, device=images.device)
    active = torch.arange(len(images), device=images.device)
    current, velocity = start, torch.zeros_like(start)
    for iteration in range(climb.steps + 1):
        last = iteration == climb.steps
        with torch.set_grad_enabled(not last):
            current = current.detach().requires_grad_(not last)
            logits = target.logits(current)
            losses = cross_entropy(logits, labels[active])
        wrong = target.wrong(logits, current, labels[active])
        better = wrong | (losses.detach() > best_loss[active])
        best[active[better]] = current.detach()[better]
        best_loss[active[better]] = losses.detach()[better]
        fooled[active[wrong]] = True
        if last or bool(wrong.all()):
            break
        kept = ~wrong
        active = active[kept]
        direction = target.gradient(losses, current)[kept]
        target.note(rows[active], direction)
        if climb.momentum > 0:
            direction = velocity = _accumulated(velocity[kept], direction, climb.momentum)
        moved = current.detach()[kept] + ascent(direction, climb.step_size, target.norm)
        current = project(moved, images[active], climb.eps, target.norm)
    return best, best_loss, fooled


def pgd_attack(
    classifier: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    eps: float,
    steps: int,
    generator: torch.Generator,
    step_size: float | None = None,
    restarts: int = 1,
    norm: Norm = "Linf",
    momentum: float = 0.0,
    active: Tensor | None = None,
    sight: Sight | None = None,
) -> Tensor:
    """Return adversarial images `[N, C, H, W]` in [0, 1] within `eps` (pixel units) of `images`.

    `labels` are int64 `[N]`; `step_size` is in pixel units, default `2.5 * eps / steps`; `momentum` is the decay of the
    accumulated gradient (0: the plain gradient). Per image the iterate kept is the first that fools the classifier (the
    image itself if it is misclassified already), else the one of highest cross-entropy over all `restarts`. Random
    starts come from `generator` alone and are drawn for the whole batch, so that two models attacked with equal
    generators are attacked from equal points; how far the generator has run afterwards depends on the model, so give
    each batch one of its own. Images outside the mask `active` `[N]` (default: all) come back as they are; `sight`
    takes the account of the gradients. The classifier keeps its mode.
    Raises MetricError on images outside [0, 1], labels out of range or eps outside (0, 1] for L-inf (> 0 for L2), and
    ClassifierError on logits or gradients that are not finite.
    """
    target = Target("PGD", classifier, images, labels, norm, sight)
    target.check_eps(eps)
    if steps < 1 or restarts < 1:
        raise MetricError(f"PGD needs at least 1 step and 1 restart; given: steps {steps}, restarts {restarts}.")
    if not 0 <= momentum < math.inf:
        raise MetricError(f"The momentum of PGD is {momentum} where 0 (none) or above is expected, for instance 1.0.")
    climb = _Climb(eps, steps, 2.5 * eps / steps if step_size is None else step_size, momentum)
    images = target.images
    with target.attacked() as logits:
        result, result_loss = images.clone(), torch.full((len(images),), -torch.inf, device=images.device)
        robust = logits.argmax(dim=1) == target.labels
        if active is not None:
            robust &= active
        for _ in range(restarts):
            left = robust.nonzero().flatten()
            if len(left) == 0:
                break
            offset = random_offset(images.shape, eps, norm, generator).to(images)
            start = project(images[left] + offset[left], images[left], eps, norm)
            best, loss, fooled = _one_restart(target, left, start, climb)
            better = fooled | (loss > result_loss[left])
            result[left[better]], result_loss[left[better]] = best[better], loss[better]
            robust[left[fooled]] = False
    return target.within(result, eps)
