"""Scale: what dividing an audit costs and gains, and whether memory grows with the number of images.

    python benchmarks/scale.py overhead             # seconds a task that does nothing takes, by engine
    python benchmarks/scale.py efficiency           # 1 and 2 workers on the parts of a robustness audit
    python benchmarks/scale.py memory folder 1000 100000  # peak memory of an audit of so many images; or npz
    python benchmarks/scale.py weights 100          # MB of weights: from a file, and from Ray's object store

`overhead`, `efficiency` and `weights` start a Ray cluster on this machine. Measured numbers: README.md, section Scale.
"""

import re
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Thread

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


def pictures(n: int, side: int) -> Iterator[tuple[int, np.ndarray]]:
    """Yield the label and the pixels of so many noisy images, every other one bright."""
    rng = np.random.default_rng(0)
    for place in range(n):
        yield place % 2, (rng.integers(0, 128, (side, side)) + 127 * (place % 2)).astype(np.uint8)


def folder_of(n: int, root: Path) -> Path:
    """Write a folder of PNG files."""
    for place, (label, pixels) in enumerate(pictures(n, SIDE)):
        kind = root / "images" / "test" / ("dark", "bright")[label]
        kind.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(kind / f"{place}.png")
    return root / "images"


def archive_of(n: int, root: Path) -> Path:
    """Write a compressed `.npz` of images as large as those of MedMNIST."""
    labels, images = zip(*pictures(n, 28), strict=True)
    np.savez_compressed(root / "images.npz", test_images=np.stack(images), test_labels=np.array(labels))
    return root / "images.npz"


def memory(kind: str, sizes: list[int]) -> None:
    """Print the peak memory of audits of so many images in a folder or an `.npz`, each in a process of its own."""
    for n in sizes:
        with tempfile.TemporaryDirectory() as folder:
            root = Path(folder)
            path = {"folder": folder_of, "npz": archive_of}[kind](n, root)
            (root / "network.py").write_text(NETWORK)
            subprocess.run([sys.executable, __file__, "one", str(path), str(n)], check=True)


def status(key: str) -> float:
    """Return a number of MiB that Linux tells of this process."""
    found = re.search(rf"{key}:\s+(\d+)", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) / 1024


class Watch(Thread):
    """Look every few milliseconds at the memory that is this process's own, which pages of mapped files are not."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.peak = 0.0

    def run(self) -> None:
        while True:
            self.peak = max(self.peak, status("RssAnon"))
            time.sleep(0.02)


def one(path: Path, n: int) -> None:
    """Audit the images at `path`, robustness only, and print the peak memory."""
    config = AuditConfig.model_validate(
        {
            "data": {"path": str(path)},
            "robustness": {"n": n, "steps": 1, "eps": ["8/255"], "trust": False, "corruptions": None, "distance": None},
            "reliance": False,
            "classifiers": [{"name": "tiny", "factory": f"{path.parent / 'network.py'}:make"}],
        }
    )
    watch = Watch()
    watch.start()
    took = seconds(lambda: run_audit(config))
    # `getrusage` would tell the peak of the process that started this one, if that was larger.
    print(f"{n} images: peak {status('VmHWM'):.0f} MiB, {watch.peak:.0f} of them no pages of files; {took:.0f} s")


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
        memory(rest[0], [int(one) for one in rest[1:]])
    elif mode == "one":
        one(Path(rest[0]), int(rest[1]))
    elif mode == "weights":
        weights(int(rest[0]))
    else:
        {"overhead": overhead, "efficiency": efficiency}[mode]()


if __name__ == "__main__":
    main()
