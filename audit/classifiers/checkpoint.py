"""Read the tensors of a checkpoint by name, whatever else the file holds; nothing of it is ever executed.

Two formats: safetensors, whose metadata may say how the network wants its images, and files of torch (.pt, .pth, .ckpt,
.tar), in which training scripts keep one or several state dicts beside settings, optimisers and objects of their own.
A tensor's name is its path through the file, joined by dots: `state_dict_ema.conv1.weight`. Only shapes are read at
first; a tensor is read when the network that it fits is known.
"""

import json
import struct
import sys
import weakref
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

from safetensors import SafetensorError, safe_open
from torch import Tensor

from audit.classifiers.probe import first_line
from audit.errors import ClassifierError
from audit.storage.tensors.file_bytes import Budget, Foreign, Refused, Window
from audit.storage.tensors.harmless import harmful
from audit.storage.tensors.plain_pickle import Call, Plain
from audit.storage.tensors.sources import open_archive
from audit.storage.tensors.tensor_files import OverBudget, check_torch, checked_safetensors
from audit.storage.tensors.torch_archive import Tensors, entries_of
from audit.storage.tensors.tree import tree_of

JSON_KEYS = ("classes", "mean", "std", "input_size", "channels", "architecture", "architecture_args")
"""Entries of safetensors metadata that are understood; each is JSON."""

MAX_TENSORS = 100_000
"""Most tensors of a file; the largest classifiers have a few thousand."""

SHARING = 4
"""Tensors may together be this many times as large as their file: tied weights share their bytes."""

UNREAD = {"_rebuild_qtensor", "_rebuild_sparse_tensor", "_rebuild_nested_tensor", "_rebuild_wrapper_subclass"}
"""Tensors of torch that are no dense arrays of numbers."""


@dataclass(frozen=True)
class Stored:
    """A tensor in a file: its shape, and how to read it."""

    shape: tuple[int, ...]
    read: Callable[[], Tensor]


@dataclass(frozen=True)
class Checkpoint:
    """Tensors by their dotted path through the file, and what the file says about the network (JSON_KEYS).

    `raw_first`: its writer puts averaged weights where others put the raw ones, and the raw ones under the name of the
    averaged. `unread` says what else the file holds in the place of tensors.
    """

    stored: dict[str, Stored]
    about: dict[str, Any] = field(default_factory=dict)
    raw_first: bool = False
    unread: str = ""


def existing_file(path: str | Path, what: str) -> Path:
    """Return `path` as a Path; raises ClassifierError naming `what` if there is no such file."""
    file = Path(path)
    if file.is_dir():
        raise ClassifierError(f"{what} '{file}' is a folder: say what it holds, such as file = \"hf:{file.name}\".")
    if not file.is_file():
        raise ClassifierError(f"{what} '{file}' does not exist: check the path.")
    return file


def is_torchscript(file: Path) -> bool:
    """Whether `file` is a TorchScript archive: a zip with code beside its data."""
    return any("/code/" in name or name.endswith("/constants.pkl") for name in _archive_names(file))


def is_exported(file: Path) -> bool:
    """Whether `file` is a torch.export archive, of the present or the first layout."""
    names = _archive_names(file)
    return any("serialized_exported_program" in n or n.endswith("/archive_format") or "/models/" in n for n in names)


def _archive_names(file: Path) -> list[str]:
    try:
        with zipfile.ZipFile(file) as archive:
            return archive.namelist()
    except (zipfile.BadZipFile, NotImplementedError, ValueError, LookupError, OverflowError, struct.error, OSError):
        return []


def _window(opened: BinaryIO) -> Window:
    return Window(opened, 0, opened.seek(0, 2))


def _read_safetensors(file: Path) -> Checkpoint:
    try:
        opened = safe_open(checked_safetensors(file), framework="pt")
        names = list(opened.keys())
        metadata = dict(opened.metadata() or {})
        shapes = {name: tuple(opened.get_slice(name).get_shape()) for name in names[: MAX_TENSORS + 1]}
    except (SafetensorError, OSError, ValueError) as error:
        raise ClassifierError(
            f"Checkpoint '{file}' is not a readable safetensors file ({first_line(error)}): copy or write it again."
        ) from None
    if len(names) > MAX_TENSORS:
        raise ClassifierError(f"Checkpoint '{file}' holds {len(names)} tensors, which no classifier has.")
    about: dict[str, Any] = {}
    for key in JSON_KEYS:
        if key in metadata:
            try:
                about[key] = json.loads(metadata[key])
            except (ValueError, RecursionError):
                # Files of other programs may hold plain text under the same key, such as a timm name.
                about[key] = metadata[key]

    def stored(name: str) -> Stored:
        return Stored(shapes[name], lambda: opened.get_tensor(name))

    return Checkpoint({name: stored(name) for name in names}, about)


def _forbidden(content: Plain) -> str | None:
    """Return a function of Python's library that a pickle asks to call and that builds no data (it is not called)."""
    found = [name for name in harmful(content) if name in content.called]
    return next((".".join(name)[:80] for name in found if _is_standard(name[0])), None)


def _is_standard(module: str) -> bool:
    return module.split(".")[0] in sys.stdlib_module_names or module == "__builtin__"


def _read_torch(file: Path) -> Checkpoint:
    try:
        check_torch(file)
    except OverBudget as error:
        raise ClassifierError(f"Checkpoint '{file}' is not read: {error}; save model.state_dict() again.") from None
    if is_torchscript(file) or is_exported(file):
        kind = "TorchScript" if is_torchscript(file) else "torch.export"
        raise ClassifierError(f"Checkpoint '{file}' is a {kind} file: give it as 'file', without an architecture.")
    with file.open("rb") as start:
        if start.read(16)[8:9] == b"{":
            return _read_safetensors(file)  # under another name
    opened = file.open("rb")
    try:
        checkpoint = _read_opened(opened, file)
    except BaseException as error:
        opened.close()
        if isinstance(error, Foreign):
            raise ClassifierError(f"Checkpoint '{file}' is no file of weights but of the kind {error.kind}.") from None
        if isinstance(error, Refused | OverBudget | OSError):
            why = first_line(error)
            raise ClassifierError(f"Checkpoint '{file}' is corrupt or no file of weights: {why}.") from None
        raise
    weakref.finalize(checkpoint, opened.close)
    return checkpoint


def _read_opened(opened: BinaryIO, file: Path) -> Checkpoint:
    window, budget = _window(opened), _WithoutNumberBound()
    archive = open_archive(window, budget)
    if archive is None:
        raise Refused("it is neither safetensors nor a file of torch")
    forbidden = _forbidden(archive.content)
    if forbidden is not None:
        raise ClassifierError(
            f"Checkpoint '{file}' asks to call {forbidden}, which no weights need: get it again from its source."
        )
    tensors = Tensors(archive.tensors.fetch, SHARING * window.size, budget)
    root = archive.content.value
    stored = {}
    for name, described in tree_of(root).tensors.items():
        shape = described.arguments[2] if len(described.arguments) > 2 else None
        if isinstance(shape, tuple) and all(isinstance(n, int) for n in shape):
            stored[name] = Stored(shape, partial(_tensor, tensors, described, name, file))
    odd = sorted(UNREAD & {name for _, name in archive.content.globals})
    unread = f"; it holds {', '.join(odd)}, quantised or sparse tensors that are not read" if odd else ""
    if not stored:
        raise ClassifierError(
            f"Checkpoint '{file}' holds no state dict, tensors by name{unread}: save model.state_dict()."
        )
    return Checkpoint(stored, raw_first=_is_of_mmengine(root), unread=unread)


class _WithoutNumberBound(Budget):
    """The budget for a generator's file without its bound on numbers: one layer of VGG has a hundred million."""

    def spend_numbers(self, count: int) -> None:
        """Count nothing: what tensors claim is bounded by their file, before any is read."""


def _tensor(tensors: Tensors, described: Call, name: str, file: Path) -> Tensor:
    try:
        return tensors.read(described)
    except Refused as error:
        raise ClassifierError(f"Tensor '{name}' of checkpoint '{file}' cannot be read: {error}.") from None


def _is_of_mmengine(root: Any) -> bool:
    """Whether MMEngine wrote the file, which puts averaged weights under `state_dict` and raw ones under `ema_...`."""
    entries = entries_of(root) or {}
    return "message_hub" in entries or "mmengine_version" in (entries_of(entries.get("meta")) or {})


def read_checkpoint(path: str | Path) -> Checkpoint:
    """Read a safetensors file or a file of torch; raises ClassifierError if missing, corrupt or of another kind."""
    file = existing_file(path, "Checkpoint")
    return _read_safetensors(file) if file.suffix == ".safetensors" else _read_torch(file)
