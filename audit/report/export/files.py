"""Writing of exported files into a folder of the user's."""

from collections.abc import Mapping
from pathlib import Path

from audit.errors import ConfigError
from audit.storage.files import atomic_write_bytes


def write_new(folder: Path, contents: Mapping[str, bytes]) -> list[Path]:
    """Write every file of `contents` into `folder`, which is made if it is not there; return their paths.

    Raises ConfigError, before anything is written, if one of them is there already, or if the folder cannot be used.
    """
    files = [folder / name for name in contents]
    there = next((file for file in files if file.exists() or file.is_symlink()), None)
    if there is not None:
        raise ConfigError(f"'{there}' is there already: move it away or name another folder with --out.")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for file, content in zip(files, contents.values(), strict=True):
            atomic_write_bytes(file, content)
    except OSError as error:
        raise ConfigError(f"'{folder}' cannot be written ({error.strerror}): name another --out.") from None
    return files
