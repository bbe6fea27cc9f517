"""Cross-entropy on clean images: the plain objective, and the term of every other one that is taken at the labels."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

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

    def average(self, values: Tensor, labels: Tensor) -> Tensor:
        """Return the mean of `values` `[N]`, weighted by the classes of `labels` as the cross-entropy itself is."""
        if self.class_weights is None:
            return values.mean()
        weights = self.class_weights.to(values)[labels]
        return (weights * values).sum() / weights.sum()

    def __call__(
        self, model: nn.Module, images: Tensor, labels: Tensor, generator: torch.Generator, progress: float = 1.0
    ) -> Tensor:
        return self.of_logits(model(images), labels)
