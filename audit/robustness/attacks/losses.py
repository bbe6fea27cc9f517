"""What attacks climb: losses of logits for one image each, and their gradient with respect to the image.

Cross-entropy; the margin (Carlini & Wagner 2017, section 5); the difference of logits ratio, plain and targeted (Croce
& Hein 2020, arXiv 2003.01690, eqs. 6 and 7). All are computed in float32: in 16 bits most steps change no logit at all.

The plain ratio divides by z_(1) - z_(3) and the targeted one by z_(1) - (z_(3) + z_(4)) / 2, logits in falling order,
so that they are not defined for fewer than 3 and 4 classes. There the margin stands in. It loses nothing: the ratio was
made against losses that vanish when logits are large, and Auto-PGD's normalised steps and its comparisons of a sample
with itself are the same for a margin multiplied by any positive number.
"""

from typing import Literal, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from audit.errors import ClassifierError, MetricError
from audit.robustness.attacks.checks import name_of

LossName = Literal["ce", "dlr"]
SMALLEST = 1e-12
"""Floor of a ratio's denominator, which is zero where the leading logits are equal."""


class Loss(Protocol):
    """A loss `[N]` of logits `[N, K]` and labels `[N]` that grows as the images come nearer to being misclassified."""

    def __call__(self, logits: Tensor, labels: Tensor) -> Tensor: ...


def _need_classes(logits: Tensor, fewest: int, loss: str) -> None:
    if logits.shape[1] < fewest:
        raise MetricError(
            f"The {loss} needs at least {fewest} classes and the classifier has {logits.shape[1]}: use the margin."
        )


def _of_class(logits: Tensor, classes: Tensor) -> Tensor:
    return logits.gather(1, classes[:, None])[:, 0]


def _best_other(top: torch.return_types.topk, labels: Tensor) -> Tensor:
    """Return the largest logit of another class than `labels`, given the two or more largest of each row."""
    return torch.where(top.indices[:, 0] == labels, top.values[:, 1], top.values[:, 0])


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the cross-entropy `[N]` of `logits` `[N, K]` for `labels` `[N]`, not below 0."""
    return functional.cross_entropy(logits.float(), labels, reduction="none")


def margin(logits: Tensor, labels: Tensor) -> Tensor:
    """Return `[N]`, the largest logit of another class less that of the label: positive means misclassified."""
    _need_classes(logits, 2, "margin")
    logits = logits.float()
    return _best_other(logits.topk(2, dim=1), labels) - _of_class(logits, labels)


def whole_log_odds(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the log-odds `[N]` of the classes `labels` against all others; not cut, so that gradients stay."""
    own = functional.one_hot(labels, logits.shape[1]).bool()
    return logits[own] - logits.masked_fill(own, -torch.inf).logsumexp(dim=1)


def dlr(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the difference of logits ratio `[N]` (eq. 6): the margin over z_(1) - z_(3), positive if misclassified.

    Unchanged if all logits of an image are shifted, or scaled by a positive number; not below -1. Raises MetricError
    for fewer than 3 classes.
    """
    _need_classes(logits, 3, "difference of logits ratio")
    logits = logits.float()
    top = logits.topk(3, dim=1)
    spread = (top.values[:, 0] - top.values[:, 2]).clamp_min(SMALLEST)
    return (_best_other(top, labels) - _of_class(logits, labels)) / spread


def targeted_margin(logits: Tensor, labels: Tensor, targets: Tensor) -> Tensor:
    """Return `[N]`, the logit of the target class less that of the label; positive only if misclassified."""
    logits = logits.float()
    return _of_class(logits, targets) - _of_class(logits, labels)


def targeted_dlr(logits: Tensor, labels: Tensor, targets: Tensor) -> Tensor:
    """Return the targeted difference of logits ratio `[N]` (eq. 7): z_t - z_y over z_(1) - (z_(3) + z_(4)) / 2.

    Unchanged if all logits of an image are shifted, or scaled by a positive number; positive only if misclassified.
    Raises MetricError for fewer than 4 classes.
    """
    _need_classes(logits, 4, "targeted difference of logits ratio")
    logits = logits.float()
    top = logits.topk(4, dim=1).values
    spread = (top[:, 0] - (top[:, 2] + top[:, 3]) / 2).clamp_min(SMALLEST)
    return targeted_margin(logits, labels, targets) / spread


LOSSES: dict[str, Loss] = {"ce": cross_entropy, "dlr": dlr}
"""The untargeted losses by the names under which Auto-PGD knows them."""


def image_gradient(classifier: nn.Module, losses: Tensor, images: Tensor) -> Tensor:
    """Return the gradient `[N, C, H, W]` of each image's loss `[N]` with respect to that image.

    A classifier whose output does not depend on the image differentiably gives zeros, as a constant one does: that is
    a finding for the trust checks, and no reason to stop. Raises ClassifierError if a gradient is not finite.
    """
    if not losses.requires_grad:
        return torch.zeros_like(images)
    (gradient,) = torch.autograd.grad(losses.sum(), images, allow_unused=True)
    if gradient is None:
        return torch.zeros_like(images)
    if not torch.isfinite(gradient).all():
        raise ClassifierError(
            f"Classifier '{name_of(classifier)}' has a NaN or infinite gradient with respect to the image: check it "
            "for a division or logarithm of zero, and for overflow in 16 bits."
        )
    return gradient
