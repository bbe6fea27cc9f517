"""Adversarial local distribution regularisation by Stein particles (the thesis on adversarial regularisation, ch. 5).

The attacked images of x are distributed as `P(x') ~ exp(loss(x'))` in the ball (eq. 5.4). N particles are moved towards
it by Stein variational gradient descent with an RBF kernel (eq. 5.6 and 5.7, algorithm 5.1):
`phi(x_i) = 1/N sum_j [K(x_j, x_i) grad loss(x_j) - K(x_j, x_i) (x_j - x_i) / sigma^2]`.

Limits: as sigma grows, every particle takes the average gradient (eq. 5.8); as sigma goes to 0 each takes its own,
divided by N (eq. 5.10). A step takes only the direction (sign for L-inf, unit length for L2), which 1/N does not
change: these are N independent PGD runs.

What to expect: the loss differs by a few nats over the ball while a ball of many pixels has room for everything, so
P is broad, and with a kernel wide enough to be felt the repulsion outweighs the gradient of a smooth network. The
particles then differ more and attack less than independent runs do. A `bandwidth` given as a number below their
distances mixes the two.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from audit.classifiers.mode import preserve_mode
from audit.training.classifier.objectives.adversarial import (
    InnerProblem,
    ascend,
    batch_divergence,
    divergence_loss,
    label_loss,
    near_start,
    uniform_start,
)

Base = Literal["pgd", "trades"]
Bandwidth = Literal["median", "literal"] | float


def kernel_variance(squared_distances: Tensor, bandwidth: Bandwidth) -> Tensor:
    """Return sigma^2 `[B, 1, 1]` for squared distances `[B, N, N]` between the N particles of every image.

    "median" (Liu & Wang 2016, section 5): `2 sigma^2 = median over pairs / log(N + 1)`, so that the N kernel values of
    a particle sum to about 1 beyond its own. "literal" is the printed `sigma = 10^(1 - N)`. For N >= 4 it is of no use
    in float32, where `exp` returns exactly 0 below -104: two images that differ in a single pixel by 4/255 have
    `d^2 / (2 sigma^2) = 123` at N = 4, and two starts of TRADES, noise of 0.001, are expected to have the number of
    pixels. Every value off the diagonal is 0, and the particles do not know of each other. A number is sigma itself,
    Euclidean over all pixels.
    """
    batch, n, _ = squared_distances.shape
    # Below the smallest normal number 0 / 0 would follow; the kernel of coinciding particles stays 1 this way.
    floor = torch.finfo(squared_distances.dtype).tiny
    if bandwidth == "median":
        if n == 1:
            return squared_distances.new_ones(batch, 1, 1)
        rows, columns = torch.triu_indices(n, n, offset=1, device=squared_distances.device)
        median = squared_distances[:, rows, columns].median(dim=1).values
        return (median / (2 * math.log(n + 1))).clamp_min(floor)[:, None, None]
    sigma = 10.0 ** (1 - n) if bandwidth == "literal" else float(bandwidth)
    return squared_distances.new_full((batch, 1, 1), max(sigma**2, floor))


def stein_direction(gradients: Tensor, points: Tensor, bandwidth: Bandwidth) -> Tensor:
    """Return phi `[B, N, D]` of eq. 5.7 for the loss's gradients and the particles' points, both `[B, N, D]`.

    Only differences of points matter: give offsets from the image, which float32 resolves better than pixels. Without
    autocast, in float32 at least: 16 bits have no room for the distances.
    """
    dtype = torch.promote_types(points.dtype, torch.float32)
    with torch.autocast(points.device.type, enabled=False):
        gradients, points = gradients.to(dtype), points.to(dtype)
        # The matrix-product form of the distance would cancel: particles lie much closer together than to the origin.
        distances = torch.cdist(points, points, compute_mode="donot_use_mm_for_euclid_dist")
        squared = distances**2
        variance = kernel_variance(squared, bandwidth)
        kernel = torch.exp(-squared / (2 * variance))
        total = kernel @ gradients
        # Differences, and not the difference of two matrix products: it would cancel for particles that nearly meet.
        # The kernel is divided first: where it underflows the product must be 0, and not 0 * inf.
        repulsion = kernel / variance
        for other in range(points.shape[1]):
            total += repulsion[:, :, other, None] * (points - points[:, other, None])
        return total / points.shape[1]


def adversarial_particles(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    particles: int,
    problem: InnerProblem,
    base: Base,
    bandwidth: Bandwidth,
    generator: torch.Generator,
    progress: float = 1.0,
) -> Tensor:
    """Return the particles `[P, B, C, H, W]` of every image after the steps of algorithm 5.1; detached, in the ball.

    All particles of the batch go through the model at once. They start where the base attack does - uniform in the ball
    for "pgd", little normal noise for "trades" - so that one particle is that attack exactly.
    """
    eps, step_size = problem.reach(progress)
    batch = len(images)
    repeated = images.repeat(particles, 1, 1, 1)

    def by_image(flat: Tensor) -> Tensor:
        return flat.reshape(particles, batch, -1).transpose(0, 1)

    def direction(gradient: Tensor, current: Tensor) -> Tensor:
        phi = stein_direction(by_image(gradient), by_image(current - repeated), bandwidth)
        return phi.transpose(0, 1).reshape(gradient.shape).to(gradient)

    with preserve_mode(model):
        if base == "pgd":
            start = uniform_start(repeated, eps, problem.norm, generator)
            loss = label_loss(labels.repeat(particles))
        else:
            with torch.no_grad():
                clean = functional.softmax(model(images), dim=1)
            start = near_start(repeated, generator)
            loss = divergence_loss(clean.repeat(particles, 1))
        moved = ascend(
            model, start, repeated, loss,
            eps=eps, steps=problem.steps, step_size=step_size, norm=problem.norm, direction=direction,
        )  # fmt: skip
    return moved.reshape(particles, *images.shape)


@dataclass(frozen=True, kw_only=True)
class AdversarialLocalDistribution(InnerProblem):
    """ALD: `clean_weight * CE(f(x), y) + weight * R` (eq. 5.15), R estimated by the mean loss over the particles.

    R of eq. 5.5 is the negative entropy `E[log P] = E[loss] - log Z`. Its gradient is the covariance of the loss and
    its gradient under P, which one particle estimates as 0: with log Z kept, eq. 5.15 could not reduce to PGD or TRADES
    for N = 1, as section 5.4 says it does. The mean loss E[loss] is the estimate with which it does, so it is taken.

    With one particle and base "trades" (loss `KL(f(x) || f(x'))`; eq. 5.3 prints the arguments the other way round than
    TRADES, which it refers to) the objective is TRADES with beta = `weight`. With base "pgd" it is the sum of clean
    and attacked cross-entropy; PGD-AT, which has no clean term, is `clean_weight = 0` and `weight = 1`.
    """

    base: Base = "trades"
    particles: int = 4
    bandwidth: Bandwidth = "median"
    weight: float = 6.0
    clean_weight: float = 1.0

    def __call__(
        self, model: nn.Module, images: Tensor, labels: Tensor, generator: torch.Generator, progress: float = 1.0
    ) -> Tensor:
        attacked = adversarial_particles(
            model, images, labels,
            particles=self.particles, problem=self, base=self.base, bandwidth=self.bandwidth, generator=generator,
            progress=progress,
        ).flatten(0, 1)  # fmt: skip
        if self.base == "pgd":
            clean = self.clean_weight * self.clean_loss.of_logits(model(images), labels) if self.clean_weight else 0.0
            regulariser = self.clean_loss.of_logits(model(attacked), labels.repeat(self.particles))
        else:
            clean_logits = model(images)
            clean = self.clean_weight * self.clean_loss.of_logits(clean_logits, labels)
            regulariser = batch_divergence(clean_logits.repeat(self.particles, 1), model(attacked))
        return clean + self.weight * regulariser
