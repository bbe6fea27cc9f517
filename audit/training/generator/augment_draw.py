"""Draws that the augmentations share: who is transformed, and by how much."""

import torch
from torch import Tensor


def chosen(n: int, p: float, generator: torch.Generator) -> Tensor:
    """Bool `[n]`, each True with probability `p`."""
    return torch.rand(n, generator=generator, device=generator.device) < p


def uniform(n: int, generator: torch.Generator) -> Tensor:
    """`[n]` uniform in [0, 1)."""
    return torch.rand(n, generator=generator, device=generator.device)


def normal(n: int, generator: torch.Generator) -> Tensor:
    """`[n]` standard normal."""
    return torch.randn(n, generator=generator, device=generator.device)


def where(apply: Tensor, value: Tensor, neutral: float) -> Tensor:
    """`value` where `apply`, else `neutral`."""
    return torch.where(apply, value, torch.full_like(value, neutral))
