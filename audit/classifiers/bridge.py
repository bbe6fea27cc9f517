"""From the images and classes of the data to those of a network, differentiably, and back from its labels."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from audit.data.colour import luma
from audit.errors import ClassifierError


def bridge_channels(images: Tensor, channels: int) -> Tensor:
    """Return `images` `[N, 1 or 3, H, W]` in [0, 1] with `channels` (1 or 3) channels, differentiably."""
    if images.shape[1] == channels:
        return images
    return images.expand(-1, channels, -1, -1) if images.shape[1] == 1 else luma(images)


def bridge_size(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Return `images` `[N, C, h, w]` resized to `size` (H, W): bilinear with antialiasing, differentiably."""
    if tuple(images.shape[2:]) == size:
        return images
    return functional.interpolate(images, size=size, mode="bilinear", align_corners=False, antialias=True)


def per_channel(values: Sequence[float] | None, default: float, channels: int, what: str, name: str) -> Tensor:
    """Return `values`, one number per channel or one for all, as `[channels, 1, 1]`; raises ClassifierError."""
    given = [default] * channels if values is None else [float(v) for v in values]
    if len(given) == 1:
        given = given * channels
    if len(given) != channels:
        raise ClassifierError(
            f"Classifier '{name}' has {len(given)} values of {what} for {channels} channel(s): give one per channel."
        )
    tensor = torch.tensor(given)[:, None, None]
    if not torch.isfinite(tensor).all() or (what == "std" and bool((tensor <= 0).any())):
        raise ClassifierError(f"Classifier '{name}' has {what} = {given}: give finite numbers, above 0 for std.")
    return tensor


def class_order(model_classes: Sequence[str], data_classes: Sequence[str], name: str) -> tuple[int, ...]:
    """Return, for each class of the data, its position in the model's output; the model may know others as well.

    Raises ClassifierError for a class of the data that the model has not, and for one that is named twice.
    """
    unknown = [c for c in model_classes if c not in data_classes]
    missing = [c for c in data_classes if c not in model_classes]
    twice = len(set(model_classes)) != len(model_classes)
    if missing or twice:
        differences = [
            *([f"not in the data: {', '.join(unknown)}"] if unknown else []),
            *([f"not in the model: {', '.join(missing)}"] if missing else []),
            *(["a class is named twice"] if twice else []),
        ]
        raise ClassifierError(
            f"Classes of classifier '{name}' ({', '.join(model_classes)}) do not match those of the data "
            f"({', '.join(data_classes)}): {'; '.join(differences)}."
        )
    return tuple(list(model_classes).index(c) for c in data_classes)


def two_classes(logits: Tensor, label: int, limit: float) -> Tensor:
    """Return logits `[N, 2]` of "without the label", which is 0, and "with it", from those of all labels `[N, L]`.

    `limit` is the logit from which on the label is said to be there.
    """
    return functional.pad(logits[:, label, None] - limit, (1, 0))
