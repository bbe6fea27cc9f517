"""The cache of stages on disk: an entry is found by a hash of everything it was computed from.

A key is the SHA-256 of a stage's name, the package version and every input in canonical JSON, in which the hash of its
bytes stands for a tensor. An entry is one safetensors file with its own checksum, moved into place when complete: a
damaged entry counts as absent.
"""

import hashlib
import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import torch
from pydantic import BaseModel
from safetensors.torch import save_file
from torch import Tensor

from audit.storage.files import atomic_path
from audit.storage.version import package_version


def hash_tensor(tensor: Tensor) -> str:
    """SHA-256 of a tensor's type, shape and values, hexadecimal; the same on every device and for every stride."""
    values = tensor.detach().cpu().contiguous()
    digest = hashlib.sha256(f"{values.dtype}{tuple(values.shape)}".encode())
    digest.update(values.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


@cache
def hash_code(*packages: str) -> str:
    """SHA-256 of all source files of `packages`: it stands for their code and for every constant written in it."""
    digest = hashlib.sha256()
    for package in packages:
        folder = Path(str(files(package)))
        for file in sorted(folder.rglob("*.py")):
            source = file.read_bytes()
            digest.update(f"{package}/{file.relative_to(folder).as_posix()}:{len(source)}\n".encode() + source)
    return digest.hexdigest()


def _canonical(value: Any) -> Any:
    """Turn `value` into plain JSON types; raises TypeError for what has no stable form (a path, a function, a set)."""
    if isinstance(value, Tensor):
        return {"tensor": hash_tensor(value)}
    if isinstance(value, np.ndarray):
        return {"tensor": hash_tensor(torch.from_numpy(np.ascontiguousarray(value)))}
    if isinstance(value, BaseModel):
        return _canonical(value.model_dump(mode="json"))
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


def _checksum(tensors: Mapping[str, Tensor], metadata: str) -> str:
    parts = [metadata, *(f"{name}:{hash_tensor(tensors[name])}" for name in sorted(tensors))]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _without_shared_memory(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous tensors on the CPU, copied only where two share memory, which safetensors refuses."""
    plain: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, value in tensors.items():
        tensor = value.detach().cpu().contiguous()
        storage = tensor.untyped_storage().data_ptr()
        plain[name] = tensor.clone() if storage in seen else tensor
        seen.add(storage)
    return plain


@dataclass(frozen=True)
class Entry:
    """What one stage left: named tensors (on the CPU) and JSON metadata."""

    tensors: dict[str, Tensor]
    metadata: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Store:
    """Entries below the folder `root`, which is made when first written to; safe to share between processes."""

    root: Path

    def key(self, stage: str, **inputs: Any) -> str:
        """Key of a stage's result for `inputs`: tensors, arrays, configuration sections and plain JSON values.

        Everything that the result depends on belongs here, such as the hash of weights, the seed, and the code whose
        constants shape it (`hash_code`), which may change under one version. Raises TypeError.
        """
        whole = {"stage": stage, "version": package_version(), "inputs": _canonical(inputs)}
        text = json.dumps(whole, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def path(self, key: str) -> Path:
        """File of the entry `key`, whether or not it is there."""
        return self.root / key[:2] / f"{key}.safetensors"

    def put(self, key: str, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any] | None = None) -> None:
        """Write an entry at once or not at all; it replaces an earlier one of the same key.

        A cache that cannot be written (a full disk) is no reason to lose what was computed: a warning is logged.
        """
        plain = _without_shared_memory(tensors)
        text = json.dumps(dict(metadata or {}), sort_keys=True)
        header = {"json": text, "sha256": _checksum(plain, text)}
        try:
            with atomic_path(self.path(key)) as temporary:
                save_file(plain, temporary, metadata=header)
        except (OSError, safetensors.SafetensorError) as error:
            logging.getLogger(__name__).warning("Nothing is kept in the cache '%s': %s", self.root, error)

    def get(self, key: str) -> Entry | None:
        """Read an entry; None if there is none or its file is damaged."""
        try:
            with safetensors.safe_open(self.path(key), framework="pt") as file:
                stored = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
        except (OSError, safetensors.SafetensorError):
            return None
        text = stored.get("json", "")
        if stored.get("sha256") != _checksum(tensors, text):
            return None
        return Entry(tensors, json.loads(text))

    def get_or_compute(self, key: str, compute: Callable[[], Entry]) -> Entry:
        """Return the entry `key`, computing and writing it first if it is absent or damaged."""
        found = self.get(key)
        if found is None:
            found = compute()
            self.put(key, found.tensors, found.metadata)
        return found
