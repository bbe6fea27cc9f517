"""The domain embedding: a small encoder that is trained without labels on the images that a generator is trained on.

It is trained by contrasting views (`audit.training.embedding.train`), without any label or audited model, and is of use
for that kind of images only. Results name it by the name in its file.
"""

import json
import math
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.nn import functional

from audit.embeddings.layers import convolution
from audit.errors import MetricError
from audit.storage.files import hash_file
from audit.storage.tensors.tensor_files import fill_weights, read_safetensors

KIND = "domain-embedding"
POOLED = 4
"""The last map is brought to 4x4 and flattened, not averaged: where a thing lies is part of what is seen."""
SQUEEZED = 32
RESERVED = ("clip", "inception", "lpips", "discriminator", "phantom-factors", "pixels")
"""Beginnings of names that belong to other networks; numbers resting on them are reported under other names."""


def default_widths(height: int, width: int) -> tuple[int, ...]:
    """Channels of the stages for images of a size: 16 doubling to 128, as many halvings as leave a side of about 4."""
    stages = min(max(round(math.log2(min(height, width) / 4)), 2), 6)
    return tuple(min(16 * 2**i, 128) for i in range(stages))


def reserved_name(name: str) -> str | None:
    """Return the other network that `name` would be taken for, if there is one."""
    return next((word for word in RESERVED if name.lower().startswith(word)), None)


class Stage(nn.Module):
    """Halve the side, then refine residually."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.halve = convolution(inputs, outputs, 2)
        self.refine = convolution(outputs, outputs, 1)

    def forward(self, maps: Tensor) -> Tensor:
        halved: Tensor = self.halve(maps)
        refined: Tensor = halved + self.refine(halved)
        return refined


class DomainEncoder(nn.Module):
    """Small convolutional encoder of images `[N, C, H, W]` in [0, 1] of one shape `image_shape` (C, H, W).

    `widths` are the channels of its stages (multiples of 8), each of half the side of the one before; `features` is
    the length of the embedding. The buffers `mean` and `std` `[C]` normalise the pixels inside.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, name: str, image_shape: tuple[int, int, int], widths: tuple[int, ...] | None = None, features: int = 128
    ) -> None:
        super().__init__()
        channels, height, width = image_shape
        self.name = name
        self.weights_sha256 = ""
        self.image_shape = (channels, height, width)
        self.widths = tuple(widths or default_widths(height, width))
        self.features = features
        before = (channels, *self.widths[:-1])
        self.stages = nn.ModuleList([Stage(a, b) for a, b in zip(before, self.widths, strict=True)])
        self.squeeze = nn.Conv2d(self.widths[-1], SQUEEZED, 1)
        self.last = nn.Linear(SQUEEZED * POOLED**2, features)
        self.norm = nn.LayerNorm(features)
        self.register_buffer("mean", torch.full((channels,), 0.5))
        self.register_buffer("std", torch.full((channels,), 0.25))

    def maps(self, images: Tensor) -> list[Tensor]:
        """Return the feature maps of the stages `[N, c, h, w]`, fine to coarse; raises MetricError on other shapes."""
        if images.ndim != 4 or tuple(images.shape[1:]) != self.image_shape:
            raise MetricError(
                f"The domain embedding '{self.name}' reads images [N, C, H, W] of {self.image_shape}; given: "
                f"{tuple(images.shape)}. Train one on such images, or name another embedding."
            )
        out, hidden = [], (images - self.mean[:, None, None]) / self.std[:, None, None]
        for stage in self.stages:
            hidden = stage(hidden)
            out.append(hidden)
        return out

    def embed(self, images: Tensor) -> Tensor:
        """Return the embedding `[N, features]`, each row of mean 0 and deviation 1 before a learnt scale."""
        pooled = functional.adaptive_avg_pool2d(self.maps(images)[-1], POOLED)
        features: Tensor = self.norm(self.last(self.squeeze(pooled).flatten(1)))
        return features

    def forward(self, images: Tensor) -> Tensor:
        """Return the embedding `[N, features]`."""
        return self.embed(images)

    def metadata(self) -> dict[str, str]:
        """Metadata of the weights' file, from which the network can be built again."""
        values = {"image_shape": self.image_shape, "widths": self.widths, "features": self.features}
        return {"kind": KIND, "name": self.name} | {k: json.dumps(v) for k, v in values.items()}


def _settings(metadata: dict[str, str]) -> dict[str, Any]:
    """Read `DomainEncoder`'s arguments; raises ValueError on what could not be built or is no domain embedding."""
    if metadata.get("kind") != KIND:
        raise ValueError("its metadata does not say that it is one")
    name = metadata["name"]
    if not name or reserved_name(name) is not None:
        raise ValueError(f"its name '{name}' belongs to another network")
    shape, widths, features = (json.loads(metadata[key]) for key in ("image_shape", "widths", "features"))
    counts = [*shape, *widths, features]
    if len(shape) != 3 or not 1 <= len(widths) <= 8 or not all(isinstance(n, int) and 1 <= n <= 4096 for n in counts):
        raise ValueError("its architecture is not one of ours")
    return {"name": name, "image_shape": tuple(shape), "widths": tuple(widths), "features": features}


def load_domain(path: str | Path) -> DomainEncoder:
    """Read a domain embedding from safetensors, in evaluation mode and frozen; raises MetricError naming the file."""
    file = Path(path)
    if not file.is_file():
        raise MetricError(
            f"There is no domain embedding at '{file}': check the path, or make one with `spruce-audit train "
            "embedding`."
        )
    try:
        tensors, metadata = read_safetensors(file)
        settings = _settings(metadata)
        with torch.device("meta"):  # shapes only: a file cannot make us allocate what it merely claims
            network = DomainEncoder(**settings)
        fill_weights(network, tensors)
    except (SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0][:300]
        raise MetricError(
            f"'{file}' does not hold a domain embedding ({reason}): make one with `spruce-audit train embedding`."
        ) from None
    network.weights_sha256 = hash_file(file)
    return network.eval().requires_grad_(False)
