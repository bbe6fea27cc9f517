"""Tensors and modules of a pickle by dotted name, out of dictionaries and modules nested in any way.

What is shared within a file may stand in any number of places, so that a walk over it is bounded by the entries it
visits, by their depth and by the length of their names, whatever they are.
"""

from dataclasses import dataclass, field
from typing import Any

from audit.storage.tensors.file_bytes import Refused
from audit.storage.tensors.pickled_modules import Module, module_of
from audit.storage.tensors.plain_pickle import Call
from audit.storage.tensors.torch_archive import described_tensor, entries_of

MAX_ENTRIES = 100_000
MAX_DEPTH = 12
MAX_NAME = 300


@dataclass
class Tree:
    """Descriptions of tensors and modules by dotted name; the root has the name ""."""

    tensors: dict[str, Call] = field(default_factory=dict)
    modules: dict[str, Module] = field(default_factory=dict)


def tree_of(root: Any) -> Tree:
    """Walk everything below `root`; raises Refused where there is more than the budget of entries."""
    found = Tree()
    todo: list[tuple[str, Any, int]] = [("", root, 0)]
    seen = 0
    while todo:
        prefix, value, depth = todo.pop()
        module = module_of(value)
        entries = entries_of(value) if module is None else module.tensors | module.children
        if module is not None:
            found.modules[prefix.removesuffix(".")] = module
        seen += len(entries or {}) + 1
        if seen > MAX_ENTRIES:
            raise Refused(f"it holds more than the budget of {MAX_ENTRIES} entries")
        for key, entry in (entries or {}).items():
            name = prefix + key[:MAX_NAME]
            tensor = described_tensor(entry)
            if len(name) > MAX_NAME:
                continue  # no network has such a name
            if tensor is not None:
                found.tensors[name] = tensor
            elif depth < MAX_DEPTH and isinstance(entry, dict | Call):
                todo.append((f"{name}.", entry, depth + 1))
    return found
