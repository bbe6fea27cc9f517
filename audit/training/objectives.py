"""What a classifier is trained to minimise: cross-entropy, or TRADES (Zhang et al. 2019, eq. 3 and algorithm 1).

TRADES: `CE(f(x), y) + beta * mean KL(f(x) || f(x'))`, where x' maximises the same divergence in the eps-ball.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from audit.classifiers.mode import preserve_mode

START_DEVIATION = 0.001
"""Standard deviation of the normal noise the inner maximisation starts from (Zhang et al. 2019, algorithm 1)."""

Objective = Callable[[nn.Module, Tensor, Tensor, torch.Generator, float], Tensor]
"""Maps (model over pixels, images `[N, C, H, W]` in [0, 1], labels `[N]`, generator, share of the training that is
done) to the scalar loss."""


@dataclass(frozen=True)
class CrossEntropy:
    """Plain training: mean cross-entropy with optional label smoothing and class weights `[K]`."""

    label_smoothing: float = 0.0
    class_weights: Tensor | None = None

    def of_logits(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the scalar loss of `logits` `[N, K]`."""
        weights = None if self.class_weights is None else self.class_weights.to(logits)
        return functional.cross_entropy(logits, labels, weight=weights, label_smoothing=self.label_smoothing)

    def __call__(
        self, model: nn.Module, images: Tensor, labels: Tensor, generator: torch.Generator, progress: float = 1.0
    ) -> Tensor:
        return self.of_logits(model(images), labels)


def divergence_ascent(
    model: nn.Module, images: Tensor, *, eps: float, steps: int, step_size: float, generator: torch.Generator
) -> Tensor:
    """Return the images in the L-inf ball that maximise the summed `KL(f(x) || f(x'))`; detached, in [0, 1].

    The model is in evaluation mode meanwhile (batch norm and dropout must not see the attack) and its clean softmax is
    computed once: the inner problem holds it fixed.
    """
    with preserve_mode(model):
        with torch.no_grad():
            clean = functional.softmax(model(images), dim=1)
        noise = torch.randn(images.shape, generator=generator, device=generator.device).to(images)
        adversarial = (images + START_DEVIATION * noise).clamp(0, 1)
        for _ in range(steps):
            adversarial.requires_grad_(True)
            log_probabilities = functional.log_softmax(model(adversarial), dim=1)
            loss = functional.kl_div(log_probabilities, clean, reduction="sum")
            (gradient,) = torch.autograd.grad(loss, adversarial)
            moved = adversarial.detach() + step_size * gradient.sign()
            adversarial = torch.clamp(moved, images - eps, images + eps).clamp(0, 1)
    return adversarial.detach()


@dataclass(frozen=True)
class Trades:
    """TRADES: the clean loss plus `beta` times the batch mean of the divergence between clean and attacked output.

    `eps` and `step_size` (default `2 * eps / steps`) are in pixel units. Gradients flow through the clean output in the
    divergence as well: it is a term of the objective there and not a fixed target. Over the share `ramp` of the
    training the radius grows from 0 to `eps`: a network that meets the full radius before it knows a faint class
    settles on never naming that class, which is perfectly robust.
    """

    eps: float
    beta: float = 6.0
    steps: int = 10
    step_size: float | None = None
    ramp: float = 0.0
    clean_loss: CrossEntropy = CrossEntropy()

    def __call__(
        self, model: nn.Module, images: Tensor, labels: Tensor, generator: torch.Generator, progress: float = 1.0
    ) -> Tensor:
        grown = 1.0 if self.ramp == 0 else min(1.0, progress / self.ramp)
        step_size = 2 * self.eps / self.steps if self.step_size is None else self.step_size
        adversarial = divergence_ascent(
            model, images, eps=grown * self.eps, steps=self.steps, step_size=grown * step_size, generator=generator
        )
        # Two calls, not one on the concatenation: batch norm must normalise either half by its own statistics.
        clean_logits, attacked_logits = model(images), model(adversarial)
        divergence = functional.kl_div(
            functional.log_softmax(attacked_logits, dim=1),
            functional.softmax(clean_logits, dim=1),
            reduction="batchmean",
        )
        return self.clean_loss.of_logits(clean_logits, labels) + self.beta * divergence
