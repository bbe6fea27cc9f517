"""Where parts of an audit are computed: in processes of this machine, one a GPU, or on the nodes of a Ray cluster.

An engine is one method, `map`. It takes a function that pickles, and gives back what that returns for every item as
soon as it is there. An item that no process was left to compute is None: the audit then computes it itself, so that
a lost node costs time and no number.
"""

import logging
import os
import socket
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import torch

from audit.config import AuditConfig, RayConfig
from audit.errors import ConfigError
from audit.runtime.allocator import keep_freed_memory
from audit.runtime.processes import begun, start_ahead
from audit.runtime.progress import choose_style

Item = TypeVar("Item")
Result = TypeVar("Result")

AHEAD = 4
"""Tasks that wait for each one that can run: enough to keep a node busy, and few results in memory at once."""

PATIENCE = 10.0
"""Seconds after which it is looked again whether there is any node left."""


Placed = Callable[[], bytes]
"""Gives what was placed, in whichever process."""


class Engine(Protocol):
    """Computes independent items elsewhere."""

    def place(self, file: Path) -> Placed | None:
        """Have what is in `file` handed out wherever items are computed; None: the file can be read there."""
        ...

    def map(self, work: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[tuple[int, Result | None]]:
        """Yield the place of every item with `work` of it, as they are done; None: whoever computed it was lost.

        Raises what `work` raises.
        """
        ...

    def begin(self, work: Callable[[], object]) -> None:
        """Have processes that are about to wait for items do `work` while this one goes on; whether it fails or not."""
        ...


@contextmanager
def open_engine(config: AuditConfig, device: torch.device) -> Iterator[Engine | None]:
    """Yield the engine that `config` asks for; None where one process does everything.

    Raises ConfigError where there is no Ray, no cluster, or no node that offers what a task is to have.
    """
    if config.engine == "ray":
        with _cluster(config.ray, device) as engine:
            yield engine
        return
    count = _workers(config, device)
    if count == 1:
        yield None
        return
    pool = _processes(count, device)
    try:
        yield Processes(pool, count)
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _workers(config: AuditConfig, device: torch.device) -> int:
    """How many processes the local engine starts: as many as asked for, or one for every GPU that may be taken."""
    if config.workers != "auto":
        return config.workers
    return max(1, torch.cuda.device_count()) if device.type == "cuda" and device.index is None else 1


def _processes(count: int, device: torch.device) -> ProcessPoolExecutor:
    """Start processes, each with its share of the threads and, where there are GPUs, one of these."""
    # No copies of this process, which would share the state of its threads and of CUDA.
    starting = start_ahead()
    gpus = starting.SimpleQueue()
    for number in range(count):
        gpus.put(_gpus()[number % len(_gpus())] if device.type == "cuda" else None)
    threads = max(1, torch.get_num_threads() // count)
    return ProcessPoolExecutor(count, starting, _begin, (gpus, threads, dict(os.environ)))


@dataclass(frozen=True)
class Processes:
    """Processes of this machine."""

    pool: ProcessPoolExecutor
    count: int

    def place(self, file: Path) -> None:
        """Do nothing: it is the same machine."""

    def map(self, work: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[tuple[int, Result | None]]:
        """Do as `Engine` says; where a process ends, so do the others, and nothing more is computed by them."""
        queue, waiting = enumerate(items), dict[Future[Result], int]()
        while True:
            try:
                for place, item in islice(queue, AHEAD * self.count - len(waiting)):
                    waiting[self.pool.submit(work, item)] = place
            except BrokenProcessPool:
                return
            if not waiting:
                return
            for done in wait(waiting, return_when=FIRST_COMPLETED).done:
                place = waiting.pop(done)
                try:
                    yield place, done.result()
                except BrokenProcessPool:
                    _given_up(place, "a process ended")
                    yield place, None

    def begin(self, work: Callable[[], object]) -> None:
        """Do as `Engine` says."""
        for _ in range(self.count):
            self.pool.submit(work)


def _gpus() -> list[str]:
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return visible.split(",") if visible else [str(number) for number in range(torch.cuda.device_count())]


def _begin(gpus: Any, threads: int, environment: Mapping[str, str]) -> None:
    begun(environment)
    gpu = gpus.get()
    if gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu  # read when CUDA is first used
    torch.set_num_threads(threads)
    keep_freed_memory()
    choose_style("none")  # the bar of all parts is the audit's


def _given_up(place: int, why: str) -> None:
    logging.getLogger(__name__).warning("Part %d of the work is computed here: %s.", place + 1, why)


@contextmanager
def _cluster(settings: RayConfig, device: torch.device) -> Iterator[Engine]:
    try:
        import ray
    except ImportError:
        raise ConfigError("engine = \"ray\" needs Ray: run `pip install 'spruce-audit[ray]'`.") from None
    ours = not ray.is_initialized()
    if ours:
        try:
            _check_answers(settings.address)
            ray.init(address=settings.address, log_to_driver=False, logging_level=logging.ERROR)
        except (OSError, RuntimeError, ValueError):
            raise ConfigError(
                f"No Ray cluster answers at ray.address = '{settings.address}': start one with `ray start --head`, "
                'or set engine = "local".'
            ) from None
    try:
        yield _on_ray(ray, settings, device)
    finally:
        if ours:
            ray.shutdown()


def _check_answers(address: str) -> None:
    """Raise OSError if nothing listens at an `address` with a port: Ray itself would try for minutes."""
    host, colon, port = address.rpartition("://")[2].rpartition(":")
    if colon:
        socket.create_connection((host, int(port)), timeout=PATIENCE).close()


def _on_ray(ray: Any, settings: RayConfig, device: torch.device) -> "Cluster":
    """Return the engine on the cluster that this process is connected with, if some node can take a task."""
    gpus = settings.num_gpus if settings.num_gpus is not None else float(device.type == "cuda")
    if (gpus > 0) != (device.type == "cuda"):
        raise ConfigError(
            f"ray.num_gpus is {gpus:g} and this process runs on '{device.type}', but all parts of an audit run on one "
            "kind of device: start it on a node like those that the tasks are to run on, or change ray.num_gpus."
        )
    engine = Cluster(ray, settings, gpus)
    if not engine.at_once():
        raise ConfigError(
            f"No node of the Ray cluster has {settings.num_cpus:g} CPUs and {gpus:g} GPUs for a task: lower "
            "ray.num_cpus or ray.num_gpus, or add such a node."
        )
    return engine


@dataclass(frozen=True)
class Cluster:
    """The nodes of a Ray cluster, where every task is given `gpus` GPUs."""

    ray: Any
    settings: RayConfig
    gpus: float

    def at_once(self) -> int:
        """How many tasks the nodes that are there can run at the same time."""
        needed = {"CPU": self.settings.num_cpus, **({"GPU": self.gpus} if self.gpus else {})}
        nodes = [node["Resources"] for node in self.ray.nodes() if node["Alive"]]
        return sum(int(min(node.get(kind, 0) / amount for kind, amount in needed.items())) for node in nodes)

    def place(self, file: Path) -> Placed:
        """Put what is in `file` into the object store, from which every node that asks for it gets it once."""
        return partial(_got, self.ray.put(np.fromfile(file, dtype=np.uint8)))

    def map(self, work: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[tuple[int, Result | None]]:
        """Do as `Engine` says; a task whose node is lost is begun anew elsewhere, `ray.max_retries` times."""
        ray, settings = self.ray, self.settings
        task = ray.remote(_on_node).options(
            num_cpus=settings.num_cpus, num_gpus=self.gpus, max_retries=settings.max_retries
        )
        shared, threads = ray.put(work), max(1, int(settings.num_cpus))
        queue, waiting = enumerate(items), dict[Any, int]()
        try:
            while able := self.at_once():
                for place, item in islice(queue, max(0, AHEAD * able - len(waiting))):
                    waiting[task.remote(shared, threads, item)] = place
                if not waiting:
                    return
                for done in ray.wait(list(waiting), timeout=PATIENCE)[0]:
                    place = waiting.pop(done)
                    try:
                        yield place, ray.get(done)
                    except ray.exceptions.RayTaskError as error:
                        raise error.cause from None
                    except ray.exceptions.RayError as error:
                        _given_up(place, type(error).__name__)
                        yield place, None
            for place in waiting.values():
                _given_up(place, "no node is left")
                yield place, None
        finally:
            for left in waiting:
                ray.cancel(left)

    def begin(self, work: Callable[[], object]) -> None:
        """Do nothing: which nodes will be given a task is not known."""


def _got(reference: Any) -> bytes:
    import ray

    return bytes(ray.get(reference))


def _on_node(work: Callable[[Item], Result], threads: int, item: Item) -> Result:
    torch.set_num_threads(threads)
    return work(item)
