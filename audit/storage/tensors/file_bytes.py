"""Bytes of a file, read only where they are asked for, and the budget under which a file is opened.

A generator file may be of any size and may say anything. No reader here loads it whole: it holds `Window`s, takes the
few bytes that it needs, and counts what it takes against one `Budget` before anything is allocated. The budgets leave
several times what the largest networks in use need (1024x1024 pixels: 62 million numbers, 20 000 opcodes) and keep any
file below about 500 MB of memory and 20 seconds of a processor.
"""

import codecs
import io
from dataclasses import dataclass
from typing import BinaryIO

MAX_FILE = 4 * 2**30
"""Bytes of a file; the largest checkpoints, with the states of all optimisers, have one and a half."""
MAX_OPCODES = 1_000_000
MAX_TEXT = 32 * 2**20
"""Bytes of all texts that are kept."""
MAX_BLOB_TEXT = 2**20
"""Bytes of a text that is kept; a longer one stays in the file."""
MAX_DECODED = 512 * 2**20
MAX_DECODED_EACH = 200 * 2**20
"""Bytes that are written as text, as pickles up to protocol 2 have them, and are turned back."""
MAX_NUMBERS = 100_000_000
MAX_NUMBERS_EACH = 2**25
"""Numbers in all tensors that are read, and in one."""
CHUNK = 2**18
"""Bytes that are read at once."""


class Refused(ValueError):
    """The bytes cannot be or are not to be read; `str(error)` is the clause that says why."""


class Foreign(Refused):
    """The file is of a kind that is known and not supported; `kind` is its name."""

    def __init__(self, kind: str, reason: str) -> None:
        super().__init__(reason)
        self.kind = kind


class Window:
    """A stretch of an open file; nothing of it is held."""

    def __init__(self, file: BinaryIO, start: int, size: int) -> None:
        self._file, self._start, self.size = file, start, size

    @classmethod
    def of(cls, file: BinaryIO) -> "Window":
        """The whole of `file`; raises Refused if it is larger than any generator's."""
        size = file.seek(0, io.SEEK_END)
        if size > MAX_FILE:
            raise Refused(f"it has {size / 2**30:.1f} GiB, and the budget of a generator file is {MAX_FILE >> 30} GiB")
        return cls(file, 0, size)

    def part(self, start: int, size: int) -> "Window":
        """The `size` bytes from `start`; raises Refused if they are not there."""
        if start < 0 or size < 0 or start + size > self.size:
            raise Refused("it is cut short: it claims bytes that are not there")
        return Window(self._file, self._start + start, size)

    def read(self, start: int, size: int) -> bytes:
        """Copy `size` bytes; raises Refused if they are not there."""
        part = self.part(start, size)
        self._file.seek(part._start)
        data = self._file.read(size)
        if len(data) != size:
            raise Refused("it is cut short: it ends while it is read")
        return data

    def fill(self, start: int, size: int) -> bytearray:
        """Copy `size` bytes into an array of its own, which tensors can stand on."""
        part, data = self.part(start, size), bytearray(size)
        part._file.seek(part._start)
        view, done = memoryview(data), 0
        while done < size:
            count = part._file.readinto(view[done:])  # type: ignore[attr-defined]
            if not count:
                raise Refused("it is cut short: it ends while it is read")
            done += count
        return data


@dataclass
class Budget:
    """What is left for one file, nested pickles included; `spend_*` raise Refused naming the budget that is used up."""

    opcodes: int = MAX_OPCODES
    text: int = MAX_TEXT
    decoded: int = MAX_DECODED
    numbers: int = MAX_NUMBERS

    def spend_text(self, size: int) -> None:
        """Count `size` bytes of text that are about to be kept."""
        self.text -= size
        if self.text < 0:
            raise Refused(f"its pickle holds more text than the budget of {MAX_TEXT >> 20} MiB")

    def spend_numbers(self, count: int) -> None:
        """Count a tensor of `count` numbers that is about to be read."""
        if count > MAX_NUMBERS_EACH:
            raise Refused(f"a tensor in it has {count} numbers, and the budget of one tensor is {MAX_NUMBERS_EACH}")
        self.numbers -= count
        if self.numbers < 0:
            raise Refused(f"its networks claim more than the budget of {MAX_NUMBERS // 10**6} million numbers")


@dataclass(frozen=True, eq=False, repr=False)
class Blob:
    """Bytes within a pickle, left in the file: raw, or (`encoding`) as text of one character a byte."""

    window: Window
    encoding: str | None = None

    def raw(self, budget: Budget) -> Window:
        """The bytes meant; text, as pickles up to protocol 2 hold bytes, is turned back into them. Raises Refused."""
        if self.encoding is None:
            return self.window
        budget.decoded -= self.window.size
        if budget.decoded < 0 or self.window.size > MAX_DECODED_EACH:
            raise Refused(f"it holds more bytes written as text than the budget of {MAX_DECODED >> 20} MiB")
        decoder, out = codecs.getincrementaldecoder(self.encoding)(), io.BytesIO()
        try:
            for start in range(0, self.window.size, CHUNK):
                part = self.window.read(start, min(CHUNK, self.window.size - start))
                out.write(decoder.decode(part, start + CHUNK >= self.window.size).encode("latin-1"))
        except UnicodeError:
            raise Refused("it holds bytes that are not written as pickles write them") from None
        return Window(out, 0, out.tell())


def in_memory(data: bytes) -> Window:
    """A window on bytes that are held already."""
    return Window(io.BytesIO(data), 0, len(data))


def brief(value: object) -> str:
    """A value of a file in a sentence: numbers and text, cut; of anything else the kind, never its content."""
    if value is None or isinstance(value, bool | int | float | str):
        return str(value)[:60]
    return "a dictionary" if isinstance(value, dict) else "a list" if isinstance(value, list | tuple) else "an object"
