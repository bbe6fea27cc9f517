"""What stands for a stage's inputs and for its code, so that equal work is found again and other work never is.

A key is the SHA-256 of a stage's name, of its inputs in canonical JSON, in which the hash of its bytes stands for a
tensor, and of the code that computes it: the sources of the modules named and of all that they import of this package.
"""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import BaseModel
from torch import Tensor

_IMPORTS = re.compile(r"^[ \t]*from[ \t]+([\w.]+)[ \t]+import[ \t]+(\([^)]*\)|[^\n]*)", re.MULTILINE)
_APART = ("config", "results", "errors", "storage", "report", "runtime.progress", "runtime.terminal")
"""Modules that no number depends on but by what is in a key anyway: values of settings, and results as they are."""


def hash_tensor(tensor: Tensor) -> str:
    """SHA-256 of a tensor's type, shape and values, hexadecimal; the same on every device and for every stride."""
    values = tensor.detach().cpu().contiguous()
    digest = hashlib.sha256(f"{values.dtype}{tuple(values.shape)}".encode())
    digest.update(values.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def key_of(stage: str, code: str, inputs: Mapping[str, Any]) -> str:
    """Return the key of a stage's result for `inputs`; `code` stands for what computes it.

    Inputs are tensors, arrays, dataclasses, models of pydantic and plain JSON values. Raises TypeError for others.
    """
    whole = {"stage": stage, "code": code, "inputs": _canonical(inputs)}
    text = json.dumps(whole, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _canonical(value: Any) -> Any:
    """Turn `value` into plain JSON types; raises TypeError for what has no stable form (a path, a function, a set)."""
    if isinstance(value, Tensor):
        return {"tensor": hash_tensor(value)}
    if isinstance(value, np.ndarray):
        return {"tensor": hash_tensor(torch.from_numpy(np.ascontiguousarray(value)))}
    if isinstance(value, BaseModel):
        return _canonical(value.model_dump(mode="json"))
    if is_dataclass(value) and not isinstance(value, type):
        return {one.name: _canonical(getattr(value, one.name)) for one in fields(value)}
    if isinstance(value, Mapping):
        if not all(isinstance(key, str) for key in value):
            raise TypeError("keys of a mapping must be strings to be part of a store key")
        return {key: _canonical(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_canonical(entry) for entry in value]
    if isinstance(value, np.generic):
        return value.item()
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"a {type(value).__name__} has no stable form and cannot be part of a store key")


@cache
def code_hash(*modules: str) -> str:
    """SHA-256 of the sources of `modules`, packages with all they hold, and of what these import of their own package.

    It stands for their code and for every constant written in it, and changes with nothing else.
    """
    known: dict[str, bytes] = {}
    waiting = [found for module in modules for found in _modules_in(module)]
    while waiting:
        module = waiting.pop()
        package, _, inner = module.partition(".")
        if module in known or f"{inner}.".startswith(tuple(f"{one}." for one in _APART)):
            continue
        file = _file_of(module)
        if file is not None:
            known[module] = file.read_bytes()
            waiting += [name for name in _imported(known[module].decode()) if name.split(".")[0] == package]
    digest = hashlib.sha256()
    for module in sorted(known):
        digest.update(f"{module}:{len(known[module])}\n".encode() + known[module])
    return digest.hexdigest()


def _file_of(module: str) -> Path | None:
    """Return the source of `module`; None where there is no such module, as for the name of a function."""
    package, *inner = module.split(".")
    path = Path(str(files(package))).joinpath(*inner)
    return next((one for one in (path.with_suffix(".py"), path / "__init__.py") if one.is_file()), None)


def _modules_in(module: str) -> Iterator[str]:
    yield module
    file = _file_of(module)
    if file is not None and file.name == "__init__.py":
        for inner in file.parent.rglob("*.py"):
            parts = inner.relative_to(file.parent).with_suffix("").parts
            yield ".".join((module, *(part for part in parts if part != "__init__")))


def _imported(source: str) -> Iterator[str]:
    """Yield what `source` imports, names within a module included."""
    for module, names in _IMPORTS.findall(source):
        yield module
        for name in re.findall(r"\w+", names.partition("#")[0]):
            yield f"{module}.{name}"
