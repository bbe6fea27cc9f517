"""One perturbation against all labels of an image together: PGD on the weighted sum of their margins.

A label's margin is its logit's distance from the threshold, positive on the side of the truth. What is lowered is the
sum over labels of weight times margin, cut at zero (the hinge of Carlini & Wagner 2017; for several labels Song et al.
2018, arXiv 1811.12088): a label that has fallen pulls no further, and unlike a cross-entropy one that is sure still
pulls.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from audit.classifiers.mode import preserve_mode
from audit.results import UNKNOWN_LABEL
from audit.robustness.attacks.ball import Norm, ascent, assert_in_ball, project, random_offset
from audit.robustness.attacks.checks import check_eps, checked_logits, float_images
from audit.robustness.attacks.losses import image_gradient


@dataclass(frozen=True)
class Aim:
    """What the attack is to make fall: `truth` `[N, L]` of 1, 0 and -1 (unknown: not attacked), each label's weight
    `[L]`, and the logits `[L]` at which the classifier decides.
    """

    truth: Tensor
    weights: Tensor
    limits: Tensor

    def margins(self, logits: Tensor) -> Tensor:
        """Return `[N, L]`, positive where the label is decided rightly; infinite where the truth is unknown."""
        sign = torch.where(self.truth == 1, 1.0, -1.0)
        # Of a logit at the threshold the decision is "absent".
        margins = torch.where(self.truth == UNKNOWN_LABEL, torch.inf, sign * (logits.float() - self.limits))
        return torch.where((margins == 0) & (self.truth == 0), torch.finfo(torch.float32).tiny, margins)

    def right(self, logits: Tensor) -> Tensor:
        """Which labels are decided rightly, bool `[N, L]`; True where the truth is unknown."""
        return self.margins(logits) > 0

    def harm(self, logits: Tensor) -> Tensor:
        """Weight of the labels that are decided wrongly, `[N]`."""
        return (self.weights * ~self.right(logits)).sum(dim=1)

    def loss(self, logits: Tensor) -> Tensor:
        """Return `[N]`, which grows as labels come nearer to falling."""
        margins = self.margins(logits)
        standing = torch.where(self.truth == UNKNOWN_LABEL, 0.0, margins.clamp_min(0))
        return -(self.weights * standing).sum(dim=1)


@dataclass(frozen=True)
class Budget:
    """Radius in pixel units of `norm`, and steps of the default length of PGD."""

    eps: float
    norm: Norm
    steps: int


@dataclass(frozen=True)
class Harmed:
    """Attacked images `[N, C, H, W]`, and the classifier's logits `[N, L]` of them."""

    images: Tensor
    logits: Tensor


def joint_attack(classifier: nn.Module, images: Tensor, aim: Aim, budget: Budget, generator: torch.Generator) -> Harmed:
    """Return images in [0, 1] within the budget of `images` `[N, C, H, W]`: of all iterates the most harmful one each.

    `classifier` gives a logit for each label, `[N, L]`. The image itself is the first iterate, so that no image comes
    back less harmful than it was. Raises MetricError on images outside [0, 1].
    """
    images = float_images(images, "images given to the joint attack")
    check_eps(budget.eps, budget.norm, images.shape[1:])
    with preserve_mode(classifier):
        best = images.clone()
        with torch.no_grad():
            logits = checked_logits(classifier, images, fewest=1)
            harm, loss = aim.harm(logits), aim.loss(logits)
        offset = random_offset(images.shape, budget.eps, budget.norm, generator).to(images)
        current = project(images + offset, images, budget.eps, budget.norm)
        for step in range(budget.steps + 1):
            with torch.enable_grad():
                leaf = current.detach().requires_grad_()
                logits = checked_logits(classifier, leaf, fewest=1)
                losses = aim.loss(logits)
                gradient = image_gradient(classifier, losses, leaf)
            now, losses = aim.harm(logits.detach()), losses.detach()
            better = (now > harm) | ((now == harm) & (losses > loss))
            best[better], harm[better], loss[better] = current[better], now[better], losses[better]
            if step < budget.steps:
                moved = current + ascent(gradient, 2.5 * budget.eps / budget.steps, budget.norm)
                current = project(moved, images, budget.eps, budget.norm)
        assert_in_ball(best, images, budget.eps, budget.norm, "The joint attack")
        with torch.no_grad():
            return Harmed(best, checked_logits(classifier, best, fewest=1))
