"""The discriminator's features as an embedding and as a perceptual distance, independent of the audited models.

A discriminator is trained without labels, on the images that the generator was trained on. Its maps after each residual
block serve as perceptual features; their spatial means (the deeper half of the network) as the embedding for
distribution distances.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from audit.generator.stylegan2.architecture import weights_hash
from audit.generator.stylegan2.discriminator import Discriminator
from audit.generator.stylegan2.networks import network_range


class DiscriminatorFeatures:
    """Feature network named `discriminator`; input `[N, C, R, R]` in [0, 1]."""

    name = "discriminator"

    def __init__(self, discriminator: Discriminator):
        self._network = discriminator
        self.weights_sha256 = weights_hash(discriminator)

    def maps(self, images: Tensor) -> list[Tensor]:
        """Feature maps `[N, c, h, w]`, fine to coarse."""
        return self._network.maps(network_range(images))

    def embed(self, images: Tensor) -> Tensor:
        """Embedding `[N, d]`: maps of the two coarsest blocks pooled to 2x2, each of unit root mean square."""
        pooled = [F.adaptive_avg_pool2d(m, 2).flatten(1) for m in self.maps(images)[-2:]]
        return torch.cat([p / p.square().mean(1, keepdim=True).add(1e-8).sqrt() for p in pooled], 1)
