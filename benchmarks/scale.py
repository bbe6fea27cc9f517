"""Scale: what dividing an audit costs and gains, and whether memory grows with the number of images.

    python benchmarks/scale.py overhead             # seconds a task that does nothing takes, by engine
    python benchmarks/scale.py efficiency           # 1 and 2 workers on the parts of a robustness audit
    python benchmarks/scale.py memory 1000 20000    # peak memory of an audit of so many images
    python benchmarks/scale.py weights 100          # MB of weights: from a file, and from Ray's object store

`overhead`, `efficiency` and `weights` start a Ray cluster on this machine. Measured numbers: README.md, section Scale.
"""

import resource
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from audit.config import AuditConfig, RayConfig, RobustnessConfig
from audit.pipeline.runner import run_audit
from audit.runtime.engine import Engine, open_engine
from audit.storage.cache import Store

CPU = torch.device("cpu")
TASKS = 300
SIDE = 16
NETWORK = """
import torch
from torch import nn

def make():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
"""
DIVIDED = """
[data]
path = "phantom"
phantom = { calibration = 60, audit = 64 }

[robustness]
n = 64
batch_size = 8
steps = 10
eps = ["2/255", "8/255"]
trust = false
corruptions = { n = 64, severities = [3] }

[reliance]
n = 64
interventions = ["border"]

[[classifiers]]
name = "plain"
checkpoint = "shipped:plain"
"""

FEW = RobustnessConfig(n=16, batch_size=8, steps=1, eps=("8/255",), trust=None)


@contextmanager
def cluster(cpus: int) -> Iterator[None]:
    """Run a Ray cluster of one node with so many CPUs, and be connected with it."""
    import ray

    ray.init(num_cpus=cpus, include_dashboard=False, log_to_driver=False, object_store_memory=300 * 2**20)
    try:
        yield
    finally:
        ray.shutdown()


def configured(**changes: object) -> AuditConfig:
    values = {"data": {"path": "phantom"}, "classifiers": [{"name": "plain", "checkpoint": "shipped:plain"}]}
    return AuditConfig.model_validate(values | changes)


def nothing(number: int) -> int:
    return number


def seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def overhead() -> None:
    """Print milliseconds for a task that does nothing, after a first one for each worker."""

    def tell(name: str, engine: Engine | None) -> None:
        assert engine is not None
        first = seconds(lambda: list(engine.map(nothing, range(2))))
        each = seconds(lambda: list(engine.map(nothing, range(TASKS)))) / TASKS
        print(f"{name}: {1000 * each:.2f} ms a task of {TASKS}; {first:.1f} s until two workers have answered")

    with open_engine(configured(workers=2), CPU) as engine:
        tell("processes", engine)
    with cluster(2), open_engine(configured(engine="ray"), CPU) as engine:
        tell("ray", engine)
    with tempfile.TemporaryDirectory() as folder:
        one, other = Store(Path(folder) / "one"), Store(Path(folder) / "other")
        one.put("k", {"x": torch.zeros(600)})
        file, keys = one.raw("k"), [f"{key:064x}" for key in range(TASKS)]
        taken = seconds(lambda: [other.take(key, file) for key in keys]) / TASKS
        read = seconds(lambda: [other.get(key) for key in keys]) / TASKS
        print(f"an entry of {len(file)} bytes: taken in {1000 * taken:.2f} ms, read in {1000 * read:.2f} ms")


def efficiency() -> None:
    """Print the time of the batches of a robustness audit with 1 and 2 workers of one thread each, and what is kept."""
    base = AuditConfig.model_validate(tomllib.loads(DIVIDED))
    times = {}
    for workers in (1, 2):
        with cluster(workers), tempfile.TemporaryDirectory() as folder:
            config = base.model_copy(update={"engine": "ray", "ray": RayConfig()})
            run_audit(config.model_copy(update={"robustness": FEW}))  # workers start, and read images and weights
            store, began = Store(Path(folder)), time.process_time()
            taken = run_audit(config, cache=store).environment.seconds
            own, sizes = time.process_time() - began, [entry.bytes for entry in store.entries()]
        times[workers] = taken["parts: batches"]
        rest = sum(taken.values()) - times[workers]
        print(
            f"{workers} workers: batches {times[workers]:.1f} s, the rest {rest:.1f} s; {own:.1f} s of processor time"
        )
        print(f"here; {len(sizes)} entries of {sum(sizes) / 1e6:.2f} MB")
    print(f"efficiency of two: {times[1] / (2 * times[2]):.2f}")


def memory(sizes: list[int]) -> None:
    """Print the peak memory of audits of folders of so many images, each in a process of its own."""
    for n in sizes:
        with tempfile.TemporaryDirectory() as folder:
            root = Path(folder)
            rng = np.random.default_rng(0)
            for place in range(n):
                kind = root / "images" / "test" / ("dark", "bright")[place % 2]
                kind.mkdir(parents=True, exist_ok=True)
                pixels = rng.integers(0, 128, (SIDE, SIDE)) + 127 * (place % 2)
                Image.fromarray(pixels.astype(np.uint8)).save(kind / f"{place}.png")
            (root / "network.py").write_text(NETWORK)
            command = [sys.executable, __file__, "one", str(root), str(n)]
            subprocess.run(command, check=True)


def one(root: Path, n: int) -> None:
    """Audit the images in `root`, robustness only, and print the peak memory."""
    config = AuditConfig.model_validate(
        {
            "data": {"path": str(root / "images")},
            "robustness": {"n": n, "steps": 1, "eps": ["8/255"], "trust": False, "corruptions": None, "distance": None},
            "reliance": False,
            "classifiers": [{"name": "tiny", "factory": f"{root / 'network.py'}:make"}],
        }
    )
    took = seconds(lambda: run_audit(config))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"{n} images: peak {peak:.0f} MiB, {took:.0f} s")


def weights(megabytes: int) -> None:
    """Print the time to read weights from a file and from Ray's object store."""
    with tempfile.TemporaryDirectory() as folder, cluster(1):
        file = Path(folder) / "weights"
        file.write_bytes(np.random.default_rng(0).bytes(megabytes * 10**6))
        with open_engine(configured(engine="ray"), CPU) as engine:
            assert engine is not None
            placing = seconds(lambda: engine.place(file))
            placed = engine.place(file)
            assert placed is not None
            print(
                f"{megabytes} MB: placed in {placing:.2f} s, read from the file in {seconds(file.read_bytes):.2f} s, "
                f"from the object store in {seconds(placed):.2f} s"
            )


def main() -> None:
    mode, *rest = sys.argv[1:] or ["overhead"]
    if mode == "memory":
        memory([int(one) for one in rest])
    elif mode == "one":
        one(Path(rest[0]), int(rest[1]))
    elif mode == "weights":
        weights(int(rest[0]))
    else:
        {"overhead": overhead, "efficiency": efficiency}[mode]()


if __name__ == "__main__":
    main()
