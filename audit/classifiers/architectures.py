"""The small ConvNeXt of the shipped classifiers: ConvNeXt (Liu et al. 2022, arXiv:2201.03545) cut to 64x64 images.

The depths and widths are chosen for training on a CPU: 0.55 M parameters, 1000 to 1900 images a second forward and
backward at 64x64x1 in batches of 64 on two cores. The overlapping stem of two 3x3 convolutions, rather than 4x4
patches, keeps lesions of a few pixels visible wherever they fall on the grid.
"""

from typing import Any

import timm
from torch import nn

SMALL_CONVNEXT = "convnext_atto"
"""timm name; with SMALL_CONVNEXT_ARGS a configuration can name the same network by `architecture`."""

SMALL_CONVNEXT_ARGS: dict[str, Any] = {
    "depths": (1, 2, 2, 2),
    "dims": (24, 48, 96, 128),
    "kernel_sizes": 5,
    "stem_type": "overlap_act",
    # timm's 1e-6 is meant for hundreds of epochs; a small network in a few epochs learns faster with open blocks.
    "ls_init_value": 1.0,
}


def small_convnext(num_classes: int, in_chans: int = 1) -> nn.Module:
    """Return the small ConvNeXt with random weights (torch's global RNG); any image of side >= 32 fits.

    GELU, no batch normalisation, and a head of global average pooling, layer norm and one linear layer of 128 features.
    """
    return timm.create_model(SMALL_CONVNEXT, num_classes=num_classes, in_chans=in_chans, **SMALL_CONVNEXT_ARGS)
