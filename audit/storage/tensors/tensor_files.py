"""Files of tensors under budgets: what a file claims of itself is bounded before a library reads it.

The libraries check that the bytes are there, but not how much work and memory a small file asks for: a safetensors
header of a million empty tensors takes a gigabyte, a deflated member of a zip file unfolds to a thousand times its
size. The bounds leave several times what the largest networks in use need.
"""

import io
import struct
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

MAX_HEADER = 8 * 2**20
"""Bytes of a safetensors header: about a hundred thousand tensors."""
MAX_DIRECTORY = 8 * 2**20
"""Bytes of a zip file's directory: about a hundred thousand members."""
MAX_CONTENT = 64 * 2**20
"""Bytes of a checkpoint's pickle, without its tensors."""


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


def read_safetensors(path: str | Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read all tensors and the metadata of a safetensors file. Raises SafetensorError as `checked_safetensors` does."""
    with safe_open(checked_safetensors(path), framework="pt") as opened:
        return {name: opened.get_tensor(name) for name in opened.keys()}, dict(opened.metadata() or {})  # noqa: SIM118


def fill_weights(network: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Make `tensors` the weights of `network`, which was built on the meta device, in the network's own types.

    Nothing is allocated before names and shapes are known to fit. Raises RuntimeError naming those that do not.
    """
    types = {name: value.dtype for name, value in network.state_dict().items()}
    network.load_state_dict(tensors, assign=True)
    network.load_state_dict({name: tensors[name].to(kind, copy=True) for name, kind in types.items()}, assign=True)


class OverBudget(ValueError):
    """A file asks for more than its budget; `str(error)` is the clause that says which."""


class BoundedFile(io.RawIOBase):
    """The file that `read_at(start, size)` gives the bytes of, as `zipfile` reads it: never more at once than a
    directory may have. Raises OverBudget.
    """

    def __init__(self, read_at: Callable[[int, int], bytes], size: int) -> None:
        self._read_at, self._size, self._at = read_at, size, 0

    def seekable(self) -> bool:
        """Tell that it can be."""
        return True

    def tell(self) -> int:
        """Position."""
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move to `offset` from the start, the position or the end."""
        self._at = max(0, offset + (0, self._at, self._size)[whence])
        return self._at

    def read(self, size: int = -1) -> bytes:
        """Read up to `size` bytes."""
        left = max(0, self._size - self._at)
        size = left if size < 0 else min(size, left)
        if size > MAX_DIRECTORY:
            raise OverBudget(f"its zip directory is larger than the budget of {MAX_DIRECTORY >> 20} MiB")
        data = self._read_at(self._at, size)
        self._at += size
        return data


def check_torch(path: str | Path) -> None:
    """Raise OverBudget where a zipped file of torch unfolds to more than it holds or than its budget.

    Files that are no zip file pass: their reader takes no more than they hold.
    """
    with Path(path).open("rb") as opened:
        size = opened.seek(0, io.SEEK_END)

        def read_at(start: int, count: int) -> bytes:
            opened.seek(start)
            return opened.read(count)

        try:
            with zipfile.ZipFile(BoundedFile(read_at, size)) as archive:
                members = archive.infolist()
        except (zipfile.BadZipFile, NotImplementedError, OverflowError, UnicodeError, LookupError, struct.error):
            return
    if sum(m.file_size for m in members) > size:
        raise OverBudget("its members unfold to more than the file holds, which torch does not write")
    if any(m.filename.endswith("data.pkl") and m.file_size > MAX_CONTENT for m in members):
        raise OverBudget(f"its pickle is larger than the budget of {MAX_CONTENT >> 20} MiB")
