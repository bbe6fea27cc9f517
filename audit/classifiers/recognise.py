"""Tell the architecture of a checkpoint from its tensors: among timm's usual ones, or by the name of its file.

A name in the file's own name is tried first. It is believed only if the network of that name has the same tensors.
"""

import re

import timm
import torch

from audit.classifiers.architectures import build_architecture
from audit.classifiers.checkpoint import Checkpoint
from audit.classifiers.fitting import find_weights, fitting_arguments
from audit.errors import ClassifierError

FAMILIES: dict[str, tuple[str, ...]] = {
    "layer1.0.conv1.weight": (
        "resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "wide_resnet50_2", "resnext50_32x4d",
        "resnext101_32x8d", "seresnet50", "resnet50d", "ecaresnet50d",
    ),
    "features.denseblock1.denselayer1.conv1.weight": ("densenet121", "densenet161", "densenet169", "densenet201"),
    "conv_stem.weight": (
        "efficientnet_b0", "efficientnet_b1", "efficientnet_b2", "efficientnet_b3", "efficientnet_b4",
        "mobilenetv3_large_100", "mobilenetv3_small_100", "mobilenetv2_100", "tf_efficientnetv2_s",
    ),
    "stages.0.blocks.0.conv_dw.weight": (
        "small-convnext", "convnext_atto", "convnext_femto", "convnext_pico", "convnext_nano", "convnext_tiny",
        "convnext_small", "convnext_base", "convnextv2_atto", "convnextv2_nano", "convnextv2_tiny",
    ),
    "blocks.0.attn.qkv.weight": (
        "vit_tiny_patch16_224", "vit_small_patch16_224", "vit_base_patch16_224", "vit_base_patch32_224",
        "vit_large_patch16_224", "vit_small_patch14_dinov2", "vit_base_patch14_dinov2",
    ),
    "layers.0.blocks.0.attn.qkv.weight": (
        "swin_tiny_patch4_window7_224", "swin_small_patch4_window7_224", "swin_base_patch4_window7_224",
    ),
    "s1.b1.conv1.conv.weight": ("regnety_004", "regnety_008", "regnety_016", "regnetx_004", "regnetx_008"),
    "features.0.weight": ("vgg11", "vgg13", "vgg16", "vgg19", "vgg11_bn", "vgg13_bn", "vgg16_bn", "vgg19_bn"),
}  # fmt: skip
"""timm's architectures by the name of a tensor that they have; of two with the same shapes the first is named."""

POSITIONS = ("pos_embed",)
"""The tensor whose shape goes by the size of the images."""


def _outermost(checkpoint: Checkpoint, dimensions: int, inputs: tuple[int, ...] = ()) -> tuple[int, ...] | None:
    """Shape of the weight of so many dimensions, and so many `inputs`, whose name has the fewest parts."""
    found = [
        (name.count("."), one.shape)
        for name, one in checkpoint.stored.items()
        if len(one.shape) == dimensions and name.endswith("weight") and (not inputs or one.shape[1] in inputs)
    ]
    return min(found, key=lambda one: one[0])[1] if found else None


def outputs_of(checkpoint: Checkpoint) -> int | None:
    """How many outputs the network has: those of its outermost linear layer; None where there is none."""
    shape = _outermost(checkpoint, 2)
    return None if shape is None else shape[0]


def recognised(checkpoint: Checkpoint, file_name: str = "") -> list[tuple[str, dict[str, int]]]:
    """The architectures that have the checkpoint's tensors, with the arguments that they need for that.

    Nothing is computed: networks are built without numbers, and only those that `file_name` names and those of the
    family that a tensor's name shows.
    """
    classes, first = outputs_of(checkpoint) or 1, _outermost(checkpoint, 4, (1, 3))
    channels = 3 if first is None else first[1]
    tried = _named_in(file_name)
    for mark, names in FAMILIES.items():
        if any(name == mark or name.endswith(f".{mark}") for name in checkpoint.stored):
            tried += names
    found = {name: _arguments(name, classes, channels, checkpoint) for name in dict.fromkeys(tried)}
    return [(name, args) for name, args in found.items() if args is not None]


def _named_in(file_name: str) -> list[str]:
    """timm's architectures that a file's name names, the longest name first: `resnet10t-epoch3.pt` is a resnet10t."""
    words = file_name.lower()
    named = [one for one in timm.list_models() if re.search(rf"(?<![a-z0-9]){re.escape(one)}(?![a-z0-9])", words)]
    return sorted(named, key=len, reverse=True)


def _arguments(name: str, classes: int, channels: int, checkpoint: Checkpoint) -> dict[str, int] | None:
    """The arguments with which architecture `name` has the checkpoint's tensors; None if it never has."""
    with torch.device("meta"):
        network = build_architecture(name, classes, channels, {})
    shapes = {key: value.shape for key, value in network.state_dict().items()}
    try:
        fit = find_weights(shapes, checkpoint, "", replaced=POSITIONS)
    except ClassifierError:
        return None
    return fitting_arguments(name, classes, channels, {}, checkpoint, None) if fit.kept else {}
