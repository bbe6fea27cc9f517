"""Learning without labels by contrast: two random views of an image belong together, all others do not.

SimCLR (Chen et al. 2020, "A simple framework for contrastive learning of visual representations", arXiv:2002.05709):
the loss is its equation 1 (NT-Xent), the projection head its section 2.1, `g(h) = W2 sigma(W1 h)`. The head is thrown
away after training. Views keep what a radiograph means: mild crops, small affine maps, brightness and contrast, blur
and noise; mirroring is off unless asked for, because left and right matter.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from audit.embeddings.domain import DomainEncoder
from audit.training.classifier.augmentation import augment
from audit.training.embedding.config import ViewsConfig
from audit.training.embedding.factors import disturb


def nt_xent(projections: Tensor, temperature: float) -> Tensor:
    """Return the normalised temperature-scaled cross-entropy of `[2N, d]`; row i and row N + i are views of one image.

    Each row has to find its partner among the 2N - 1 others by cosine similarity; the mean over all rows.
    """
    unit = functional.normalize(projections, dim=1)
    similarity = unit @ unit.T / temperature
    itself = torch.eye(len(unit), dtype=torch.bool, device=unit.device)
    partners = torch.arange(len(unit), device=unit.device).roll(len(unit) // 2)
    return functional.cross_entropy(similarity.masked_fill(itself, -torch.inf), partners)


class Contrasted(nn.Module):
    """An encoder with its projection head: images `[N, C, H, W]` to projections `[N, projection]`."""

    def __init__(self, encoder: DomainEncoder, projection: int) -> None:
        super().__init__()
        self.encoder = encoder
        width = encoder.features
        self.head = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, projection))

    def forward(self, images: Tensor) -> Tensor:
        projections: Tensor = self.head(self.encoder(images))
        return projections


def two_views(images: Tensor, config: ViewsConfig, generator: torch.Generator) -> Tensor:
    """Return `[2N, C, H, W]`: one random view of each image, then another of each; in [0, 1], by `generator` alone."""
    views = [disturb(augment(images, config, generator), config.noise, config.blur, generator) for _ in range(2)]
    return torch.cat(views)
