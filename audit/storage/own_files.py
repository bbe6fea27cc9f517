"""Single files, and those of a training, that a command writes: in place of its own kind, never of a user's."""

import json
import os
import stat
from collections.abc import Sequence
from pathlib import Path

from audit.errors import ConfigError
from audit.storage.files import atomic_write_text

TRAINING_LIST = ".spruce-training.json"


def same_file(a: Path, b: Path) -> bool:
    """Whether both are one file or folder, by whatever path."""
    if a == b:
        return True
    try:
        return a.samefile(b)
    except OSError:
        return False


def check_own(path: Path, mark: str) -> None:
    """Raise ConfigError if `path` is a file that is not empty and does not carry `mark`, by which ours are known."""
    if path.is_dir():
        raise ConfigError(f"'{path}' is a folder: name a file to write.")
    try:
        with path.open("rb") as file:
            head = file.read(65536) if stat.S_ISREG(os.fstat(file.fileno()).st_mode) else b""
    except FileNotFoundError:
        return
    except OSError as error:
        raise ConfigError(f"'{path}' cannot be written ({error.strerror}): name another file.") from None
    if head and mark.encode() not in head:
        raise ConfigError(f"'{path}' is there and was not written by this command: name another file.")


def write_own(path: Path, text: str) -> None:
    """Write `text` to a file that `check_own` let pass, or to a device or pipe such as /dev/stdout."""
    if path.exists() and not path.is_file():
        path.write_text(text, encoding="utf-8", errors="backslashreplace")
    else:
        atomic_write_text(path, text)


def claim(out: Path, names: Sequence[str], checkpoint: str, inputs: Sequence[str | Path | None] = ()) -> None:
    """Reserve the files and folders `names` in `out` for a training, which replaces its own as it goes on.

    Raises ConfigError if one is there that no training into this folder reserved before, or that is one of `inputs`.
    Where `checkpoint` is there the training goes on, or refuses it itself if it is of another run.
    """
    try:
        listed = {str(name) for name in json.loads((out / TRAINING_LIST).read_text(encoding="utf-8"))["files"]}
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        listed = set()
    for name in names:
        path = out / name
        if any(given is not None and same_file(path.resolve(), Path(given).resolve()) for given in inputs):
            raise ConfigError(f"'{path}' is read by this training and would be written over: name another --out.")
        known = name in listed or (out / checkpoint).is_file()
        if not known and os.path.lexists(path):
            raise ConfigError(
                f"'{path}' is there and was not written by a training into this folder: move it away or name another "
                "--out."
            )
    if not set(names) <= listed:
        about = "files that a training of spruce-audit writes here, and replaces"
        text = json.dumps({"about": about, "files": sorted(listed | set(names))}, indent=1)
        atomic_write_text(out / TRAINING_LIST, text + "\n")
