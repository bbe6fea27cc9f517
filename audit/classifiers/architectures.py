"""Build networks by name: timm's, and the small ConvNeXt of the shipped classifiers (Liu et al., arXiv:2201.03545).

The small ConvNeXt's depths and widths are chosen for training on a CPU at 64x64: 0.55 M parameters, 1400 to 1900 images
a second forward and backward in batches of 64 on two cores. Its overlapping stem of two 3x3 convolutions, rather than
4x4 patches, keeps lesions of a few pixels visible wherever they fall on the grid.
"""

import difflib
from collections.abc import Mapping
from typing import Any

import timm
from torch import nn

from audit.errors import ClassifierError

SMALL_CONVNEXT_NAME = "small-convnext"
"""Name under which a configuration or a checkpoint's metadata asks for `small_convnext`."""

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

FORBIDDEN_ARGS = ("pretrained", "checkpoint_path", "pretrained_cfg", "pretrained_cfg_overlay", "features_only")
"""Keyword arguments of timm that would bring other weights than the checkpoint's, or no classifier."""

SIDES = (28, 32, 64, 96, 112, 128, 160, 192, 224, 240, 256, 288, 299, 320, 336, 384, 448, 512)
"""Sides of images that networks are trained at."""


def small_convnext(num_classes: int, in_chans: int = 1) -> nn.Module:
    """Return the small ConvNeXt with random weights (torch's global RNG); any image of side >= 32 fits.

    GELU, no batch normalisation, and a head of global average pooling, layer norm and one linear layer of 128 features.
    """
    return timm.create_model(SMALL_CONVNEXT, num_classes=num_classes, in_chans=in_chans, **SMALL_CONVNEXT_ARGS)


def build_architecture(architecture: str, num_classes: int, channels: int, args: Mapping[str, Any]) -> nn.Module:
    """Build 'small-convnext' or timm's `architecture` for `channels` input channels, with random weights.

    Raises ClassifierError for an unknown name (with the nearest known one) or arguments it does not take.
    """
    refused = [key for key in FORBIDDEN_ARGS if key in args]
    if refused:
        raise ClassifierError(f"architecture_args may not hold '{refused[0]}': weights come from the checkpoint.")
    if architecture == SMALL_CONVNEXT_NAME:
        if args:
            raise ClassifierError(f"Architecture '{SMALL_CONVNEXT_NAME}' takes no architecture_args: remove them.")
        return small_convnext(num_classes, in_chans=channels)
    if not timm.is_model(architecture):
        near = difflib.get_close_matches(architecture, [SMALL_CONVNEXT_NAME, *timm.list_models()], n=1, cutoff=0.0)
        raise ClassifierError(f"Architecture '{architecture}' is not known to timm: did you mean '{near[0]}'?")
    arguments = {"num_classes": num_classes, "in_chans": channels, **args}
    try:
        return timm.create_model(architecture, pretrained=False, **arguments)
    except (TypeError, ValueError, RuntimeError, AssertionError, IndexError, KeyError) as error:
        detail = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ClassifierError(
            f"Architecture '{architecture}' cannot be built with architecture_args {dict(args)} ({detail}): "
            "give keyword arguments that timm.create_model takes for it."
        ) from None
