"""Perceptual distance in a named feature network (Zhang et al. 2018, arXiv:1801.03924, eq. 1, uniform channel weights).

Feature vectors are scaled to unit length at every place, their squared differences summed over channels, averaged over
the image and over the layers. With other weights or another network than Zhang's it is not LPIPS and not called so;
LPIPS itself, where it is the network, weights its channels as it has learnt to.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from audit.embeddings.embedding import MapNetwork, check_pair
from audit.embeddings.lpips import Lpips
from audit.errors import MetricError
from audit.runtime.memory import allowed, at_once, in_slices


def unit_channels(maps: Sequence[Tensor], eps: float = 1e-10) -> list[Tensor]:
    """Scale the channel vector at every place of each map `[N, c, h, w]` to unit length."""
    # The epsilon stands under the root: the gradient of a norm is undefined where all channels are zero.
    return [m / (m.square().sum(1, keepdim=True) + eps).sqrt() for m in maps]


def comparable(network: MapNetwork, images: Tensor) -> list[Tensor]:
    """Maps `[N, c, h, w]` of `images` in [0, 1], one a layer, for `distance_of_maps`."""
    return network.comparable(images) if isinstance(network, Lpips) else unit_channels(network.maps(images))


def distance_of_maps(a: Sequence[Tensor], b: Sequence[Tensor]) -> Tensor:
    """Distance `[N]` between two lists of `comparable` maps; differentiable.

    An optimisation against fixed images computes their maps once and calls this at every step.
    """
    if not a or len(a) != len(b):
        raise MetricError(f"A perceptual distance needs the same layers of both images; given {len(a)} and {len(b)}.")
    return torch.stack([(p - q).square().sum(1).mean((1, 2)) for p, q in zip(a, b, strict=True)]).mean(0)


def perceptual_distance(network: MapNetwork, a: Tensor, b: Tensor) -> Tensor:
    """Distance `[N]` between images `a` and `b` `[N, C, H, W]` in [0, 1]; >= 0, symmetric, differentiable.

    Raises MetricError if images are out of bounds or differ in shape.
    """
    check_pair(a, b, "images of a perceptual distance")
    return distance_of_maps(comparable(network, a), comparable(network, b))


@torch.no_grad()
def perceptual_all(
    network: MapNetwork, a: Tensor, b: Tensor, batch_size: int = 128, device: torch.device | str | None = None
) -> Tensor:
    """Distance `[N]` on the CPU between two sets of images, without gradient.

    `batch_size` pairs at a time, or as many as fit in `max_memory`.
    """
    place = a.device if device is None else torch.device(device)

    def pairs(rows: slice) -> Tensor:
        return perceptual_distance(network, a[rows].to(place), b[rows].to(place)).cpu()

    most = at_once(min(batch_size, len(a)), lambda: pairs(slice(1)), place, allowed(place))
    return torch.cat(in_slices(len(a), most, pairs))
