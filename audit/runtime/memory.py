"""Choose how many items to work on together by the memory that one takes, and halve them when memory runs out.

The cost is measured, not guessed: the work itself is done once on one or two items while the memory it holds is
counted - on a GPU by the allocator, elsewhere by the storages that operations make and let go, which is the same at
every run; the growth of the process is compared with it by `benchmarks/attacks.py large`.
"""

import gc
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from audit.config import MEMORY_ON_CPU, memory_bytes

Result = TypeVar("Result")

KEPT_BESIDES = 4 / 3
"""Growth of a process for every byte in use: a CPU's allocator keeps what lies between the pieces."""
_SPARE = ("can't allocate memory", "not enough memory", "out of memory", "ALLOC_FAILED")
"""What errors of the allocators say; only that of CUDA has a type of its own."""
_LIMIT: ContextVar[str] = ContextVar("max_memory", default="auto")


@contextmanager
def limited(max_memory: str) -> Iterator[None]:
    """Let `allowed` answer by `max_memory`, a memory text or 'auto', within the block."""
    token = _LIMIT.set(max_memory)
    try:
        yield
    finally:
        _LIMIT.reset(token)


def stated(own: str | None = None) -> bool:
    """Whether the limit is an amount that somebody chose; `own` is a stage's own limit in words, if any."""
    return (_LIMIT.get() if own is None else own) != "auto"


def allowed(device: torch.device, own: str | None = None) -> int:
    """Bytes that the items worked on together may take on `device`; `own` is a stage's own limit in words, if any.

    'auto' is MEMORY_ON_CPU, and half of the memory of a GPU, which is there for nothing else.
    """
    text = _LIMIT.get() if own is None else own
    if text != "auto":
        return memory_bytes(text)
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory) // 2
    return memory_bytes(MEMORY_ON_CPU)


class _Held(TorchDispatchMode):
    """Count the bytes of the storages that operations make, from when they are made to when they are let go."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: dict[int, weakref.ref[Any]] = {}

    def _add(self, tensor: Tensor, new: bool) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._known:
            return
        size = storage.nbytes() if new else 0

        def gone(_: object) -> None:
            self._known.pop(key, None)
            self.now -= size

        self._known[key] = weakref.ref(storage, gone)
        self.now += size
        self.peak = max(self.peak, self.now)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for given in tree_iter((args, kwargs)):
            if isinstance(given, Tensor):
                self._add(given, new=False)
        found = func(*args, **(kwargs or {}))
        for made in tree_iter(found):
            if isinstance(made, Tensor):
                self._add(made, new=True)
        return found


def peak_bytes(work: Callable[[], object], device: torch.device) -> int:
    """Bytes that `work` holds on `device` at its peak, beyond what was held before."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        work()
        torch.cuda.synchronize(device)
        return int(torch.cuda.max_memory_allocated(device)) - before
    with _Held() as held:
        work()
    return int(held.peak * KEPT_BESIDES)


def fitting(wanted: int, each: int, budget: int) -> int:
    """How many items of `each` bytes fit in `budget` bytes: at most `wanted` and at least 1."""
    return max(1, min(wanted, budget // max(each, 1)))


def out_of_memory(error: BaseException | None) -> bool:
    """Whether `error`, or one that it was raised from, says that there was no memory left."""
    while error is not None:
        if isinstance(error, torch.OutOfMemoryError | MemoryError):
            return True
        if isinstance(error, RuntimeError) and any(text in str(error) for text in _SPARE):
            return True
        error = error.__cause__
    return False


def halving(work: Callable[[], Result], halve: Callable[[], bool]) -> Result:
    """Return `work()`; where memory runs out, call it anew from the beginning as often as `halve` made it smaller.

    `halve` returns False where there is nothing left to halve, and the error is then raised.
    """
    while True:
        try:
            return work()
        except Exception as error:
            if not out_of_memory(error) or not halve():
                raise
        # Only here, behind the handler, have the error and the tensors of its frames been let go.
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def at_once(wanted: int, one: Callable[[], object], device: torch.device, budget: int) -> int:
    """How many items fit in `budget` bytes on `device`, at most `wanted`; `one` works on a single item, to be measured.

    Nothing is measured where no more than one is wanted.
    """
    return fitting(wanted, peak_bytes(one, device), budget) if wanted > 1 else 1


def in_slices(items: int, most: int, work: Callable[[slice], Result]) -> list[Result]:
    """Call `work` with slices of at most `most` of the `items`, in order; returns what it returned.

    A slice is halved where memory runs out; what was done before it is kept.
    """
    found: list[Result] = []
    start = 0

    def halve() -> bool:
        nonlocal most
        tried = min(most, items - start)
        most = max(1, tried // 2)
        return most < tried

    def next_slice() -> Result:
        return work(slice(start, min(start + most, items)))

    while start < items:
        found.append(halving(next_slice, halve))
        start = min(start + most, items)
    return found
