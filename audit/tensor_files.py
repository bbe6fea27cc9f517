"""Files of tensors under budgets: what a file claims of itself is bounded before a library reads it.

The libraries check that the bytes are there, but not how much work and memory a small file asks for: a safetensors
header of a million empty tensors takes a gigabyte, a deflated member of a zip file unfolds to a thousand times its
size. The bounds leave several times what the largest networks in use need.
"""

import struct
import zipfile
from pathlib import Path

from safetensors import SafetensorError

MAX_HEADER = 8 * 2**20
"""Bytes of a safetensors header: about a hundred thousand tensors."""
MAX_DIRECTORY = 8 * 2**20
"""Bytes of a zip file's directory: about a hundred thousand members."""
MAX_CONTENT = 64 * 2**20
"""Bytes of a checkpoint's pickle, without its tensors."""
_END, _END_SIZE = b"PK\x05\x06", 22


def header_size(path: str | Path) -> int:
    """Bytes of the header of a safetensors file; raises SafetensorError where it is not there or above MAX_HEADER."""
    file = Path(path)
    with file.open("rb") as opened:
        start = opened.read(8)
    size = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
    if not 2 <= size <= file.stat().st_size - 8:
        raise SafetensorError("it is cut short: its header is not there")
    if size > MAX_HEADER:
        raise SafetensorError(f"its header has {size} bytes, and the budget of a header is {MAX_HEADER >> 20} MiB")
    return int(size)


def checked_safetensors(path: str | Path) -> str:
    """Return `path` for `safe_open` once its header is known to be within the budget; raises SafetensorError."""
    header_size(path)
    return str(path)


def check_torch(path: str | Path) -> None:
    """Raise ValueError with the clause that says why a file of torch is not to be unpacked; unknown files pass."""
    file = Path(path)
    with file.open("rb") as opened:
        opened.seek(max(0, file.stat().st_size - 2**16 - _END_SIZE))
        tail = opened.read()
    at = tail.rfind(_END)
    if at < 0 or len(tail) - at < _END_SIZE:
        return
    directory = struct.unpack("<I", tail[at + 12 : at + 16])[0]
    if directory != 2**32 - 1 and directory > MAX_DIRECTORY:
        raise ValueError(f"its zip directory is larger than the budget of {MAX_DIRECTORY >> 20} MiB")
    try:
        with zipfile.ZipFile(file) as archive:
            members = archive.infolist()
    except (zipfile.BadZipFile, NotImplementedError, OverflowError):
        return
    if sum(m.file_size for m in members) > file.stat().st_size:
        raise ValueError("its members unfold to more than the file holds, which torch does not write")
    if any(m.filename.endswith("data.pkl") and m.file_size > MAX_CONTENT for m in members):
        raise ValueError(f"its pickle is larger than the budget of {MAX_CONTENT >> 20} MiB")
