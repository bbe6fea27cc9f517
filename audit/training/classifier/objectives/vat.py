"""Virtual adversarial training (Miyato et al. 2018, eq. 5, 6, 8 and section 3.3): labels are not needed to attack.

The divergence `D(r) = KL(f(x) || f(x + r))` is flat at r = 0, so its worst direction is the dominant eigenvector of its
Hessian there. A gradient of D at a short probe `xi * d` is that Hessian times `xi * d`: power iteration.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional

from audit.classifiers.mode import preserve_mode
from audit.robustness.attacks.ball import ascent, project
from audit.training.classifier.objectives.adversarial import divergence_loss
from audit.training.classifier.objectives.cross_entropy import CrossEntropy


def virtual_adversarial(
    model: nn.Module, images: Tensor, *, eps: float, xi: float, iterations: int, generator: torch.Generator
) -> Tensor:
    """Return `x + r` `[N, C, H, W]` with `||r||_2 = eps` in the direction that changes the output most; detached.

    `eps` and the probe's length `xi` are Euclidean over all pixels of an image. The sum is cut at [0, 1]. The model
    is in evaluation mode meanwhile.
    """
    with preserve_mode(model):
        with torch.no_grad():
            clean = functional.softmax(model(images), dim=1)
        loss = divergence_loss(clean)
        heading = torch.randn(images.shape, generator=generator, device=generator.device).to(images)
        for _ in range(iterations):
            # The probe may leave [0, 1] by less than xi: cut there, half of the directions at a black pixel were lost.
            probe = (images + ascent(heading, xi, "L2")).requires_grad_(True)
            (heading,) = torch.autograd.grad(loss(model(probe)), probe)
        return project(images + ascent(heading, eps, "L2"), images, eps, "L2").detach()


@dataclass(frozen=True, kw_only=True)
class VirtualAdversarial:
    """VAT: the clean loss plus `weight` times the local distributional smoothness `mean KL(f(x) || f(x + r))`.

    The clean output is a fixed target here, as in the paper and unlike TRADES. The paper's `xi = 1e-6` moves a pixel by
    about as much as float32 rounds it (spacing 6e-8 near 0.5), so that the probe drowns in rounding; the divergence
    found is the same from 1e-3 to 0.1, and 0.1 leaves most to spare in 16 bits. Over the share `ramp` of the training
    the radius grows from 0 to `eps`.
    """

    eps: float = 1.0
    xi: float = 0.1
    iterations: int = 1
    weight: float = 1.0
    ramp: float = 0.0
    clean_loss: CrossEntropy = field(default_factory=CrossEntropy)

    def __call__(
        self, model: nn.Module, images: Tensor, labels: Tensor, generator: torch.Generator, progress: float = 1.0
    ) -> Tensor:
        grown = 1.0 if self.ramp == 0 else min(1.0, progress / self.ramp)
        attacked = virtual_adversarial(
            model, images, eps=grown * self.eps, xi=self.xi, iterations=self.iterations, generator=generator
        )
        clean_logits, attacked_logits = model(images), model(attacked)
        target = functional.softmax(clean_logits.detach(), dim=1)
        smoothness = divergence_loss(target)(attacked_logits) / len(images)
        return self.clean_loss.of_logits(clean_logits, labels) + self.weight * smoothness
