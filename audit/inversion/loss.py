"""The loss of an inversion, per image: weighted mean squared error and perceptual distance.

Source: Roich et al., "Pivotal Tuning for Latent-based Editing of Real Images" (2021), equations 2 and 4; Litsos 2025
equations 5.5.8 and 5.5.10.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from audit.embeddings.embedding import MapNetwork
from audit.metrics.perceptual import comparable, distance_of_maps


@dataclass(frozen=True)
class Targets:
    """Images to reach `[N, C, R, R]` in [0, 1] and, where a perceptual term is wanted, the maps to compare."""

    images: Tensor
    maps: tuple[Tensor, ...] | None = None

    def select(self, rows: Tensor | slice) -> "Targets":
        """Return the targets at `rows` (indices, mask or slice)."""
        return Targets(self.images[rows], None if self.maps is None else tuple(m[rows] for m in self.maps))


@torch.no_grad()
def targets_of(images: Tensor, perceptual: MapNetwork | None) -> Targets:
    """Compute once what every step compares with."""
    return Targets(images, None if perceptual is None else tuple(comparable(perceptual, images)))


def squared_error(drawn: Tensor, targets: Tensor) -> Tensor:
    """Mean squared error per image `[N]`."""
    return (drawn - targets).square().mean((1, 2, 3))


def distance(
    drawn: Tensor, targets: Targets, perceptual: MapNetwork | None, l2_weight: float, perceptual_weight: float
) -> tuple[Tensor, Tensor]:
    """Return the weighted distance and the mean squared error alone, each `[N]`."""
    mse = squared_error(drawn, targets.images)
    loss = l2_weight * mse
    if perceptual is not None and targets.maps is not None:
        # The feature network keeps the pixel contract; what is out of range is pulled back by the squared error.
        maps = comparable(perceptual, drawn.clamp(0, 1))
        loss = loss + perceptual_weight * distance_of_maps(maps, list(targets.maps))
    return loss, mse
