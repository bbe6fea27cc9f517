"""The arrays of an `.npz`, mapped into memory: of an archive of any size only what is in use is held.

A stored array is mapped where it lies in the archive. A compressed one is unfolded once, in pieces, into a temporary
file without a name, which ends with the process. Checksums are compared, and pickled objects are never loaded.
"""

import math
import shutil
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryFile, gettempdir
from typing import IO, NamedTuple

import numpy as np

from audit.errors import DataError

PIECE = 2**20
"""Bytes that are read at once."""
LOCAL_HEADER, LENGTHS = 30, slice(26, 30)
"""Bytes in front of a member's name in the archive, and those of them that say how long name and extra field are."""
_READ_HEADER = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
"""By the version of numpy's format; a third one is for names of fields alone."""
MEND = "set TMPDIR to a folder with more room, or save the arrays with numpy.savez, which does not compress"


class _Array(NamedTuple):
    """What the header of an array says."""

    shape: tuple[int, ...]
    by_columns: bool
    dtype: np.dtype

    @property
    def size(self) -> int:
        """In bytes."""
        return math.prod(self.shape) * self.dtype.itemsize

    def mapped(self, file: IO[bytes], at: int) -> np.ndarray:
        if self.size == 0:  # which cannot be mapped
            return np.zeros(self.shape, self.dtype)
        return np.asarray(np.memmap(file, self.dtype, "r", at, self.shape, "F" if self.by_columns else "C"))


def read_arrays(path: Path, wanted: Callable[[str], bool]) -> tuple[dict[str, np.ndarray], list[str]]:
    """Map every array whose name is `wanted`, and name the others; raises DataError naming file and array."""
    if not path.is_file():
        raise DataError(f"Data file '{path}' does not exist: check data.path and data.format.")
    if not zipfile.is_zipfile(path):
        raise DataError(f"File '{path}' is not an .npz archive: save it with numpy.savez or check data.path.")
    try:
        with zipfile.ZipFile(path) as archive:
            members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
            chosen = {name: info for name, info in members.items() if wanted(name)}
            _check_space([info for info in chosen.values() if not _is_stored(info)], path)
            arrays = {name: _read_array(archive, info, name, path) for name, info in chosen.items()}
    except DataError:
        raise
    except Exception as error:  # noqa: BLE001 - damaged bytes fail in whatever way they like
        reason = str(error) or type(error).__name__
        raise DataError(f"File '{path}' is damaged ({reason}): replace it.") from None
    return arrays, [name for name in members if name not in arrays]


def _is_stored(info: zipfile.ZipInfo) -> bool:
    return info.compress_type == zipfile.ZIP_STORED


def _check_space(compressed: list[zipfile.ZipInfo], path: Path) -> None:
    """Raise DataError where arrays unfold to more than there is room for: a small archive can hold any number of 0s."""
    if not compressed:
        return
    claimed = sum(info.file_size for info in compressed)
    try:
        free = shutil.disk_usage(gettempdir()).free
    except OSError:
        raise DataError(f"There is no temporary folder to unfold the arrays of '{path}' into: {MEND}.") from None
    if claimed > free:
        raise DataError(
            f"The arrays of '{path}' unfold to {claimed / 2**30:.1f} GiB where the temporary folder '{gettempdir()}' "
            f"has room for {free / 2**30:.1f}: {MEND}."
        )


def _read_array(archive: zipfile.ZipFile, info: zipfile.ZipInfo, name: str, path: Path) -> np.ndarray:
    with archive.open(info) as member:
        array = _header(member, name, path)
        begin = member.tell()
        if array.size > info.file_size - begin:
            raise DataError(f"Array '{name}' of '{path}' claims more numbers than it holds: the file is damaged.")
        if _is_stored(info):
            while member.read(PIECE):  # the checksum is compared at the end
                pass
            with path.open("rb") as file:
                file.seek(info.header_offset)
                lengths = struct.unpack("<HH", file.read(LOCAL_HEADER)[LENGTHS])
                return array.mapped(file, info.header_offset + LOCAL_HEADER + sum(lengths) + begin)
        try:
            with TemporaryFile() as file:
                shutil.copyfileobj(member, file, PIECE)
                file.flush()
                return array.mapped(file, 0)
        except OSError as error:
            if error.errno is None:  # damaged bytes, in the words of bz2
                raise
            raise DataError(
                f"Array '{name}' of '{path}' cannot be unfolded into the temporary folder ({error.strerror}): {MEND}."
            ) from None


def _header(member: IO[bytes], name: str, path: Path) -> _Array:
    try:
        version = np.lib.format.read_magic(member)
    except ValueError:
        version = None
    if version not in _READ_HEADER:
        raise DataError(f"Member '{name}' of '{path}' is no array of numbers: save it with numpy.savez.")
    array = _Array(*_READ_HEADER[version](member))
    if array.dtype.hasobject:
        raise DataError(f"Array '{name}' of '{path}' holds objects: save it as numbers of one type.")
    return array
