"""The real images of a training: rows as a function of the step, pixels from memory or read ahead from files.

Shuffled passes over the set, one after the other without a seam. Every process of a training works out the whole
batch's rows and reads its own, so that together they see what one process would. Sets that fit a bound are kept as
bytes (on the GPU, if there is one); larger ones are decoded by threads while the networks compute.
"""

import os
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from types import TracebackType

import torch
from torch import Tensor

from audit.data.audit_set import AuditSet
from audit.runtime.distributed import ALONE, Workers
from audit.storage.checkpoint import fingerprint
from audit.storage.keys import hash_tensor
from audit.training.shared.passes import Passes

AHEAD = 3
"""Batches that are decoded before they are asked for."""
HASHED = 256
"""Images whose pixels tell a set from others; the names of all do, too."""


def read_uint8(dataset: AuditSet, batch_size: int = 256) -> Tensor:
    """Read a whole set as uint8 `[N, C, H, W]`: what a discriminator sees again and again, at a byte a pixel."""
    out = torch.empty(len(dataset), *dataset.image_shape, dtype=torch.uint8)
    for images, _, rows in dataset.batches(batch_size):
        out[rows] = to_uint8(images)
    return out


def to_uint8(images: Tensor) -> Tensor:
    """Round pixels in [0, 1] to bytes."""
    return (images * 255).round().to(torch.uint8)


@dataclass
class Reals:
    """Real images by step: `batch(step)` gives uint8 `[B / processes, C, H, W]` and int64 labels on `device`.

    To be used as a context: threads that read ahead end with it.
    """

    dataset: AuditSet
    batch_size: int
    seed: int
    device: torch.device
    cache_mb: float
    workers: Workers = ALONE
    _cached: Tensor | None = None
    _labels: Tensor = field(init=False)
    _pool: ThreadPoolExecutor | None = None
    _waiting: dict[int, tuple[Tensor, Future[Tensor]]] = field(default_factory=dict)
    _passes: Passes = field(init=False)

    def __post_init__(self) -> None:
        self._passes = Passes(len(self.dataset), self.batch_size, self.seed, "generator order ", seamless=True)
        self._labels = self.dataset.row_labels
        channels, height, width = self.dataset.image_shape
        if len(self.dataset) * channels * height * width <= self.cache_mb * 2**20:
            self._cached = read_uint8(self.dataset)

    @property
    def streamed(self) -> bool:
        """Whether images are decoded again and again, for they do not fit `cache_mb`."""
        return self._cached is None

    def fingerprint(self) -> str:
        """Tell this set from others by all names and labels and the pixels of some images, streamed or not."""
        some = torch.linspace(0, len(self.dataset) - 1, min(HASHED, len(self.dataset))).long()
        names = "/".join(self.dataset.row_ids)
        return fingerprint(f"{names}/{hash_tensor(self._labels)}/{hash_tensor(self.images(some))}")

    def images(self, rows: Tensor) -> Tensor:
        """Uint8 images `[n, C, H, W]` of `rows`, on the CPU."""
        return to_uint8(self.dataset.images(rows)) if self._cached is None else self._cached[rows.cpu()].cpu()

    def labels(self, rows: Tensor) -> Tensor:
        """Labels `[n]` of `rows`, on the CPU."""
        return self._labels[rows]

    def rows(self, step: int) -> Tensor:
        """This process's rows at `step`."""
        return self._passes.rows(step)[self.workers.part(self.batch_size, "batch_size")]

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        """Images and labels of `step`; steps are asked for in order."""
        if self._cached is None:
            rows, images = self._ahead(step)
        else:
            rows = self.rows(step)
            if self._cached.device != self.device:
                self._cached = self._cached.to(self.device)
            images = self._cached[rows.to(self.device)]
        return images.to(self.device), self._labels[rows].to(self.device)

    def _ahead(self, step: int) -> tuple[Tensor, Tensor]:
        if self._pool is None:
            self._pool = ThreadPoolExecutor(max(1, min(AHEAD, (os.cpu_count() or 2) - 1)), "images")
        for later in range(step, step + AHEAD):
            if later not in self._waiting:
                rows = self.rows(later)
                self._waiting[later] = rows, self._pool.submit(self.images, rows)
        rows, reading = self._waiting.pop(step)
        return rows, reading.result()

    def __enter__(self) -> "Reals":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
