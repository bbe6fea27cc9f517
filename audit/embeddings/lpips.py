"""LPIPS v0.1: squared differences of unit-normalised features, weighted by learnt non-negative linear layers.

`d(x, y) = sum_l mean_hw w_l . (f_l(x) / |f_l(x)| - f_l(y) / |f_l(y)|)^2` over five layers of an ImageNet network (Zhang
et al. 2018, arXiv:1801.03924, eq. 1), version 0.1 of the weights. The backbones are torchvision's; their weights and
the linear layers are files of `audit.storage.pretrained`, in torch's or in flax's names and layouts.
"""

import re
from collections.abc import Sequence
from typing import Literal

import torch
import torchvision
from torch import Tensor, nn

from audit.embeddings.embedding import check_pair
from audit.errors import MetricError
from audit.runtime.memory import allowed, at_once, in_slices

Backbone = Literal["alex", "vgg"]
SMALLEST = {"alex": 31, "vgg": 16}
"""Below this side the network's last pooling is left without a pixel."""
TAPS = {"alex": (1, 4, 7, 9, 11), "vgg": (3, 8, 15, 22, 29)}
"""torchvision's layer numbers whose (rectified) output is compared."""
_SHIFT, _SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
"""Of the three channels in [-1, 1], as the weights were trained with."""


def three_channels(images: Tensor) -> Tensor:
    """Repeat grey images `[N, 1, H, W]` to three channels."""
    return images.expand(-1, 3, -1, -1) if images.shape[1] == 1 else images


def _unit(features: Tensor) -> Tensor:
    # The floor keeps the gradient of the root finite where every channel is zero.
    return features / (features.square().sum(1, keepdim=True).clamp_min(1e-20).sqrt() + 1e-10)


class Lpips(nn.Module):
    """LPIPS v0.1 between images in [0, 1]; its own range [-1, 1] stays inside."""

    shift: Tensor
    scale: Tensor

    def __init__(self, features: nn.Sequential, heads: Sequence[Tensor], net: Backbone, weights_sha256: str) -> None:
        """`features` are torchvision's layers, `heads` the linear weights `[c]` of the tapped layers."""
        super().__init__()
        self.taps = TAPS[net]
        self.features = features[: self.taps[-1] + 1].eval().requires_grad_(False)
        for i, head in enumerate(heads):
            self.register_buffer(f"head{i}", head.reshape(1, -1, 1, 1))
        self.register_buffer("shift", torch.tensor(_SHIFT).reshape(1, 3, 1, 1))
        self.register_buffer("scale", torch.tensor(_SCALE).reshape(1, 3, 1, 1))
        self.name = f"lpips-v0.1-{net}"
        self.smallest = SMALLEST[net]
        self.weights_sha256 = weights_sha256

    def maps(self, images: Tensor) -> list[Tensor]:
        """Tapped layers `[N, c, h, w]` of images `[N, 1 or 3, H, W]` in [0, 1], of unit length at every place.

        Raises MetricError on too small images.
        """
        if min(images.shape[2:]) < self.smallest:
            raise MetricError(
                f"{self.name} is not defined on images of {images.shape[2]}x{images.shape[3]}: the side must be at "
                f"least {self.smallest}."
            )
        value, maps = (2 * three_channels(images) - 1 - self.shift) / self.scale, []
        for i, layer in enumerate(self.features):
            value = layer(value)
            if i in self.taps:
                maps.append(_unit(value))
        return maps

    def comparable(self, images: Tensor) -> list[Tensor]:
        """Maps of which the mean over the layers of the summed squared differences is the distance."""
        maps = enumerate(self.maps(images))
        return [one * (len(self.taps) * self.get_buffer(f"head{i}")).sqrt() for i, one in maps]

    def distance(self, a: Tensor, b: Tensor) -> Tensor:
        """Distance `[N]` between images `[N, 1 or 3, H, W]` in [0, 1]; raises MetricError on too small ones."""
        check_pair(a, b, "images of LPIPS")
        pairs = zip(self.maps(a), self.maps(b), strict=True)
        layers = [((p - q).square() * self.get_buffer(f"head{i}")).sum(1) for i, (p, q) in enumerate(pairs)]
        return torch.stack([layer.mean((1, 2)) for layer in layers]).sum(0)

    @torch.no_grad()
    def distance_all(self, a: Tensor, b: Tensor, batch_size: int = 64) -> Tensor:
        """Distance `[N]` on the CPU, without gradient.

        `batch_size` pairs at a time on the network's device, or as many as fit in `max_memory`.
        """
        device = self.shift.device

        def pairs(rows: slice) -> Tensor:
            return self.distance(a[rows].to(device), b[rows].to(device)).cpu()

        most = at_once(min(batch_size, len(a)), lambda: pairs(slice(1)), device, allowed(device))
        return torch.cat(in_slices(len(a), most, pairs))


def _layers(net: Backbone) -> nn.Sequential:
    # Without storage: nothing is drawn from the global generator for weights that are replaced at once.
    with torch.device("meta"):
        whole = torchvision.models.alexnet() if net == "alex" else torchvision.models.vgg16()
    for layer in whole.features:
        if isinstance(layer, nn.ReLU):
            layer.inplace = False
    return whole.features


def from_torch(backbone: dict[str, Tensor], heads: dict[str, Tensor], net: Backbone, weights_sha256: str) -> Lpips:
    """LPIPS of torchvision's ImageNet weights and the linear layers under their own names (`lin0.model.1.weight`)."""
    layers = _layers(net)
    given = {key.removeprefix("features."): value for key, value in backbone.items() if key.startswith("features.")}
    layers.load_state_dict(given, assign=True)
    return Lpips(layers, [heads[f"lin{i}.model.1.weight"].flatten() for i in range(5)], net, weights_sha256)


def from_flax(arrays: dict[str, Tensor], net: Backbone, weights_sha256: str) -> Lpips:
    """LPIPS of flax's arrays: `*/Conv_i/kernel` (HWIO) and `bias` in the order of the layers, heads `NetLinLayer_i`."""
    layers = _layers(net)
    convolutions = [i for i, layer in enumerate(layers) if isinstance(layer, nn.Conv2d)]
    given, heads = {}, {}
    for key, value in arrays.items():
        if head := re.fullmatch(r"NetLinLayer_(\d)/Conv_0/kernel", key):
            heads[int(head[1])] = value.flatten()
        elif found := re.fullmatch(r"[^/]+/Conv_(\d+)/(kernel|bias)", key):
            kernel = found[2] == "kernel"
            name = f"{convolutions[int(found[1])]}.{'weight' if kernel else 'bias'}"
            given[name] = value.permute(3, 2, 0, 1).contiguous() if kernel else value
    layers.load_state_dict(given, assign=True)
    return Lpips(layers, [heads[i] for i in range(5)], net, weights_sha256)
