"""Official StyleGAN2-ADA snapshots (`network-snapshot-*.pkl`) without running the source code that they embed.

Such a file is a pickled dictionary with the networks `G`, `D` and `G_ema`. Every module in it is a *persistent object*:
a call of a reconstruction function with one dictionary `type, version, module_src, class_name, state`. `module_src` is
Python source, which the usual reader executes. Here the pickle is plain data (`audit.generator.plain_pickle`), the
source is only measured, and `state` gives tensors by dotted names and the arguments that the network was made with.
Written from the description of the file format; no code of that project was read.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from audit.generator.plain_pickle import Call, Name, Plain, Refused
from audit.generator.torch_archive import TENSOR_GLOBALS, Tensors, entries_of, read_sequential, refuse_unknown

RECONSTRUCT = "_reconstruct_persistent_obj"
LOAD_STORAGE: Name = ("torch.storage", "_load_from_bytes")
MAX_MODULES = 5_000
MAX_SETTINGS = 2_000
MAX_SETTINGS_DEPTH = 6
_ALLOWED = TENSOR_GLOBALS | {
    LOAD_STORAGE, ("dnnlib.util", "EasyDict"), ("dnnlib", "EasyDict"),
    # Numbers in the training's settings; never read.
    ("numpy", "dtype"), ("numpy", "ndarray"),
    ("numpy.core.multiarray", "scalar"), ("numpy.core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "scalar"), ("numpy._core.multiarray", "_reconstruct"),
}  # fmt: skip


@dataclass(frozen=True)
class Network:
    """One network of a snapshot: its class, the settings it was made with, and tensors by dotted name."""

    class_name: str
    settings: dict[str, Any]
    tensors: dict[str, Tensor]
    source_length: int


def allowed(name: Name) -> bool:
    """Tell whether a snapshot may name the global; nothing that it names is ever called all the same."""
    return name in _ALLOWED or _is_reconstruction(name)


def _is_reconstruction(name: Name) -> bool:
    module, function = name
    return function == RECONSTRUCT and (module == "persistence" or module.endswith(".persistence"))


def networks_of(content: Plain, size: int) -> dict[str, Network]:
    """Return the averaged generator (`G_ema`, else `G`) and `D` of a snapshot of `size` bytes; raises Refused."""
    refuse_unknown(content.globals, allowed)
    if content.persistent:
        raise Refused("its pickle refers to something outside itself")
    root = entries_of(content.value)
    if root is None:
        raise Refused("its pickle holds no dictionary of networks")
    wanted = ("G_ema" if root.get("G_ema") is not None else "G", "D")
    return {name: _network(root[name], size) for name in wanted if root.get(name) is not None}


def _persistent(value: Any) -> dict[str, Any]:
    """The dictionary that a persistent object is made of."""
    if isinstance(value, Call) and _is_reconstruction(value.name) and len(value.arguments) == 1:
        meta = entries_of(value.arguments[0])
        if meta is not None and meta.get("type") == "class" and entries_of(meta.get("state")) is not None:
            return meta
    raise Refused("a module in it is no persistent object")


def _network(value: Any, size: int) -> Network:
    meta = _persistent(value)
    state = entries_of(meta["state"]) or {}
    source = meta.get("module_src")
    settings = plain_settings(state.get("_init_kwargs"))
    return Network(
        str(meta.get("class_name"))[:80],
        settings if isinstance(settings, dict) else {},
        _collect(value, size),
        len(source) if isinstance(source, str) else 0,
    )


def _collect(network: Any, size: int) -> dict[str, Tensor]:
    """Walk the modules below `network`; the number of them is bounded, as a file may hold one module in many places."""
    storages: dict[int, tuple[torch.dtype, memoryview]] = {}

    def fetch(described: Any) -> tuple[torch.dtype, memoryview]:
        if id(described) not in storages:
            storages[id(described)] = _nested_storage(described)
        return storages[id(described)]

    tensors = Tensors(fetch, size)
    found: dict[str, Tensor] = {}
    todo: list[tuple[str, Any]] = [("", network)]
    visited = 0
    while todo:
        prefix, module = todo.pop()
        visited += 1
        if visited > MAX_MODULES:
            raise Refused(f"a network in it has more than {MAX_MODULES} modules")
        state = entries_of(_persistent(module)["state"]) or {}
        for group in ("_parameters", "_buffers"):
            for name, value in (entries_of(state.get(group)) or {}).items():
                if tensors.is_tensor(value):
                    found[prefix + name] = tensors.read(value)
                elif value is not None:
                    raise Refused(f"'{(prefix + name)[:80]}' in it is no tensor")
        for name, value in (entries_of(state.get("_modules")) or {}).items():
            if value is not None:
                todo.append((f"{prefix}{name}."[:200], value))
    return found


def _nested_storage(described: Any) -> tuple[torch.dtype, memoryview]:
    """A storage is a whole sequential torch file within the pickle; it is read as warily as the pickle itself."""
    match described:
        case Call(name=name, arguments=(bytes(data),)) if name == LOAD_STORAGE:
            archive = read_sequential(data)
            refuse_unknown(archive.content.globals, TENSOR_GLOBALS.__contains__)
            return archive.tensors.fetch(archive.root)
    raise Refused("a tensor in it has no storage")


def plain_settings(value: Any) -> Any:
    """Numbers, text, lists and dictionaries below `value`; all else, and what exceeds MAX_SETTINGS, becomes None."""
    left = MAX_SETTINGS

    def plain(value: Any, depth: int) -> Any:
        nonlocal left
        left -= 1
        if left < 0 or depth > MAX_SETTINGS_DEPTH:
            return None
        if value is None or isinstance(value, bool | int | float):
            return value
        if isinstance(value, str):
            return value[:200]
        if isinstance(value, list | tuple):
            return [plain(v, depth + 1) for v in value[:64]]
        entries = entries_of(value)
        return None if entries is None else {k[:80]: plain(v, depth + 1) for k, v in list(entries.items())[:64]}

    return plain(value, 0)
