"""Feature networks that distribution metrics and perceptual distances rest on, and the one way to run them in batches.

A distance between sets of images is a statement about an embedding as much as about the images, so each network
carries its name and the hash of its weights, and no metric falls back from one network to another.
"""

from collections.abc import Iterator
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.nn import functional

from audit.data.audit_set import AuditSet
from audit.errors import MetricError
from audit.results import Embedding
from audit.runtime.memory import allowed, at_once, in_slices


@runtime_checkable
class Named(Protocol):
    """A network that results name."""

    @property
    def name(self) -> str:
        """Name under which results that rest on the network are reported."""

    @property
    def weights_sha256(self) -> str:
        """SHA-256 of the weights, hexadecimal."""


def named(network: Named) -> Embedding:
    """The line of the results that says which network a number rests on."""
    return Embedding(name=network.name, weights_sha256=network.weights_sha256)


@runtime_checkable
class Embedder(Named, Protocol):
    """A named network that maps images to vectors."""

    def embed(self, images: Tensor) -> Tensor:
        """Map images `[N, C, H, W]` in [0, 1] to vectors `[N, d]`."""


@runtime_checkable
class MapNetwork(Named, Protocol):
    """A named network that shows its inner feature maps."""

    def maps(self, images: Tensor) -> list[Tensor]:
        """Map images `[N, C, H, W]` in [0, 1] to feature maps `[N, c, h, w]`, one tensor a layer; differentiable."""


@runtime_checkable
class FeatureNetwork(Embedder, MapNetwork, Protocol):
    """An embedder that also shows its inner feature maps, for perceptual distances."""


class Pixels:
    """Raw pixels, averaged to a side of at most `side`: an embedding without weights."""

    name = "pixels"
    weights_sha256 = ""

    def __init__(self, side: int) -> None:
        self.side = side

    def embed(self, images: Tensor) -> Tensor:
        """Embedding `[N, C * h * w]` of images `[N, C, H, W]`."""
        side = (min(self.side, images.shape[2]), min(self.side, images.shape[3]))
        return functional.adaptive_avg_pool2d(images, side).flatten(1)


def check_images(images: Tensor, what: str) -> None:
    """Assert the pixel contract: floating `[N, C, H, W]`, finite, in [0, 1]. Raises MetricError naming `what`."""
    if images.ndim != 4 or not images.is_floating_point():
        raise MetricError(
            f"The {what} are {images.dtype} of shape {tuple(images.shape)} where floating [N, C, H, W] is expected; "
            "convert bytes with x.float() / 255."
        )
    if images.numel() == 0:
        return
    low, high = images.aminmax()
    # A not-a-number fails both comparisons, so it is caught here as well.
    if not (low >= -1e-6 and high <= 1 + 1e-6):
        raise MetricError(
            f"The {what} span [{float(low):.4g}, {float(high):.4g}] where [0, 1] is expected; "
            "undo the normalisation before measuring."
        )


def check_pair(a: Tensor, b: Tensor, what: str) -> None:
    """Assert that `a` and `b` keep the pixel contract and have one shape. Raises MetricError."""
    check_images(a, what)
    check_images(b, what)
    if a.shape != b.shape:
        raise MetricError(f"The {what} differ in shape: {tuple(a.shape)} and {tuple(b.shape)}; give pairs of one size.")


def check_embeddings(a: Tensor, b: Tensor, min_images: int, metric: str) -> None:
    """Assert two sets of vectors `[n, d]`, `[m, d]`, finite and large enough for `metric`. Raises MetricError."""
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1]:
        raise MetricError(
            f"{metric} is defined between [n, d] and [m, d]; given {tuple(a.shape)} and {tuple(b.shape)}: "
            "embed both sets with the same network."
        )
    fewest = min(len(a), len(b))
    if fewest < min_images:
        raise MetricError(
            f"{metric} on {fewest} images is refused, at least {min_images} are needed: "
            "audit more query images or lower metrics.min_images."
        )
    if not (torch.isfinite(a).all() and torch.isfinite(b).all()):
        raise MetricError(f"{metric} met embeddings that are not finite: check the network's weights and the images.")


def _image_batches(images: "Tensor | AuditSet", batch_size: int) -> Iterator[Tensor]:
    if isinstance(images, Tensor):
        yield from images.split(batch_size)
    else:
        for batch, _, _ in images.batches(batch_size):
            yield batch


@torch.no_grad()
def embed_all(
    network: Embedder, images: "Tensor | AuditSet", batch_size: int = 256, device: torch.device | str | None = None
) -> Tensor:
    """Embed a whole set, `batch_size` images at a time or as many as fit in `max_memory`: float32 `[N, d]` on the CPU.

    `images` is a tensor `[N, C, H, W]` in [0, 1] or an AuditSet, which is read batch by batch. `device` is where the
    network lives; default: where the images are. Raises MetricError if images are out of bounds or there are none.
    """
    parts: list[Tensor] = []
    most = 0
    for batch in _image_batches(images, batch_size):
        check_images(batch, "images to embed")
        place = batch.device if device is None else torch.device(device)

        def embed(rows: slice, batch: Tensor = batch, place: torch.device = place) -> Tensor:
            return network.embed(batch[rows].to(place)).float().cpu()

        most = most or at_once(len(batch), lambda: embed(slice(1)), place, allowed(place))
        parts += in_slices(len(batch), most, embed)
    if not parts or sum(len(p) for p in parts) == 0:
        raise MetricError("There are no images to embed: check the split and the query selection.")
    return torch.cat(parts)
