"""Losses of the training beside R1: the logistic loss and path lengths.

Source: Goodfellow et al. 2014 (non-saturating logistic loss); Karras et al. 2020 (StyleGAN2: section 3.2).
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F


def path_lengths(images: Tensor, ws: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Length `[N]` of the Jacobian-vector product of `images` w.r.t. `ws` (StyleGAN2 equation 4); keeps the graph."""
    noise = torch.randn(images.shape, device=images.device, generator=generator)
    scaled = (images * noise).sum() / math.sqrt(images.shape[2] * images.shape[3])
    (gradient,) = torch.autograd.grad(scaled, ws, create_graph=True)
    return gradient.square().sum(2).mean(1).sqrt()


def logistic(logits: Tensor) -> Tensor:
    """Non-saturating logistic loss of logits that should be large: mean of softplus(-logits)."""
    return F.softplus(-logits).mean()
