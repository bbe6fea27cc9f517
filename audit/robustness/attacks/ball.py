"""The ball that an attack may not leave: norms, random points, projection and steepest ascent in L-inf and L2.

Every attack takes its steps with these, in float32, and its result is measured against the ball before it is returned.
A radius or step size is one number for the batch, or a tensor `[N]` with one for each image.
"""

import torch
from torch import Tensor

from audit.errors import MetricError
from audit.results import Norm

TOLERANCE = 1e-5
"""How far rounding in float32 may carry an adversarial image out of the ball before the attack is called broken."""


def per_image(values: Tensor, like: Tensor) -> Tensor:
    """Return `values` `[N]` in the shape `[N, 1, ...]` that broadcasts over `like` `[N, ...]`."""
    return values.reshape(-1, *[1] * (like.ndim - 1))


def random_offset(shape: torch.Size, eps: float, norm: Norm, generator: torch.Generator) -> Tensor:
    """Draw offsets of `shape` uniformly from the ball of radius `eps`, on the generator's device."""
    device = generator.device
    if norm == "Linf":
        return (torch.rand(shape, generator=generator, device=device) * 2 - 1) * eps
    direction = torch.randn(shape, generator=generator, device=device)
    direction /= per_image(direction.flatten(1).norm(dim=1).clamp_min(1e-12), direction)
    # The radius of a uniform point of a d-ball is distributed as u^(1/d).
    radius = torch.rand(shape[0], generator=generator, device=device) ** (1 / direction[0].numel())
    return direction * per_image(radius, direction) * eps


def project(candidate: Tensor, images: Tensor, eps: float | Tensor, norm: Norm) -> Tensor:
    """Return the point of the `eps`-ball around `images`, cut with [0, 1], that belongs to `candidate`.

    Clamping to [0, 1] after the projection moves a pixel towards `images` only, so the ball is not left again.
    """
    offset = candidate - images
    if norm == "Linf":
        if isinstance(eps, Tensor):
            eps = per_image(eps, offset)
            offset = offset.clamp(-eps, eps)
        else:
            offset = offset.clamp(-eps, eps)
    else:
        length = offset.flatten(1).norm(dim=1).clamp_min(1e-12)
        offset = offset * per_image((eps / length).clamp_max(1), offset)
    return (images + offset).clamp(0, 1)


def ascent(gradient: Tensor, step_size: float | Tensor, norm: Norm) -> Tensor:
    """Return the steepest-ascent step of length `step_size` in `norm`; zero where the gradient is zero."""
    if norm == "Linf":
        return (per_image(step_size, gradient) if isinstance(step_size, Tensor) else step_size) * gradient.sign()
    length = gradient.flatten(1).norm(dim=1)
    scale = torch.where(length > 0, step_size / length.clamp_min(1e-30), 0)
    return gradient * per_image(scale, gradient)


def distance(adversarial: Tensor, images: Tensor, norm: Norm) -> Tensor:
    """Return the distance `[N]` between two batches of images in `norm`, in pixel units."""
    offset = (adversarial - images).flatten(1)
    return offset.abs().amax(dim=1) if norm == "Linf" else offset.norm(dim=1)


def assert_in_ball(adversarial: Tensor, images: Tensor, eps: float, norm: Norm, attack: str) -> None:
    """Raise MetricError naming `attack` unless every image is finite, in [0, 1] and within `eps` of its original."""
    radius = distance(adversarial, images, norm)
    # A not-a-number fails both comparisons, so it is caught here as well.
    if not (radius <= eps + TOLERANCE).all() or not ((adversarial >= 0) & (adversarial <= 1)).all():
        raise MetricError(
            f"{attack} produced an image {float(radius.max()):.6g} from its original where eps is {eps:.6g}, or "
            "outside [0, 1]: the attack is not to be trusted."
        )
