"""The store: results of stages in a folder, found by a hash of all they were computed from, shared between audits.

An entry is one safetensors file, moved into its place when it is complete. Its header holds the SHA-256 of the whole
file, with zeros in the place of that hash, and every byte is compared with it before anything is read. A damaged entry
is set aside and counts as absent. No lock is held at any time: two audits that compute the same at once write the same.
"""

import contextlib
import hashlib
import json
import logging
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import safetensors
from safetensors.torch import save_file
from torch import Tensor

from audit.storage.codec import Entry
from audit.storage.files import atomic_path, atomic_write_bytes
from audit.storage.version import package_version

SUFFIX = ".safetensors"
DAMAGED = "damaged"
"""Folder of entries that were set aside."""
_SEAL = '"sha256":"{}"'
_UNSEALED = "0" * 64
_LARGEST_HEADER = 100 * 10**6
_CHUNK = 2**20
_SHARE_LEFT = 0.9
"""Share of the bound that is left when it was exceeded, so that not every further entry exceeds it again."""
_ABANDONED = 3600.0
"""Seconds after which a file that was never completed is taken for that of a writer that was killed."""


@dataclass(frozen=True)
class Listed:
    """One entry as it lies in the store; `used` is when it was last written or read, in seconds of the epoch."""

    key: str
    bytes: int
    used: float


@dataclass(frozen=True)
class Collected:
    """What was removed from a store, and how many bytes are left in it."""

    entries: int
    bytes: int
    left: int


@dataclass
class _Account:
    """What this process knows of a store: bytes written since it was last looked through, and troubles told already."""

    written: int = 0
    told: set[str] = field(default_factory=set)


@dataclass(frozen=True)
class Store:
    """Entries below the folder `root`, which is made when first written to; safe to share between processes.

    With `max_bytes` the entries used longest ago are removed where all of them take more.
    """

    root: Path
    max_bytes: int | None = None
    _account: _Account = field(default_factory=_Account, compare=False, repr=False)

    def path(self, key: str) -> Path:
        """File of the entry `key`, whether or not it is there."""
        return self.root / key[:2] / f"{key}{SUFFIX}"

    def put(
        self, key: str, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any] | None = None, stage: str = ""
    ) -> None:
        """Write an entry of `stage` at once or not at all; it replaces an earlier one of the same key.

        A store that cannot be written (a full disk) is no reason to lose what was computed: a warning is logged, once.
        """
        text = json.dumps(dict(metadata or {}), sort_keys=True)
        header = {"json": text, "stage": stage, "version": package_version(), "sha256": _UNSEALED}
        path = self.path(key)
        try:
            with atomic_path(path) as temporary:
                save_file(_without_shared_memory(tensors), temporary, metadata=header)
                _seal(temporary)
            self._account.written += path.stat().st_size
        except (OSError, safetensors.SafetensorError) as error:
            self._tell_unwritten(error)
        if self.max_bytes is not None and self._account.written > self.max_bytes * (1 - _SHARE_LEFT):
            self.bound()

    def get(self, key: str) -> Entry | None:
        """Read an entry; None if there is none or its file is damaged, which sets it aside and logs a warning."""
        path = self.path(key)
        try:
            if not _is_whole(path):
                self._set_aside(path)
                return None
            with safetensors.safe_open(path, framework="pt") as file:
                stored = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
        except FileNotFoundError:
            return None
        except (OSError, safetensors.SafetensorError) as error:
            why = getattr(error, "strerror", None) or error
            self._tell(key, f"The entry '{path}' of the store cannot be read and is computed again: {why}.")
            return None
        with contextlib.suppress(OSError):  # a store to be read only
            os.utime(path)  # the entries used longest ago are the first to go
        return Entry(tensors, json.loads(stored["json"]))

    def raw(self, key: str) -> bytes:
        """Return the file of an entry, as `take` of another store takes it. Raises OSError if there is none."""
        return self.path(key).read_bytes()

    def take(self, key: str, file: bytes) -> None:
        """Write an entry that another store gave by `raw`; what was damaged on the way counts as absent when read."""
        try:
            atomic_write_bytes(self.path(key), file)
            self._account.written += len(file)
        except OSError as error:
            self._tell_unwritten(error)

    def entries(self) -> Iterator[Listed]:
        """Yield all entries, in no order; what vanishes meanwhile is left out."""
        for path in self.root.glob(f"??/*{SUFFIX}"):
            try:
                seen = path.stat()
            except OSError:
                continue
            if not path.name.startswith("."):
                yield Listed(path.name.removesuffix(SUFFIX), seen.st_size, seen.st_mtime)

    def description(self, key: str) -> dict[str, Any] | None:
        """Return stage, version and shapes of the tensors of an entry; None if it cannot be read."""
        try:
            with safetensors.safe_open(self.path(key), framework="pt") as file:
                stored = file.metadata() or {}
                slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
                shapes = {name: [one.get_dtype(), *one.get_shape()] for name, one in slices.items()}
        except (OSError, safetensors.SafetensorError):
            return None
        return {"stage": stored.get("stage", ""), "version": stored.get("version", ""), "tensors": shapes}

    def verify(self) -> tuple[int, list[str]]:
        """Compare every entry with its hash; return how many are whole, and the keys of those set aside."""
        whole, damaged = 0, []
        for one in self.entries():
            path = self.path(one.key)
            try:
                if _is_whole(path):
                    whole += 1
                    continue
            except FileNotFoundError:
                continue
            except OSError as error:
                self._tell(one.key, f"The entry '{path}' of the store cannot be read: {error.strerror}.")
            self._set_aside(path)
            damaged.append(one.key)
        return whole, damaged

    def bound(self) -> None:
        """Remove what is too much, if the store has a bound."""
        if self.max_bytes is not None:
            self.collect(self.max_bytes)

    def collect(self, max_bytes: int) -> Collected:
        """Remove what damaged entries and killed writers left, then the entries used longest ago above `max_bytes`."""
        self._account.written = 0
        for path in [*self.root.glob(f"{DAMAGED}/*"), *self.root.glob("??/.*.tmp")]:
            _remove(path, older_than=time.time() - _ABANDONED)
        entries = sorted(self.entries(), key=lambda one: one.used)
        left = sum(one.bytes for one in entries)
        aim = left if left <= max_bytes else int(max_bytes * _SHARE_LEFT)
        removed = count = 0
        for one in entries:
            if left - removed <= aim:
                break
            if _remove(self.path(one.key)):
                removed, count = removed + one.bytes, count + 1
        return Collected(count, removed, left - removed)

    def _set_aside(self, path: Path) -> None:
        aside = self.root / DAMAGED / path.name
        self._tell(str(path), f"The entry '{path}' of the store is damaged: it is set aside as '{aside}'.")
        with contextlib.suppress(OSError):  # where nothing can be written, it is passed over each time
            aside.parent.mkdir(exist_ok=True)
            os.replace(path, aside)

    def _tell_unwritten(self, error: Exception) -> None:
        why = getattr(error, "strerror", None) or error
        self._tell("write", f"Nothing is kept in the store '{self.root}', and the audit goes on without: {why}.")

    def _tell(self, about: str, trouble: str) -> None:
        if about not in self._account.told:
            self._account.told.add(about)
            logging.getLogger(__name__).warning("%s", trouble)


def _remove(path: Path, older_than: float | None = None) -> bool:
    try:
        if older_than is not None and path.stat().st_mtime > older_than:
            return False
        path.unlink()
    except OSError:
        return False
    return True


def _without_shared_memory(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous tensors on the CPU, copied only where two share memory, which safetensors refuses."""
    plain: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, value in tensors.items():
        tensor = value.detach().cpu().contiguous()
        storage = tensor.untyped_storage()
        # A view of a larger storage would be written with all of it.
        whole = storage.data_ptr() not in seen and storage.nbytes() == tensor.nbytes
        plain[name] = tensor if whole else tensor.clone()
        seen.add(storage.data_ptr())
    return plain


def _header_of(file: BinaryIO) -> bytes | None:
    """Return length and header of a safetensors file, from its beginning; None where it has none."""
    length = file.read(8)
    n = int.from_bytes(length, "little")
    header = file.read(n) if len(length) == 8 and n <= _LARGEST_HEADER else b""
    return length + header if header and len(header) == n else None


def _digest(header: bytes, file: BinaryIO) -> str:
    """SHA-256 of `header` and of the rest of `file`."""
    digest = hashlib.sha256(header)
    while chunk := file.read(_CHUNK):
        digest.update(chunk)
    return digest.hexdigest()


def _seal(path: Path) -> None:
    """Write the hash of a file of zeros in its place into that place."""
    with path.open("rb+") as file:
        header = _header_of(file)
        assert header is not None
        sealed = _digest(header, file)
        file.seek(header.index(_SEAL.format(_UNSEALED).encode()))
        file.write(_SEAL.format(sealed).encode())


def _is_whole(path: Path) -> bool:
    """Whether a file is as it was sealed. Raises OSError where it cannot be read.

    It is read, and not mapped, for that: a bad block is then an error, and not the end of the process.
    """
    with path.open("rb") as file:
        header = _header_of(file)
        if header is None:
            return False
        try:
            stated = json.loads(header[8:])["__metadata__"]["sha256"]
        except (ValueError, KeyError, TypeError):
            return False
        if not isinstance(stated, str) or len(stated) != len(_UNSEALED):
            return False
        unsealed = header.replace(_SEAL.format(stated).encode(), _SEAL.format(_UNSEALED).encode(), 1)
        return _digest(unsealed, file) == stated
