"""Opens a file of tensors of any kind in use as a `Source`: tensors by name, read one at a time and within a budget."""

import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from audit.storage.tensors.file_bytes import Budget, Refused, Window
from audit.storage.tensors.foreign import by_first_bytes, foreign
from audit.storage.tensors.pickled_modules import Module
from audit.storage.tensors.plain_pickle import Name, read_pickle
from audit.storage.tensors.tensor_files import checked_safetensors, header_size
from audit.storage.tensors.torch_archive import (
    MAGIC,
    Archive,
    entries_of,
    read_plain,
    read_sequential,
    read_zipped,
    refuse_harmful,
)
from audit.storage.tensors.tree import tree_of

_TEXT_PICKLE = re.compile(rb"\((d|l|dp\d+|lp\d+)\n?|\}q.|\(dq.|c[A-Za-z_][\w.]*\n[A-Za-z_]")
"""How pickles of protocols 0 and 1 begin, which have no mark of their own."""
_DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip


@dataclass(frozen=True)
class Source:
    """Names of the tensors in a file, how one is read, and what else the file says.

    `read` raises Refused. `modules` are those of a pickle by dotted name, `globals` the names that it asks for.
    """

    kind: str
    names: list[str]
    read: Callable[[str], Tensor]
    modules: Mapping[str, Module] = field(default_factory=dict)
    globals: tuple[Name, ...] = ()
    metadata: dict[str, str] = field(default_factory=dict)


def open_archive(window: Window, budget: Budget) -> Archive | None:
    """Read the pickle of a torch or snapshot file as plain data; None if it is safetensors. Raises Refused."""
    start = window.read(0, min(256, window.size))
    pickled = start[:1] == b"\x80" or _TEXT_PICKLE.match(start)
    if start[8:9] == b"{" and (start[4:8] == bytes(4) or not pickled):
        return None
    if start[:4] == b"PK\x03\x04":
        return read_zipped(window, budget)
    if not pickled:
        raise by_first_bytes(start) or Refused(
            "it is neither safetensors, nor a file of torch, nor a StyleGAN2-ADA snapshot"
        )
    content = read_pickle(window, budget)
    if content.value == MAGIC:
        return read_sequential(window, budget)
    if content.end != window.size:
        raise Refused("bytes follow the end of its pickle")
    return read_plain(window, content, budget)


def open_source(window: Window, path: Path) -> Source:
    """Open the file `path`, whose bytes `window` shows; raises Refused."""
    budget = Budget()
    archive = open_archive(window, budget)
    if archive is None:
        return _safetensors(window, path, budget)
    refuse_harmful(archive.content)
    if entries_of(archive.content.value) is None:
        raise foreign((), named=archive.content.globals) or Refused("its pickle holds no dictionary of networks")
    tree = tree_of(archive.content.value)
    return Source(
        "torch", list(tree.tensors), lambda name: archive.tensors.read(tree.tensors[name]), tree.modules,
        archive.content.globals,
    )  # fmt: skip


def _safetensors(window: Window, path: Path, budget: Budget) -> Source:
    try:
        size = header_size(path)
        with safe_open(checked_safetensors(path), framework="pt") as file:
            metadata, names = dict(file.metadata() or {}), list(file.keys())
        header = json.loads(window.read(8, size))
    except (SafetensorError, OSError, ValueError, RecursionError) as error:
        if isinstance(error, Refused):
            raise
        raise Refused(f"it cannot be read as safetensors ({str(error)[:200]})") from None

    def read(name: str) -> Tensor:
        entry = header[name]
        dtype, shape, (begin, end) = _DTYPES.get(entry["dtype"]), entry["shape"], entry["data_offsets"]
        elements = math.prod(shape)
        if dtype is None or elements * dtype.itemsize != end - begin:
            raise Refused(f"its tensor '{name[:100]}' has the type {entry['dtype'][:20]}, which no network needs")
        budget.spend_numbers(elements)
        if not elements:
            return torch.empty(shape, dtype=dtype)
        own = window.fill(8 + size + begin, end - begin)
        return torch.frombuffer(own, dtype=dtype).reshape(shape)

    return Source("safetensors", names, read, metadata=metadata)
