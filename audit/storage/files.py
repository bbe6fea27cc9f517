"""Files written whole or not at all, and the SHA-256 that tells one from another."""

import hashlib
import json
import os
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path


def hash_file(path: Path) -> str:
    """SHA-256 of a file's bytes, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path` to write a file to; it becomes `path` if the block succeeds, else vanishes.

    Makes the folders it needs. The file is flushed to disk first, so that a power cut leaves the old or the new one. An
    OSError of a write, as of a full disk, names no file by itself: it is raised with `path`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}.tmp")
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        if error.filename in (None, str(temporary)):
            error.filename = str(path)
        raise
    finally:
        temporary.unlink(missing_ok=True)


def atomic_write_bytes(path: Path, data: bytes) -> None:
    """Write a file so that `path` holds either all of `data` or what it held before; makes the folders it needs."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


def atomic_write_text(path: Path, text: str) -> None:
    """Write UTF-8 text as `atomic_write_bytes` does; lone surrogates, as in names of another coding, are escaped."""
    atomic_write_bytes(path, text.encode("utf-8", errors="backslashreplace"))


def atomic_write_history(path: Path, rows: Iterable[Mapping[str, float]]) -> None:
    """Write a training's `rows`, a JSON object a line with six decimals, as `atomic_write_bytes` does."""
    atomic_write_text(path, "".join(json.dumps({k: round(v, 6) for k, v in row.items()}) + "\n" for row in rows))
