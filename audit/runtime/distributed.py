"""Data parallel training under `torchrun`: each process takes its rows of every batch, gradients are averaged.

No wrapper around the network: objectives call it several times a step, and with other weights than its own. Instead
the loop averages the gradients once a step (Goyal et al. 2017, section 2.1: for equal parts and a mean over images this
is the gradient of the whole batch). Two things differ from one process: batch norm normalises by its own part, and a
weighted mean over classes is taken within each part.
"""

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor, nn

from audit.errors import ConfigError
from audit.runtime.environment import choose_device
from audit.runtime.progress import Advance, stage_progress

PATIENCE = timedelta(hours=12)
"""How long a process waits for the others: the first validates alone. A dead process is `torchrun`'s to notice."""
BUCKET = 2**24
"""Most numbers that are averaged in one message; more would only cost memory."""


def _silent(amount: float = 1) -> None:
    """Advance a bar that is not shown."""


@dataclass(frozen=True)
class Workers:
    """The processes of one training, seen from the one with number `rank` of `size`; alone by default."""

    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        """Whether this process validates, writes files and shows progress."""
        return self.rank == 0

    def part(self, n: int, key: str = "optimiser.batch_size") -> slice:
        """Return this process's rows of `n`; raises ConfigError naming `key` if they cannot be shared out evenly."""
        if n % self.size:
            raise ConfigError(
                f"A batch of {n} images cannot be shared evenly by {self.size} processes: set {key} to "
                f"a multiple of {self.size}."
            )
        each = n // self.size
        return slice(self.rank * each, (self.rank + 1) * each)

    def stage(self, name: str) -> str:
        """Return the name under which this process draws its own random numbers; that of the first is as if alone."""
        return name if self.first else f"{name}/{self.rank}"

    def progress(self, name: str, total: float, unit: str | None = None) -> AbstractContextManager[Advance]:
        """Show a bar in the first process and none in the others."""
        return stage_progress(name, total, unit) if self.first else nullcontext(_silent)

    def average(self, tensors: Iterable[Tensor]) -> None:
        """Replace each float tensor by its mean over the processes, in place, a bucket of them at a time."""
        if self.size == 1:
            return
        bucket: list[Tensor] = []
        for tensor in tensors:
            if bucket and (tensor.dtype != bucket[0].dtype or sum(t.numel() for t in bucket) + tensor.numel() > BUCKET):
                self._average_bucket(bucket)
                bucket = []
            bucket.append(tensor)
        if bucket:
            self._average_bucket(bucket)

    def _average_bucket(self, bucket: list[Tensor]) -> None:
        flat = torch.cat([tensor.reshape(-1) for tensor in bucket])
        dist.all_reduce(flat)
        flat /= self.size
        for tensor, mean in zip(bucket, flat.split([t.numel() for t in bucket]), strict=True):
            tensor.copy_(mean.view_as(tensor))

    def average_gradients(self, network: nn.Module) -> None:
        """Average the gradients of `network`; a parameter that some process did not use counts as zero there."""
        if self.size == 1:
            return
        trained = [p for p in network.parameters() if p.requires_grad]
        used = torch.tensor([p.grad is not None for p in trained], dtype=torch.uint8, device=trained[0].device)
        dist.all_reduce(used, dist.ReduceOp.MAX)
        gradients = []
        for parameter, somewhere in zip(trained, used.tolist(), strict=True):
            if somewhere:
                parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
                gradients.append(parameter.grad)
        self.average(gradients)

    def average_buffers(self, network: nn.Module) -> None:
        """Average the running statistics of `network`; counters are equal in all processes already."""
        self.average(buffer for buffer in network.buffers() if buffer.is_floating_point())

    def mean(self, value: Tensor) -> float:
        """Return the mean over the processes of a scalar."""
        own = value.detach().clone()
        self.average([own])
        return float(own)

    def of_first(self, value: Callable[[], float], device: torch.device) -> float:
        """Return what `value` gives in the first process; the others wait and do not call it."""
        if self.size == 1:
            return value()
        sent = torch.tensor(value() if self.first else 0.0, dtype=torch.float64, device=device)
        dist.broadcast(sent, src=0)
        return float(sent)

    def text_of_first(self, text: Callable[[], str], device: torch.device) -> str:
        """Return the text that `text` gives in the first process; the others do not call it."""
        if self.size == 1:
            return text()
        sent = [text() if self.first else ""]
        dist.broadcast_object_list(sent, src=0, device=device)
        return sent[0]

    def check_equal(self, value: int, what: str, device: torch.device) -> None:
        """Raise ConfigError in every process if `value` is not the same in all."""
        if self.size == 1:
            return
        ends = torch.tensor([value, -value], device=device)
        dist.all_reduce(ends, dist.ReduceOp.MAX)
        if ends[0] != -ends[1]:
            raise ConfigError(f"The processes of this training disagree on {what}: give all the same --out folder.")


ALONE = Workers()


def _numbers() -> tuple[int, int, int]:
    """Rank, number of processes and rank on this machine, from what `torchrun` puts into the environment."""
    if not {"RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"} <= os.environ.keys():
        return 0, 1, 0
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    return rank, size, int(os.environ.get("LOCAL_RANK", rank))


def _own_device(name: str, local: int) -> torch.device:
    kind = ("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name
    if kind == "cpu":
        return torch.device("cpu")
    if kind != "cuda":
        raise ConfigError(f'Device \'{name}\' cannot be shared by processes: set device = "auto", "cuda" or "cpu".')
    if local >= torch.cuda.device_count():
        raise ConfigError(
            f"There is no GPU for process {local} on this machine, which has {torch.cuda.device_count()}: start fewer "
            'with --nproc-per-node, or set device = "cpu".'
        )
    torch.cuda.set_device(local)
    return torch.device("cuda", local)


def is_first() -> bool:
    """Whether this process is alone or the first of those that `torchrun` started."""
    return _numbers()[0] == 0


@contextmanager
def workers(device: str) -> Iterator[tuple[Workers, torch.device]]:
    """Join the processes that `torchrun` started, if it did, and yield them with this process's device.

    `device` is the configuration's: with several processes each takes the GPU of its number on the machine (nccl), or
    the CPU (gloo). Raises ConfigError if there is no such device.
    """
    rank, size, local = _numbers()
    if size == 1:
        yield Workers(), choose_device(device)
        return
    own = _own_device(device, local)
    dist.init_process_group("nccl" if own.type == "cuda" else "gloo", timeout=PATIENCE)
    try:
        yield Workers(rank, size), own
    finally:
        dist.destroy_process_group()
