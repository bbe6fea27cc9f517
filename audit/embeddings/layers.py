"""The layer that the package's own embeddings are built of."""

from torch import nn

GROUPS = 8
"""Groups of every normalisation; the number of output channels is a multiple of it."""


def convolution(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    """Return a 3x3 convolution of `stride` with group normalisation and SiLU.

    SiLU rather than ReLU, because optimisers of latent codes differentiate the perceptual distance.
    """
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False), nn.GroupNorm(GROUPS, outputs), nn.SiLU()
    )
