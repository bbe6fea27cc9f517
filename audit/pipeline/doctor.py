"""What an audit needs of the machine and of its configuration, checked one by one, with what to mend.

A check looks at the thing itself: torch computes a gradient, shipped weights are hashed, a model answers images of the
data that it is to be audited on.
"""

import importlib.metadata as metadata
import json
import os
import re
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import torch

from audit.config import AuditConfig, ClassifierConfig, load_config
from audit.errors import AuditError, Terminated, WeightsError
from audit.pipeline.context import Context
from audit.pipeline.images import Images, read_images
from audit.pipeline.models import check_files, load_model
from audit.pipeline.networks import load_networks
from audit.pipeline.runner import check_parts
from audit.robustness.sanity.measure import sample_of
from audit.runtime.environment import Stopwatch, choose_device
from audit.runtime.faults import reason
from audit.runtime.memory import allowed, limited
from audit.storage import shipped
from audit.storage.files import hash_file
from audit.storage.pretrained import NETWORKS, find, verify

PACKAGE = "spruce-audit"
FOR_DEVELOPERS = frozenset({"test", "bench", "types", "docs"})
"""Extras that no audit needs."""
IMAGES = 64
"""Images that every model is given, at most: a reading of them that is wrong shows in how many it is right on."""
SPARE_DISK = 2e9
"""Bytes that should be free where an audit writes: pictures, and the cache of inversions."""
LIBRARIES = 1.5e9
"""Bytes that torch and the weights take beside what `max_memory` bounds."""


@dataclass(frozen=True)
class Check:
    """What was found of one subject: "ok"; "note", which an audit can do without; or "mend", which it cannot."""

    subject: str
    state: Literal["ok", "note", "mend"]
    text: str


def examine(config: Path | None, cache: Path) -> Iterator[Check]:
    """Check the installation, and with a `config` its data and every model; yields what was found as it is found."""
    yield from _packages()
    yield from _extras()
    settings = None
    if config is not None:
        try:
            settings = load_config(config)
            check_parts(settings)
            yield Check("configuration", "ok", f"'{config}' is valid")
        except AuditError as error:
            yield Check("configuration", "mend", str(error))
            settings = None
    yield _device("auto" if settings is None else settings.device)
    yield from _memory(settings)
    yield _disk("cache", cache)
    yield _shipped_weights()
    yield from _pretrained_weights()
    if config is not None and settings is not None:
        with limited(settings.max_memory):
            yield from _audited(settings, config.resolve().parent)


def _tried(subject: str, look: Callable[[], str]) -> Check:
    """What `look` says of the subject, or why it cannot."""
    return _all_tried(subject, lambda: [Check(subject, "ok", look())])[0]


def _all_tried(subject: str, look: Callable[[], Sequence[Check]]) -> Sequence[Check]:
    """What `look` finds of the subject, or why it cannot."""
    try:
        return look()
    except (KeyboardInterrupt, Terminated):
        raise
    except BaseException as error:  # noqa: BLE001 - foreign code and a broken installation raise anything
        return [Check(subject, "mend", reason(error))]


def _requirements() -> Iterator[tuple[str, str | None]]:
    """Yield the packages that this one names, with the extra that asks for each."""
    for line in metadata.requires(PACKAGE) or ():
        name, extra = re.match(r"[\w.-]+", line), re.search(r"extra\s*==\s*['\"]([\w-]+)", line)
        if name is not None:
            yield name[0], None if extra is None else extra[1]


def _is_there(package: str) -> bool:
    try:
        metadata.version(package)
    except metadata.PackageNotFoundError:
        return False
    return True


def _packages() -> Iterator[Check]:
    try:
        absent = [name for name, extra in _requirements() if extra is None and not _is_there(name)]
    except metadata.PackageNotFoundError:
        yield Check("packages", "note", f"{PACKAGE} runs from its source tree: its requirements cannot be looked up")
    else:
        mend = f"{', '.join(absent)} missing: run `python -m pip install {' '.join(absent)}`"
        yield Check("packages", "mend", mend) if absent else Check("packages", "ok", "all that are required are there")
    yield _tried("torch and torchvision", _torchvision)


def _torchvision() -> str:
    """Check that torchvision was built for this torch: it names its version, and its own operators are there."""
    import torchvision

    has, wanted = torch.__version__.split("+")[0], ""
    for line in metadata.requires("torchvision") or ():
        if (found := re.match(r"torch\s*\(?==\s*([\w.]+)", line)) is not None:
            wanted = found[1]
    together = "install them together: `python -m pip install --upgrade torch torchvision`"
    if wanted not in ("", has):
        raise WeightsError(
            f"torchvision {torchvision.__version__} is for torch {wanted}, and torch is {has}: {together}"
        )
    if not hasattr(torch.ops.torchvision, "nms"):
        raise AuditError(f"torchvision {torchvision.__version__} cannot use torch {has}: {together}")
    return f"torch {torch.__version__}, torchvision {torchvision.__version__}"


def _extras() -> Iterator[Check]:
    """Say which optional parts are there, and how to get the others."""
    if not _is_there(PACKAGE):
        return
    needed: dict[str, list[str]] = {}
    for name, extra in _requirements():
        if extra is not None and extra not in FOR_DEVELOPERS:
            needed.setdefault(extra, []).append(name)
    absent = [extra for extra, names in needed.items() if not all(map(_is_there, names))]
    there = [extra for extra in needed if extra not in absent]
    if there:
        yield Check("extras", "ok", f"installed: {', '.join(there)}")
    if absent:
        how = f"if you want one: `python -m pip install '{PACKAGE}[{absent[0]}]'`"
        yield Check("extras", "note", f"not installed: {', '.join(absent)}; {how}")


def _device(name: str) -> Check:
    def look() -> str:
        device = choose_device(name)
        weights = torch.ones(8, 8, device=device, requires_grad=True)
        torch.relu(weights @ weights).sum().backward()
        if device.type == "cuda":
            total = torch.cuda.get_device_properties(device).total_memory
            return f"{torch.cuda.get_device_name(device)}, {total / 1e9:.1f} GB"
        return f"{device.type}, {torch.get_num_threads()} of {os.cpu_count()} processors"

    if name == "auto" and Path("/proc/driver/nvidia/version").exists() and not torch.cuda.is_available():
        mend = 'install a torch with CUDA for this driver (https://pytorch.org), or set device = "cpu"'
        return Check("device", "note", f"there is an NVIDIA driver that this torch cannot use: {mend}")
    return _tried("device", look)


def _available() -> int | None:
    """Bytes of memory that this process may still take; None where the system does not say."""
    try:
        free = {line.split()[0]: int(line.split()[1]) for line in Path("/proc/meminfo").read_text().splitlines()}
        found = free["MemAvailable:"] * 1024
    except (OSError, ValueError, IndexError, KeyError):
        return None
    try:  # a container's bound
        bound = int(Path("/sys/fs/cgroup/memory.max").read_text())
        return min(found, bound - int(Path("/sys/fs/cgroup/memory.current").read_text()))
    except (OSError, ValueError):
        return found


def _memory(settings: AuditConfig | None) -> Iterator[Check]:
    free = _available()
    if free is None:
        return
    with limited("auto" if settings is None else settings.max_memory):
        bound = allowed(torch.device("cpu"))
    text = f"{free / 1e9:.1f} GB free, of which work on images may take {bound / 1e9:.1f} GB (max_memory)"
    if free >= bound + LIBRARIES:
        yield Check("memory", "ok", text)
    else:
        yield Check("memory", "note", f"{text}, beside about {LIBRARIES / 1e9:.1f} GB for torch: lower max_memory")


def _disk(what: str, place: Path) -> Check:
    there = next(folder for folder in (place, *place.parents) if folder.exists())
    free = shutil.disk_usage(there).free
    if not os.access(there, os.W_OK):
        return Check(what, "mend", f"'{place}' cannot be written: name another folder (--cache), or give --no-cache")
    text = f"{free / 1e9:.1f} GB free for '{place}'"
    return Check(what, "ok", text) if free >= SPARE_DISK else Check(what, "note", f"{text}: make room")


def _shipped_weights() -> Check:
    """Compare the weights in the package with the hashes in their cards."""

    def look() -> str:
        files = [shipped.path(kind, name) for kind in shipped.KINDS for name in shipped.names(kind)]
        for file in files:
            if hash_file(file) != json.loads(file.with_suffix(".json").read_text())["weights_sha256"]:
                mend = f"run `python -m pip install --force-reinstall --no-deps {PACKAGE}`"
                raise WeightsError(f"'{file}' is not the file of its card: {mend}.")
        return f"{len(files)} files are those of their cards"

    return _tried("shipped weights", look)


def _pretrained_weights() -> Iterator[Check]:
    absent = [name for name in NETWORKS if find(name) is None]
    for name in NETWORKS:
        if name not in absent:
            yield _tried(f"weights {name}", partial(_sound, name))
    if absent:
        how = f"`{PACKAGE} weights pull {absent[0]}` fetches one"
        yield Check("weights", "note", f"absent: {', '.join(absent)}; metrics by them are left out; {how}")


def _sound(name: str) -> str:
    return f"sound, {', '.join(map(str, verify([name])[name] or ()))}"


def _audited(config: AuditConfig, base: Path) -> Iterator[Check]:
    """Read the data and load every network that the configuration names."""
    try:
        context = Context(config, base, choose_device(config.device), None, Stopwatch())
        images = read_images(context)
    except AuditError as error:
        yield Check("data", "mend", str(error))
        return
    audited, size = images.audited, " x ".join(map(str, images.all.image_shape))
    yield Check("data", "ok", f"{len(audited)} images to audit, {size}, of {', '.join(images.all.class_names)}")
    yield from (Check(notice.subject, "note", notice.text) for notice in images.notices)
    for one in (*config.classifiers, *config.judge_checkpoints):
        yield from _all_tried(f"model '{one.name}'", partial(_answers, one, context, images))
    if config.generator is not None:
        yield _tried("generator", lambda: _generator(config, images, context.device))


def _answers(one: ClassifierConfig, context: Context, images: Images) -> list[Check]:
    """Load a classifier and give it a few images; what is to be known of it follows what it answers."""
    check_files(one)
    classifier = load_model(one, context, images.all)
    sample = sample_of(images.audited, context.config.seed)
    few = sample.select(torch.arange(min(IMAGES, len(sample))))
    pixels, n = few.images(range(len(few))).to(context.device), len(few)
    with torch.no_grad():
        classifier(pixels)
        began = time.perf_counter()
        answers = classifier(pixels).argmax(1).cpu()
        seconds = time.perf_counter() - began
    said = f"{classifier.source}; {1000 * seconds / n:.0f} ms an image"
    if not few.is_multi_label:
        right = int((answers == few.row_labels).sum())
        said += f"; right on {right} of {n} images ({100 * right / n:.0f} %)"
        given = Counter(answers.tolist())
        said += f"; answers {', '.join(f'{images.all.class_names[k]} {given[k]}' for k in sorted(given))}"
    subject = f"model '{one.name}'"
    return [Check(subject, "ok", said), *(Check(subject, "note", notice.text) for notice in classifier.notices)]


def _generator(config: AuditConfig, images: Images, device: torch.device) -> str:
    networks = load_networks(config, images.all, device)
    assert config.generator is not None
    encoder = "with its encoder" if networks.encoder is not None else "without an encoder"
    return f"'{config.generator.path}' draws images of these, {encoder}"
