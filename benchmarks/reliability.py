"""What survives: audits and trainings killed at random moments, and faults of disk, memory and terminal.

`python benchmarks/reliability.py kills --n 30` kills a small audit and a toy of each training (SIGKILL), each at least
`n` times: at a moment drawn uniformly from the time that it takes undisturbed; then the same command again, killed
within a quarter of that time, and so on until it comes through. What it leaves is compared with what a run that nobody
disturbed left: results.json up to times and memory, and its pictures; weights to the bit, and their card. `faults`
injects a full disk, blocks that cannot be written, torn files, disks that may only be read, memory that runs out, an
interruption, and a second audit on the same store. Both print survived / tried.

A process that is killed is forked from this one, which has imported the program, so that moments fall into work and not
into imports; moments are in seconds of the processor, so that other programs do not shift them. The undisturbed run is
a process of its own, with other hashes of strings.
"""

import argparse
import errno
import importlib
import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from audit.cli.entry import main as command_line
from audit.runtime.environment import Stopwatch
from audit.storage.cache import DAMAGED, SUFFIX, Store
from audit.storage.files import hash_file
from audit.storage.keys import hash_tensor
from audit.training.embedding import factors
from audit.training.generator import mapping
from audit.training.shared import loop

PHANTOM = '[data]\npath = "phantom"\n[data.phantom]\ncalibration = 160\naudit = 40\n'
AUDIT = (
    PHANTOM
    + """
[queries]
n = 4
target = "healthy"
[generator]
path = "shipped:phantom"
[inversion]
pivot_steps = 4
tuning_steps = 4
batch_size = 2
[counterfactual]
method = ["spruce", "pixel"]
steps = 4
shrink_steps = 2
batch_size = 2
min_calibration = 10
[metrics]
canonical = "off"
min_images = 3
axioms = 1
[ranking]
bootstrap = 100
[robustness]
n = 4
attacks = ["pgd", "ensemble", "transfer"]
eps = ["8/255"]
steps = 3
batch_size = 4
[robustness.ensemble]
stages = ["apgd-ce", "apgd-t"]
apgd_steps = 3
[robustness.trust]
n = 8
square_queries = 10
[robustness.distance]
n = 4
bisections = 2
[robustness.corruptions]
n = 4
names = ["gaussian_noise", "fog"]
severities = [1, 3]
[reliance]
n = 4
interventions = ["side-marker", "exposure"]
[attribution]
methods = ["grad-cam"]
n = 4
[[classifiers]]
name = "plain"
checkpoint = "shipped:plain"
[[classifiers]]
name = "trades"
checkpoint = "shipped:trades"
"""
)
CLASSIFIER = (
    'name = "toy"\n[optimiser]\nsteps = 24\nbatch_size = 8\n[selection]\nevery = 8\nn = 16\n'
    "[evaluation]\nn = 16\nattacked = 4\nsteps = 1\n" + PHANTOM
)
FACTORS = 'name = "toy"\nn_evaluation = 32\n[optimiser]\nsteps = 30\nbatch_size = 16\n[selection]\nevery = 10\nn = 32\n'
EMBEDDING = (
    'name = "toy"\n[optimiser]\nsteps = 30\nbatch_size = 16\n[selection]\nevery = 10\nn = 24\n'
    "[evaluation]\nfitted = 60\nn = 30\ntwins = 16\nsteps = 2\n" + PHANTOM
)
GENERATOR = (
    "kimg = 0.32\nbatch_size = 8\nz_dim = 8\nw_dim = 8\nchannel_base = 256\nchannel_max = 16\n"
    'snapshot_kimg = 0.08\nfid_embedding = "none"\n' + PHANTOM
)
MAPPING = (
    'generator = "shipped:phantom"\nkimg = 0.32\nbatch_size = 16\nwindow_kimg = 0.1\nsnapshot_kimg = 0.08\n'
    'least_share = 0.05\nfid_images = 50\nfid_embedding = "none"\n' + PHANTOM
)
ENCODER = 'generator = "shipped:phantom"\nsteps = 12\nbatch_size = 4\nwidth = 16\nsnapshot_steps = 3\n' + PHANTOM
PROGRAM = (
    "audit.pipeline.runner",
    "audit.training.classifier.train",
    "audit.training.generator.train",
    "audit.training.encoder.config",
    "audit.training.embedding.train",
)
"""What commands import when they are called, and a process that is killed need not import again."""
STAGE, TOOK = "at: ", "processor: "
"""How the lines of a log begin that say where an audit is, and how long a process worked."""
TIMES = ("created", "seconds", "training_seconds", "peak_memory_mb")
"""Keys of results and cards that no two runs have in common."""
ROUNDED = ("certificate", "checks", "trace", "step", "axioms", "pointing")
"""Keys of a model's results that tell of rounding itself, or which of almost equal steps or pixels came first."""
CHAIN = 8
"""Kills of one run, after which it is left alone."""
LONG = 3600.0
"""Seconds after which a run is taken for hung."""


@dataclass(frozen=True)
class Work:
    """Something that a command makes in a folder: how it is asked for, and what of it is compared."""

    name: str
    config: str
    words: tuple[str, ...]
    left: Callable[[Path], Any]

    def command(self, folder: Path, cache: Path | None = None) -> list[str]:
        """Write the configuration into `folder`; returns the words of the command, whose output is its `out`."""
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / "config.toml"
        file.write_text(self.config)
        words = [*self.words, str(file), "--out", str(folder / "out")]
        if self.name == "audit":  # whose estimate of the time is only made to be shown
            words += ["--cache", str(cache or folder / "cache"), "--progress", "none"]
        return words


def timeless(value: Any) -> Any:
    """Return JSON without what is measured by the clock."""
    if isinstance(value, dict):
        return {key: timeless(one) for key, one in value.items() if key not in TIMES}
    return [timeless(one) for one in value] if isinstance(value, list) else value


def _results(folder: Path) -> Any:
    pictures = {file.name: hash_file(file) for file in sorted(folder.glob("out/images/**/*.png"))}
    return timeless(json.loads((folder / "out" / "results.json").read_text())), pictures


def _weights(folder: Path) -> Any:
    """Return the hashes of all tensors of the file that a training left, and its card."""
    (file,) = (folder / "out").glob("*.safetensors")
    tensors = {name: hash_tensor(value) for name, value in load_file(file).items()}
    return tensors, timeless(json.loads(file.with_suffix(".json").read_text()))


WORKS = {
    work.name: work
    for work in (
        Work("audit", AUDIT, ("run",), _results),
        Work("classifier", CLASSIFIER, ("train", "classifier"), _weights),
        Work("generator", GENERATOR, ("train", "generator"), _weights),
        Work("encoder", ENCODER, ("train", "encoder"), _weights),
        Work("embedding", EMBEDDING, ("train", "embedding"), _weights),
        Work("mapping", MAPPING, ("train", "mapping"), _weights),
        Work("factors", FACTORS, ("train", "factors"), _weights),
    )
}


def _quickly() -> None:
    """Let toys of trainings keep a checkpoint ten times a second and measure little; an audit says where it is."""
    loop.CHECKPOINT_SECONDS = 0.1
    factors.MEASURED_IMAGES, mapping.MEASURED, mapping.SPREAD_CODES = 128, 200, 500
    stage = Stopwatch.stage

    @contextmanager
    def told(self: Stopwatch, name: str) -> Iterator[None]:
        print(f"\n{STAGE}{name}", flush=True)
        with stage(self, name):
            yield
        print(f"{STAGE}between stages, or writing", flush=True)

    Stopwatch.stage = told  # type: ignore[method-assign]


def _child(words: Sequence[str], log: Path, fault: Callable[[], AbstractContextManager[None]]) -> None:
    """Be the command `words` with a `fault`; what it says, and the processor's seconds it took, are added to `log`."""
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    for name in PROGRAM:
        importlib.import_module(name)
    began = time.process_time()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell's background jobs ignore
    _quickly()
    sys.argv = ["spruce-audit", *words]
    try:
        with fault():
            command_line()
    finally:
        print(f"\n{TOOK}{time.process_time() - began}", flush=True)


def start(
    words: Sequence[str], log: Path, fault: Callable[[], AbstractContextManager[None]] = nullcontext
) -> BaseProcess:
    """Start the command `words` with a `fault` in a process forked from this one."""
    process = multiprocessing.get_context("fork").Process(target=_child, args=(words, log, fault))
    process.start()
    return process


def finished(process: BaseProcess) -> int | None:
    """Return the exit status of `process`; None where it had to be ended because it hung."""
    process.join(LONG)
    if process.is_alive():
        process.kill()
        process.join()
        return None
    return process.exitcode


@dataclass(frozen=True)
class Quiet:
    """A run that nobody disturbed: what it left, and the seconds of the processor that it took."""

    left: Any
    seconds: float


def quiet(work: Work, folder: Path) -> Quiet:
    """Run `work` undisturbed, in a fresh process. Raises RuntimeError where it fails."""
    log = folder.with_suffix(".log")
    process = multiprocessing.get_context("spawn").Process(target=_child, args=(work.command(folder), log, nullcontext))
    process.start()
    if finished(process) != 0:
        raise RuntimeError(f"{work.name} fails undisturbed: see {log}")
    took = [line for line in log.read_text().splitlines() if line.startswith(TOOK)]
    return Quiet(work.left(folder), float(took[-1].removeprefix(TOOK)))


def killed(process: BaseProcess, seconds: float) -> bool:
    """Kill `process` when it has worked for `seconds` of the processor; False where it ends before that."""
    assert process.pid is not None
    clock = (~process.pid << 3) | 2  # how Linux names the clock of a process's time on the processor
    while process.is_alive():
        if time.clock_gettime(clock) >= seconds:
            process.kill()
            process.join()
            return process.exitcode == -signal.SIGKILL
        time.sleep(0.005)
    return False


def killed_until_done(work: Work, folder: Path, seconds: float, rng: random.Random) -> list[str]:
    """Run `work` again and again until it comes through, killed within `seconds`, and then within a quarter of them.

    Returns what it was at when it was killed.
    """
    log, words = folder.with_suffix(".log"), work.command(folder)
    heard: list[str] = []
    while True:
        seen = log.stat().st_size if log.exists() else 0
        process = start(words, log)
        if len(heard) < CHAIN and killed(process, rng.uniform(0, seconds / 4 if heard else seconds)):
            heard.append(_last_heard(log, seen) if work.name == "audit" else _left_behind(folder / "out"))
        elif (status := finished(process)) != 0:
            raise RuntimeError(f"{work.name} fails after {len(heard)} kills with status {status}: see {log}")
        else:
            return heard


def _last_heard(log: Path, seen: int) -> str:
    """Return the stage that the log speaks of last, behind the first `seen` bytes."""
    with log.open("rb") as file:
        file.seek(seen)
        lines = file.read().decode(errors="replace").splitlines()
    return next((line.removeprefix(STAGE) for line in reversed(lines) if line.startswith(STAGE)), "starting")


def _left_behind(out: Path) -> str:
    """Return how far a training was, by the files that it left."""
    if list(out.glob("*checkpoint.pt")):
        return "behind a checkpoint"
    return "behind its weights" if list(out.glob("*.safetensors")) else "before the first checkpoint"


def kills(n: int, seed: int, only: Sequence[str], folder: Path) -> bool:
    """Kill every work at least `n` times; print and return whether all kills were survived."""
    rng, whole = random.Random(seed), True
    works = [work for work in WORKS.values() if work.name in only or not only]
    for work in works:
        known = quiet(work, folder / f"{work.name}-quiet")
        tried, survived, turn = Counter[str](), Counter[str](), 0
        while tried.total() < n:
            place = folder / f"{work.name}-{turn}"
            heard = Counter(killed_until_done(work, place, known.seconds, rng))
            same = work.left(place) == known.left and not list((place / "cache" / DAMAGED).glob("*"))
            tried += heard
            survived += heard if same else Counter()
            turn += 1
            if not same:
                print(f"  {place} is DIFFERENT", flush=True)
        print(
            f"{work.name}: survived {survived.total()} of {tried.total()} kills of {turn} runs, each "
            f"{known.seconds:.1f} s undisturbed (seed {seed})",
            flush=True,
        )
        for stage, count in sorted(tried.items()):
            print(f"  {survived[stage]:>3} of {count:>3} {stage}", flush=True)
        whole &= survived == tried
    return whole


@dataclass(frozen=True)
class FailingWrites:
    """A file system on which a `share` of the files whose path holds `where` cannot be flushed to the disk."""

    number: int
    where: str
    share: float
    seed: int

    def __call__(self) -> AbstractContextManager[None]:
        return self._failing()

    @contextmanager
    def _failing(self) -> Iterator[None]:
        rng, whole = random.Random(self.seed), os.fsync

        def fsync(file: int) -> None:  # the package flushes by number
            name = os.readlink(f"/proc/self/fd/{file}")
            if self.where in name and rng.random() < self.share:
                raise OSError(self.number, os.strerror(self.number), name)
            whole(file)

        os.fsync = fsync  # type: ignore[assignment]
        yield


class Shortage(TorchDispatchMode):
    """Memory that runs out at random in networks' passes over more than `most` images, forward or on the way back.

    What is asked for memory is an operation of a network: a convolution, or what follows one. Counts by module of this
    package where that was.
    """

    OPERATIONS = ("aten::convolution", "aten::convolution_backward", "aten::leaky_relu", "aten::leaky_relu_backward")
    INSIDE = (
        "audit.classifiers", "audit.generator", "audit.runtime", "audit.embeddings", "audit.cli", "audit.storage",
        "audit.robustness.attacks.checks", "audit.robustness.panel",
    )  # fmt: skip
    SPARED = (
        "audit.pipeline.models",  # a model is loaded by passes over the fewest images that tell what it is
        "audit.robustness.corruptions.filters",  # which change a batch of images and are no network
    )

    def __init__(self, most: int, share: float, seed: int) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()
        self._most, self._share, self._rng = most, share, random.Random(seed)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        if func.name().split(".")[0] in self.OPERATIONS:
            made = next(one for one in tree_leaves(found) if isinstance(one, Tensor))
            if len(made) > self._most and self._rng.random() < self._share:
                place = self._place()
                if place not in self.SPARED:
                    self.counts[place] += 1
                    raise torch.OutOfMemoryError("CUDA out of memory (injected).")
        return found

    def _place(self) -> str:
        """Return the innermost module of the package that asks networks, and is none."""
        frame: FrameType | None = sys._getframe(1)
        while frame is not None:
            name = str(frame.f_globals.get("__name__", ""))
            if name.startswith("audit.") and not name.startswith(self.INSIDE):
                return name
            frame = frame.f_back
        return "networks"


@dataclass(frozen=True)
class LittleMemory:
    """A process whose memory runs out as `Shortage` says; the counts go to the file `told`."""

    told: Path
    seed: int

    def __call__(self) -> AbstractContextManager[None]:
        return self._short()

    @contextmanager
    def _short(self) -> Iterator[None]:
        with Shortage(most=1, share=0.1, seed=self.seed) as shortage:
            try:
                yield
            finally:
                self.told.write_text(json.dumps(shortage.counts))


def _tells(log: Path) -> bool:
    """Whether the last thing that a command said is one sentence of its own."""
    lines = [line for line in log.read_text().splitlines() if line and not line.startswith((STAGE, TOOK))]
    return "Traceback" not in log.read_text() and bool(lines) and lines[-1].startswith("spruce-audit: ")


def _again(place: Path, known: Quiet) -> bool:
    """Whether the same command, with nothing in its way, leaves what an undisturbed run left."""
    work = WORKS["audit"]
    return finished(start(work.command(place), place.with_suffix(".log"))) == 0 and work.left(place) == known.left


Outcome = tuple[str, bool]
"""What was done, and whether it was survived."""


def failing_store(place: Path, known: Quiet, seed: int) -> Iterator[Outcome]:
    """Files of the store that cannot be flushed: the audit goes on without, and leaves nothing damaged."""
    for number in (errno.ENOSPC, errno.EIO):
        here, log = place / str(number), place / f"{number}.log"
        fault = FailingWrites(number, where="/cache/", share=0.3, seed=seed)
        ended = finished(start(WORKS["audit"].command(here), log, fault))
        same = ended == 0 and WORKS["audit"].left(here) == known.left
        whole, damaged = Store(here / "cache").verify()
        again = _again(here, known)
        yield (
            f"{errno.errorcode[number]} at 3 of 10 writes of the store ({whole} entries kept, {len(damaged)} damaged)",
            same and not damaged and whole > 0 and again,
        )


@contextmanager
def _disk(folder: Path, options: str) -> Iterator[bool]:
    """Make `folder` a disk of its own, mounted with `options`; gives False where this user may not."""
    folder.mkdir(parents=True, exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", options, "none", str(folder)]
    mounted = subprocess.run(command, capture_output=True, check=False).returncode == 0
    if not mounted:
        print(f"not tried, for want of the right to mount: a disk with {options}")
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", str(folder)], check=True)


def full_disks(place: Path, known: Quiet, seed: int) -> Iterator[Outcome]:
    """A real disk that fills up, below the store or below the output."""
    work, cache = WORKS["audit"], place / "store" / "cache"
    stored = sum(one.bytes for one in Store(place.parent / "audit-quiet" / "cache").entries())
    with _disk(cache, f"size={stored // 2}") as mounted:
        if mounted:
            ended = finished(start(work.command(place / "store"), place / "store.log"))
            whole, damaged = Store(cache).verify()
            same = ended == 0 and work.left(place / "store") == known.left
            told = "Nothing is kept in the store" in (place / "store.log").read_text()
            left = list(cache.rglob("*.tmp"))
            yield f"a disk full at half of the store ({whole} entries kept)", same and told and not damaged and not left
    for name, options in (("full", "size=65536"), ("read-only", "ro")):
        here, log = place / name, place / f"{name}.log"
        with _disk(here / "out", options) as mounted:
            if mounted:
                ended = finished(start(work.command(here), log))
                told, left = _tells(log), [file for file in (here / "out").rglob("*") if file.is_file()]
        if mounted:
            again = _again(here, known)
            yield (
                f"an output on a {name} disk (status {ended}, {len(left)} files left)",
                ended == 2 and told and not left and again,
            )


def read_only_store(place: Path, known: Quiet, seed: int) -> Iterator[Outcome]:
    """A store that may only be read: one sentence at once."""
    with _disk(place / "run" / "cache", "ro") as mounted:
        if mounted:
            ended = finished(start(WORKS["audit"].command(place / "run"), place / "run.log"))
            told = _tells(place / "run.log") and not (place / "run" / "out").exists()
            yield f"a store on a read-only disk (status {ended})", ended == 2 and told


def torn_files(place: Path, known: Quiet, seed: int) -> Iterator[Outcome]:
    """Entries of the undisturbed run's store cut off, or with a bit flipped: set aside, told and computed again."""
    rng, here = random.Random(seed), place.parent / "audit-quiet"
    torn = rng.sample(sorted(here.glob(f"cache/??/*{SUFFIX}")), 40)
    for i, file in enumerate(torn):
        data = file.read_bytes()
        cut = rng.randrange(len(data))
        file.write_bytes(data[:cut] if i % 2 else data[:cut] + bytes([data[cut] ^ 1]) + data[cut + 1 :])
    log = here.with_suffix(".log")
    log.unlink()
    same = _again(here, known)
    aside = len(list((here / "cache" / DAMAGED).glob("*")))
    told = log.read_text().count("is damaged")
    yield f"40 torn or flipped entries of the store ({aside} met and set aside)", same and aside == told > 0


def little_memory(place: Path, known: Quiet, seed: int) -> Iterator[Outcome]:
    """Memory that runs out in batches: they are halved, and every number stays but for rounding."""
    counts = place / "counts.json"
    ended = finished(start(WORKS["audit"].command(place / "run"), place / "run.log", LittleMemory(counts, seed)))
    found = json.loads(counts.read_text())
    moved = 1.0
    if ended == 0:
        moved = largest_difference(WORKS["audit"].left(place / "run")[0]["models"], known.left[0]["models"])
    yield (
        f"memory that ran out {sum(found.values())} times (status {ended}, largest relative difference {moved:.1e})",
        ended == 0 and moved < 1e-2,
    )
    for module, count in sorted(found.items()):
        print(f"  {count:>3} x {module}")


def largest_difference(a: Any, b: Any) -> float:
    """Return the largest relative difference of numbers of two JSON values; infinite where anything else differs."""
    if isinstance(a, dict) and isinstance(b, dict) and a.keys() == b.keys():
        return max((largest_difference(a[key], b[key]) for key in a if key not in ROUNDED), default=0.0)
    if isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
        return max(map(largest_difference, a, b), default=0.0)
    if isinstance(a, float) and isinstance(b, float):
        return abs(a - b) / max(abs(a), abs(b), 1e-3)
    return 0.0 if a == b else float("inf")


def interruption(place: Path, known: Quiet, seed: int) -> Iterator[Outcome]:
    """Ctrl-C in the middle: the documented status, nothing half-written, and the same command goes on."""
    here, log = place / "run", place / "run.log"
    process = start(WORKS["audit"].command(here), log)
    assert process.pid is not None
    clock = (~process.pid << 3) | 2
    while process.is_alive() and time.clock_gettime(clock) < 0.6 * known.seconds:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGINT)
    ended = finished(process)
    left = [*here.rglob("*.tmp"), *here.glob("out/*")]
    kept = len(list((here / "cache").glob(f"??/*{SUFFIX}")))
    yield (
        f"an interruption (status {ended}, {kept} entries kept)",
        ended == 130 and _tells(log) and not left and kept > 0 and _again(here, known),
    )


def two_at_once(place: Path, known: Quiet, seed: int) -> Iterator[Outcome]:
    """Two audits on one store at the same time: both complete and leave what each alone leaves."""
    work, cache = WORKS["audit"], place / "cache"
    both = [start(work.command(place / name, cache), place / f"{name}.log") for name in ("one", "two")]
    ended = [finished(one) for one in both]
    whole, damaged = Store(cache).verify()
    same = all(work.left(place / name) == known.left for name in ("one", "two")) if ended == [0, 0] else False
    yield f"two audits at once on one store ({whole} entries)", same and not damaged and not list(cache.rglob("*.tmp"))


def full_disk_of_a_training(place: Path, known: Quiet, seed: int) -> Iterator[Outcome]:
    """Checkpoints that cannot be written end a training with one sentence; the same command goes on to its weights."""
    work = WORKS["classifier"]
    alone = quiet(work, place / "quiet")
    words, log = work.command(place / "run"), place / "run.log"
    fault = FailingWrites(errno.ENOSPC, where="checkpoint", share=0.5, seed=seed)
    ended = finished(start(words, log, fault))
    told = _tells(log)
    again = finished(start(words, log)) == 0 and work.left(place / "run") == alone.left
    yield f"ENOSPC at a training's checkpoint (status {ended})", ended == 2 and told and again


FAULTS = (
    failing_store, full_disks, read_only_store, interruption, full_disk_of_a_training, torn_files, little_memory,
    two_at_once,
)  # fmt: skip


def faults(seed: int, only: Sequence[str], folder: Path) -> bool:
    """Inject every kind of fault into an audit; print and return whether all were survived."""
    known = quiet(WORKS["audit"], folder / "audit-quiet")
    done = [
        outcome
        for fault in FAULTS
        if fault.__name__ in only or not only
        for outcome in _shown(fault(_made(folder / fault.__name__), known, seed))
    ]
    print(f"survived {sum(done)} of {len(done)} faults (seed {seed})")
    return all(done)


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


def _shown(outcomes: Iterator[Outcome]) -> Iterator[bool]:
    for what, survived in outcomes:
        print(f"{'survived' if survived else 'FAILED  '} {what}", flush=True)
        yield survived


def main() -> None:
    """Run what was asked for; exit status 1 where something was not survived."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("kills", "faults"))
    parser.add_argument("--n", type=int, default=30, help="least number of kills of each work")
    parser.add_argument("--seed", type=int, default=0)
    names = [*WORKS, *(fault.__name__ for fault in FAULTS)]
    parser.add_argument("--only", nargs="+", choices=names, default=(), help="these works or faults")
    parser.add_argument("--work", type=Path, help="folder for what is made; default: one that vanishes")
    args = parser.parse_args()
    for name in PROGRAM:
        importlib.import_module(name)
    with tempfile.TemporaryDirectory() as temporary:
        folder = (args.work or Path(temporary)).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        if args.what == "kills":
            survived = kills(args.n, args.seed, args.only, folder)
        else:
            survived = faults(args.seed, args.only, folder)
    sys.exit(0 if survived else 1)


if __name__ == "__main__":
    main()
