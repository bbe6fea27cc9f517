"""Projected gradient descent in an L-inf or L2 ball around an image (Madry et al. 2018, eq. 2.1 and section 2.1).

Three things make it stronger and cheaper than the plain loop at the same number of steps: the best iterate is kept
rather than the last, a sample that is fooled leaves the batch at once, and a clean mistake counts without an attack.
"""

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from audit.classifiers.mode import preserve_mode
from audit.errors import ClassifierError, MetricError
from audit.metrics.embedding import check_images

Norm = Literal["Linf", "L2"]
TOLERANCE = 1e-5
"""How far rounding in float32 may carry an adversarial image out of the ball before the attack is called broken."""


def checked_logits(classifier: nn.Module, images: Tensor) -> Tensor:
    """Return the classifier's logits `[N, K]`; raises ClassifierError if any is not finite."""
    logits = classifier(images)
    if not torch.isfinite(logits).all():
        name = getattr(classifier, "name", type(classifier).__name__)
        raise ClassifierError(f"Classifier '{name}' returns NaN or infinite logits: check its weights and mean/std.")
    return logits


def check_labels(labels: Tensor, n: int, num_classes: int) -> None:
    """Raise MetricError unless `labels` are `n` integers in [0, num_classes)."""
    if labels.shape != (n,):
        raise MetricError(f"Labels have shape {tuple(labels.shape)} where one per image, ({n},), is expected.")
    if n and (int(labels.min()) < 0 or int(labels.max()) >= num_classes):
        raise MetricError(
            f"Labels run from {int(labels.min())} to {int(labels.max())} but the classifier has {num_classes} classes, "
            f"0 to {num_classes - 1}: check the order of data.classes."
        )


def _per_image(values: Tensor, like: Tensor) -> Tensor:
    return values.reshape(-1, *[1] * (like.ndim - 1))


def random_offset(shape: torch.Size, eps: float, norm: Norm, generator: torch.Generator) -> Tensor:
    """Draw offsets of `shape` uniformly from the ball of radius `eps`, on the generator's device."""
    device = generator.device
    if norm == "Linf":
        return (torch.rand(shape, generator=generator, device=device) * 2 - 1) * eps
    direction = torch.randn(shape, generator=generator, device=device)
    direction /= _per_image(direction.flatten(1).norm(dim=1).clamp_min(1e-12), direction)
    # The radius of a uniform point of a d-ball is distributed as u^(1/d).
    radius = torch.rand(shape[0], generator=generator, device=device) ** (1 / direction[0].numel())
    return direction * _per_image(radius, direction) * eps


def project(candidate: Tensor, images: Tensor, eps: float, norm: Norm) -> Tensor:
    """Return the point of the `eps`-ball around `images`, cut with [0, 1], that belongs to `candidate`.

    Clamping to [0, 1] after the projection moves a pixel towards `images` only, so the ball is not left again.
    """
    offset = candidate - images
    if norm == "Linf":
        offset = offset.clamp(-eps, eps)
    else:
        length = offset.flatten(1).norm(dim=1).clamp_min(1e-12)
        offset = offset * _per_image((eps / length).clamp_max(1), offset)
    return (images + offset).clamp(0, 1)


def ascent(gradient: Tensor, step_size: float, norm: Norm) -> Tensor:
    """Return the steepest-ascent step of length `step_size` in `norm`; zero where the gradient is zero."""
    if norm == "Linf":
        return step_size * gradient.sign()
    length = gradient.flatten(1).norm(dim=1)
    scale = torch.where(length > 0, step_size / length.clamp_min(1e-30), 0)
    return gradient * _per_image(scale, gradient)


def _assert_in_ball(adversarial: Tensor, images: Tensor, eps: float, norm: Norm) -> None:
    offset = (adversarial - images).flatten(1)
    radius = offset.abs().amax(dim=1) if norm == "Linf" else offset.norm(dim=1)
    if not (radius <= eps + TOLERANCE).all() or not ((adversarial >= 0) & (adversarial <= 1)).all():
        raise MetricError(
            f"PGD produced an image {float(radius.max()):.6g} from its original where eps is {eps:.6g}, or outside "
            "[0, 1]: the attack is not to be trusted."
        )


def _one_restart(
    classifier: nn.Module,
    images: Tensor,
    labels: Tensor,
    start: Tensor,
    eps: float,
    steps: int,
    step: float,
    norm: Norm,
) -> tuple[Tensor, Tensor, Tensor]:
    """Run PGD once from `start`; returns the best iterate, its loss `[N]` and whether it fools the classifier `[N]`."""
    best, best_loss = start.clone(), torch.full((len(images),), -torch.inf, device=images.device)
    fooled = torch.zeros(len(images), dtype=torch.bool, device=images.device)
    active = torch.arange(len(images), device=images.device)
    current = start
    for iteration in range(steps + 1):
        last = iteration == steps
        with torch.set_grad_enabled(not last):
            current = current.detach().requires_grad_(not last)
            logits = checked_logits(classifier, current)
            losses = functional.cross_entropy(logits, labels[active], reduction="none")
        wrong = logits.argmax(dim=1) != labels[active]
        better = wrong | (losses.detach() > best_loss[active])
        best[active[better]] = current.detach()[better]
        best_loss[active[better]] = losses.detach()[better]
        fooled[active[wrong]] = True
        if last or bool(wrong.all()):
            break
        (gradient,) = torch.autograd.grad(losses.sum(), current)
        kept = ~wrong
        active = active[kept]
        moved = current.detach()[kept] + ascent(gradient[kept], step, norm)
        current = project(moved, images[active], eps, norm)
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
) -> Tensor:
    """Return adversarial images `[N, C, H, W]` in [0, 1] within `eps` (pixel units) of `images`.

    `labels` are int64 `[N]`; `step_size` is in pixel units, default `2.5 * eps / steps`. Per image the iterate kept is
    the first that fools the classifier (the image itself if it is misclassified already), else the one of highest
    cross-entropy over all `restarts`. Random starts come from `generator` alone and are drawn for the whole batch, so
    that two models attacked with equal generators are attacked from equal points; how far the generator has run
    afterwards depends on the model, so give each batch one of its own. The classifier keeps its mode.
    Raises MetricError on images outside [0, 1], labels out of range or eps outside (0, 1] for L-inf (> 0 for L2), and
    ClassifierError on logits that are not finite.
    """
    check_images(images, "images given to PGD")
    if not eps > 0 or (norm == "Linf" and eps > 1):
        raise MetricError(f"eps is {eps:.6g} where a radius in pixel units in (0, 1] is expected, for instance 8/255.")
    if steps < 1 or restarts < 1:
        raise MetricError(f"PGD needs at least 1 step and 1 restart; given: steps {steps}, restarts {restarts}.")
    step = 2.5 * eps / steps if step_size is None else step_size
    images, labels = images.detach(), labels.to(images.device)
    if len(images) == 0:
        return images.clone()
    with preserve_mode(classifier):
        with torch.no_grad():
            logits = checked_logits(classifier, images)
        check_labels(labels, len(images), logits.shape[1])
        result, result_loss = images.clone(), torch.full((len(images),), -torch.inf, device=images.device)
        robust = logits.argmax(dim=1) == labels
        for _ in range(restarts):
            left = robust.nonzero().flatten()
            if len(left) == 0:
                break
            offset = random_offset(images.shape, eps, norm, generator).to(images)
            start = project(images[left] + offset[left], images[left], eps, norm)
            best, loss, fooled = _one_restart(classifier, images[left], labels[left], start, eps, steps, step, norm)
            better = fooled | (loss > result_loss[left])
            result[left[better]], result_loss[left[better]] = best[better], loss[better]
            robust[left[fooled]] = False
    _assert_in_ball(result, images, eps, norm)
    return result
