"""Training on attacked images: PGD adversarial training, TRADES and MART, and the inner maximisation they share.

PGD-AT: Madry et al. 2018, eq. 2.1. TRADES: Zhang et al. 2019, eq. 3 and algorithm 1. MART: Wang et al. 2020, eq. 11
and algorithm 1.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional

from audit.classifiers.mode import preserve_mode
from audit.robustness.attacks.ball import Norm, ascent, project, random_offset
from audit.training.classifier.objectives.cross_entropy import CrossEntropy

START_DEVIATION = 0.001
"""Standard deviation of the normal noise the inner maximisation starts from (Zhang et al. 2019, algorithm 1)."""

LogitLoss = Callable[[Tensor], Tensor]
"""Maps logits `[M, K]` to the summed loss that the inner maximisation raises."""

Direction = Callable[[Tensor, Tensor], Tensor]
"""Maps (gradient, current images), both `[M, C, H, W]`, to the direction of the next step."""


def near_start(images: Tensor, generator: torch.Generator) -> Tensor:
    """Return `images` with a little normal noise, in [0, 1]: at the image itself the divergence has no gradient."""
    noise = torch.randn(images.shape, generator=generator, device=generator.device).to(images)
    return (images + START_DEVIATION * noise).clamp(0, 1)


def uniform_start(images: Tensor, eps: float, norm: Norm, generator: torch.Generator) -> Tensor:
    """Return a uniform random point of the `eps`-ball around each image, in [0, 1]."""
    return project(images + random_offset(images.shape, eps, norm, generator).to(images), images, eps, norm)


def label_loss(labels: Tensor) -> LogitLoss:
    """Return the summed cross-entropy at `labels` `[M]`; without smoothing and weights, which are no part of a mistake.

    Every image's gradient is its own and only its direction is used, so a weight would change nothing anyway.
    """
    return lambda logits: functional.cross_entropy(logits, labels, reduction="sum")


def divergence_loss(clean: Tensor) -> LogitLoss:
    """Return the summed `KL(clean || softmax(logits))` from fixed probabilities `[M, K]`."""
    return lambda logits: functional.kl_div(functional.log_softmax(logits, dim=1), clean, reduction="sum")


def ascend(
    model: nn.Module,
    start: Tensor,
    images: Tensor,
    loss: LogitLoss,
    *,
    eps: float,
    steps: int,
    step_size: float,
    norm: Norm = "Linf",
    direction: Direction | None = None,
) -> Tensor:
    """Return `start` `[M, C, H, W]` after `steps` of steepest ascent of `loss` in the ball around `images`, detached.

    `eps` and `step_size` are in pixel units. The model should come in evaluation mode with frozen parameters
    (`preserve_mode`). `direction` may replace the gradient by something made of it, such as Stein's.
    """
    current = start
    for _ in range(steps):
        current = current.detach().requires_grad_(True)
        (gradient,) = torch.autograd.grad(loss(model(current)), current)
        current = current.detach()
        heading = gradient if direction is None else direction(gradient, current)
        current = project(current + ascent(heading, step_size, norm), images, eps, norm)
    return current.detach()


def divergence_ascent(
    model: nn.Module,
    images: Tensor,
    *,
    eps: float,
    steps: int,
    step_size: float,
    generator: torch.Generator,
    norm: Norm = "Linf",
) -> Tensor:
    """Return the images in the ball that maximise the summed `KL(f(x) || f(x'))`; detached, in [0, 1].

    The model is in evaluation mode meanwhile (batch norm and dropout must not see the attack) and its clean softmax is
    computed once: the inner problem holds it fixed.
    """
    with preserve_mode(model):
        with torch.no_grad():
            clean = functional.softmax(model(images), dim=1)
        start = near_start(images, generator)
        return ascend(
            model, start, images, divergence_loss(clean), eps=eps, steps=steps, step_size=step_size, norm=norm
        )


def label_ascent(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    start: Tensor,
    *,
    eps: float,
    steps: int,
    step_size: float,
    norm: Norm = "Linf",
) -> Tensor:
    """Return the images in the ball, from `start`, that maximise the cross-entropy at `labels`; detached, in [0, 1]."""
    with preserve_mode(model):
        return ascend(model, start, images, label_loss(labels), eps=eps, steps=steps, step_size=step_size, norm=norm)


def batch_divergence(clean_logits: Tensor, attacked_logits: Tensor) -> Tensor:
    """Return the batch mean of `KL(f(x) || f(x'))`; gradients flow into both."""
    return functional.kl_div(
        functional.log_softmax(attacked_logits, dim=1), functional.softmax(clean_logits, dim=1), reduction="batchmean"
    )


@dataclass(frozen=True, kw_only=True)
class InnerProblem:
    """What the objectives with an inner maximisation share: its ball, its steps, and the clean loss.

    `eps` and `step_size` (default `2 * eps / steps`) are in pixel units. Over the share `ramp` of the training the
    radius grows from 0 to `eps`: a network that meets the full radius before it knows a faint class settles on never
    naming that class, which is perfectly robust.
    """

    eps: float
    steps: int = 10
    step_size: float | None = None
    ramp: float = 0.0
    norm: Norm = "Linf"
    clean_loss: CrossEntropy = field(default_factory=CrossEntropy)

    def reach(self, progress: float) -> tuple[float, float]:
        """Return radius and step size when the share `progress` of the training is done."""
        grown = 1.0 if self.ramp == 0 else min(1.0, progress / self.ramp)
        step_size = 2 * self.eps / self.steps if self.step_size is None else self.step_size
        return grown * self.eps, grown * step_size


@dataclass(frozen=True, kw_only=True)
class PgdTraining(InnerProblem):
    """PGD-AT: the cross-entropy of images attacked by PGD from a random start; clean images are not trained on."""

    def __call__(
        self, model: nn.Module, images: Tensor, labels: Tensor, generator: torch.Generator, progress: float = 1.0
    ) -> Tensor:
        eps, step_size = self.reach(progress)
        start = uniform_start(images, eps, self.norm, generator)
        attacked = label_ascent(
            model, images, labels, start, eps=eps, steps=self.steps, step_size=step_size, norm=self.norm
        )
        return self.clean_loss.of_logits(model(attacked), labels)


@dataclass(frozen=True, kw_only=True)
class Trades(InnerProblem):
    """TRADES: the clean loss plus `beta` times the batch mean of the divergence between clean and attacked output.

    Gradients flow through the clean output in the divergence as well: it is a term of the objective there and not a
    fixed target.
    """

    beta: float = 6.0

    def attack(self, model: nn.Module, images: Tensor, generator: torch.Generator, progress: float) -> Tensor:
        """Return the images that the inner maximisation finds."""
        eps, step_size = self.reach(progress)
        return divergence_ascent(
            model, images, eps=eps, steps=self.steps, step_size=step_size, generator=generator, norm=self.norm
        )

    def outer(self, forward: Callable[[Tensor], Tensor], images: Tensor, attacked: Tensor, labels: Tensor) -> Tensor:
        """Return the scalar loss for given attacked images; `forward` maps images to logits."""
        # Two calls, not one on the concatenation: batch norm must normalise either half by its own statistics.
        clean_logits, attacked_logits = forward(images), forward(attacked)
        divergence = batch_divergence(clean_logits, attacked_logits)
        return self.clean_loss.of_logits(clean_logits, labels) + self.beta * divergence

    def __call__(
        self, model: nn.Module, images: Tensor, labels: Tensor, generator: torch.Generator, progress: float = 1.0
    ) -> Tensor:
        return self.outer(model, images, self.attack(model, images, generator, progress), labels)


@dataclass(frozen=True, kw_only=True)
class Mart(InnerProblem):
    """MART: boosted cross-entropy of the attacked image, and a divergence that counts where the clean one is doubted.

    `BCE(f(x'), y) + weight * mean KL(f(x) || f(x')) * (1 - p_y(x))` with `BCE = -log p_y(x') - log(1 - max_{k != y}
    p_k(x'))`; x' maximises the cross-entropy from a start of little noise. Label smoothing applies to the first term of
    the BCE, class weights to both. Gradients flow through the clean output, as in TRADES.
    """

    weight: float = 5.0

    def __call__(
        self, model: nn.Module, images: Tensor, labels: Tensor, generator: torch.Generator, progress: float = 1.0
    ) -> Tensor:
        eps, step_size = self.reach(progress)
        start = near_start(images, generator)
        attacked = label_ascent(
            model, images, labels, start, eps=eps, steps=self.steps, step_size=step_size, norm=self.norm
        )
        clean_logits, attacked_logits = model(images), model(attacked)
        margin = self.clean_loss.average(runner_up_loss(attacked_logits, labels), labels)
        log_clean = functional.log_softmax(clean_logits, dim=1)
        log_attacked = functional.log_softmax(attacked_logits, dim=1)
        divergence = (log_clean.exp() * (log_clean - log_attacked)).sum(dim=1)
        doubt = 1 - log_clean.gather(1, labels[:, None])[:, 0].exp()
        boosted = self.clean_loss.of_logits(attacked_logits, labels) + margin
        return boosted + self.weight * (divergence * doubt).mean()


def runner_up_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Return `-log(1 - max_{k != y} p_k)` `[N]`, finite for any finite logits `[N, K]`.

    `1 - p_k` is summed from the other classes' log-probabilities: the difference itself rounds to 0 as p_k nears 1.
    """
    log_probabilities = functional.log_softmax(logits, dim=1)
    others = log_probabilities.scatter(1, labels[:, None], -torch.inf)
    runner_up = others.argmax(dim=1, keepdim=True)
    return -log_probabilities.scatter(1, runner_up, -torch.inf).logsumexp(dim=1)
