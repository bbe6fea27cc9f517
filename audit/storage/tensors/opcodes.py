"""Opcodes of a pickle and what follows each of them, its length checked against the bytes that are there.

Python's own `pickletools.genops` copies every text and every stretch of bytes; here long ones stay in the file.
"""

import pickletools
import struct
from typing import Any

from audit.storage.tensors.file_bytes import CHUNK, MAX_BLOB_TEXT, Blob, Budget, Refused, Window

MAX_INTEGER_BYTES = 64
MAX_LINE = 1000
SMALL_BYTES = 256
"""Raw bytes up to this length are copied; longer ones stay in the file."""


class Cursor:
    """Reads a window from front to back through a small buffer."""

    def __init__(self, window: Window, start: int) -> None:
        self.window, self._base, self._at, self._data = window, start, 0, b""

    @property
    def position(self) -> int:
        """Bytes that have been passed."""
        return self._base + self._at

    def take(self, size: int) -> bytes:
        """Copy the next `size` bytes; raises Refused if they are not there."""
        end = self._at + size
        if end > len(self._data):
            self._base, self._at = self.position, 0
            left = self.window.size - self._base
            if size > left:
                raise Refused("its pickle is cut short")
            self._data = self.window.read(self._base, max(size, min(CHUNK, left)))
            end = size
        part, self._at = self._data[self._at : end], end
        return part

    def skip(self, size: int) -> Window:
        """The next `size` bytes, unread."""
        part = self.window.part(self.position, size)
        self._advance(size)
        return part

    def _advance(self, size: int) -> None:
        if self._at + size <= len(self._data):
            self._at += size
        else:
            self._base, self._at, self._data = self.position + size, 0, b""

    def line(self) -> Window:
        """The bytes up to the next end of line, which is passed as well."""
        start = self.position
        found = self._data.find(b"\n", self._at)
        size = found - self._at
        at = start if found >= 0 else self._base + len(self._data)
        while found < 0:
            part = self.window.read(at, min(CHUNK, self.window.size - at))
            if not part:
                raise Refused("its pickle is cut short")
            found = part.find(b"\n")
            size = at + found - start
            at += len(part)
        self._advance(size + 1)
        return self.window.part(start, size)


def _short_line(cursor: Cursor) -> str:
    line = cursor.line()
    if line.size > MAX_LINE:
        raise Refused(f"its pickle has a name or number of more than {MAX_LINE} bytes")
    return line.read(0, line.size).decode("utf-8")


_FIXED = {
    "BININT": "<i", "BININT1": "<B", "BININT2": "<H", "BINFLOAT": ">d", "BINGET": "<B", "LONG_BINGET": "<I",
    "BINPUT": "<B", "LONG_BINPUT": "<I", "PROTO": "<B", "FRAME": "<Q",
}  # fmt: skip
COUNTED = {
    "SHORT_BINUNICODE": ("<B", "utf-8"), "BINUNICODE": ("<I", "utf-8"), "BINUNICODE8": ("<Q", "utf-8"),
    "SHORT_BINSTRING": ("<B", "latin-1"), "BINSTRING": ("<i", "latin-1"),
    "SHORT_BINBYTES": ("<B", None), "BINBYTES": ("<I", None), "BINBYTES8": ("<Q", None), "BYTEARRAY8": ("<Q", None),
}  # fmt: skip
LONG = {"LONG1": "<B", "LONG4": "<i"}
_LINES = {"INT", "LONG", "FLOAT", "GET", "PUT"}
NAMES = {ord(opcode.code): opcode.name for opcode in pickletools.opcodes}


def _unpack(cursor: Cursor, code: str) -> Any:
    return struct.unpack(code, cursor.take(struct.calcsize(code)))[0]


def argument_of(opcode: str, cursor: Cursor, budget: Budget) -> Any:
    """What follows `opcode` in the pickle, its length checked before it is read."""
    if opcode in _FIXED:
        value = _unpack(cursor, _FIXED[opcode])
        if opcode == "FRAME" and value > cursor.window.size - cursor.position:
            raise Refused("its pickle is cut short")
        return value
    if opcode in COUNTED:
        code, encoding = COUNTED[opcode]
        size = _unpack(cursor, code)
        if encoding is None and size > SMALL_BYTES:
            return Blob(cursor.skip(size))
        if size > MAX_BLOB_TEXT:
            return Blob(cursor.skip(size), encoding)
        budget.spend_text(max(size, 0))
        data = cursor.take(size) if size >= 0 else _damaged()
        return data if encoding is None else data.decode(encoding, "surrogatepass" if encoding == "utf-8" else "strict")
    if opcode in LONG:
        size = _unpack(cursor, LONG[opcode])
        if not 0 <= size <= MAX_INTEGER_BYTES:
            raise Refused(f"its pickle holds an integer of more than {8 * MAX_INTEGER_BYTES} bits")
        return int.from_bytes(cursor.take(size), "little", signed=True)
    if opcode in _LINES:
        return _number(opcode, _short_line(cursor))
    if opcode in ("UNICODE", "STRING"):
        line = cursor.line()
        encoding = "raw-unicode-escape" if opcode == "UNICODE" else "unicode-escape"
        if line.size > MAX_BLOB_TEXT:
            return Blob(line, encoding)
        budget.spend_text(line.size)
        text = line.read(0, line.size).decode(encoding)
        return text[1:-1] if opcode == "STRING" else text
    if opcode == "GLOBAL":
        return _short_line(cursor), _short_line(cursor)
    return None


def _damaged() -> bytes:
    raise ValueError("a length is negative")


def _number(opcode: str, line: str) -> Any:
    if len(line) > 150:
        raise Refused(f"its pickle holds an integer of more than {8 * MAX_INTEGER_BYTES} bits")
    if opcode == "INT" and line in ("00", "01"):
        return line == "01"
    return float(line) if opcode == "FLOAT" else int(line.removesuffix("L"))
