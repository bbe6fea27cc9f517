"""Printing that never fails: what the terminal cannot show is replaced, and a terminal that was closed is ignored."""

import codecs
import io
import os
import sys
from contextlib import suppress

from rich.console import Console, RenderableType
from rich.measure import Measurement
from rich.text import Text

from audit.errors import readable

ERRORS = "spruce-audit"
"""Name of the way in which characters that cannot be encoded are replaced."""
WIDEST = 1000
"""Most characters in a line of a table."""

_PLAIN = {
    "\N{GREATER-THAN OR EQUAL TO}": ">=",
    "\N{LESS-THAN OR EQUAL TO}": "<=",
    "\N{EN DASH}": "-",
    "\N{EM DASH}": "-",
    "\N{MINUS SIGN}": "-",
    "\N{MULTIPLICATION SIGN}": "x",
    "\N{HORIZONTAL ELLIPSIS}": "...",
    "\N{NO-BREAK SPACE}": " ",
    "\N{LEFT DOUBLE QUOTATION MARK}": '"',
    "\N{RIGHT DOUBLE QUOTATION MARK}": '"',
}


def _replacement(character: str) -> str:
    if "\udc80" <= character <= "\udcff":  # a byte of a file name that is not UTF-8, as Python carries it
        return f"\\x{ord(character) - 0xDC00:02x}"
    return _PLAIN.get(character) or character.encode("ascii", "backslashreplace").decode("ascii")


def _replace(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(_replacement(c) for c in error.object[error.start : error.end]), error.end


codecs.register_error(ERRORS, _replace)


def forgive() -> None:
    """Let standard output and standard error replace what they cannot encode, whatever their encoding is."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=ERRORS)


def say(text: object, err: bool = False) -> None:
    """Print a line; a reader that went away (`| head`, a closed terminal) is no error of the command.

    Names in it may be anybody's: nothing in them acts on the terminal (`audit.errors.readable`).
    """
    _print("\n".join(map(readable, str(text).split("\n"))), err)


def _print(text: str, err: bool = False) -> None:
    stream = sys.stderr if err else sys.stdout
    if stream is None:
        return
    try:
        stream.write(f"{text}\n")
        stream.flush()
    except OSError:
        _silence(stream)


def show(what: RenderableType, whole: bool = False) -> None:
    """Print something of rich's, such as a table, as `say` does; texts in it are to be made by `plain`.

    `whole`: nothing is wrapped or cut, and lines may be longer than the terminal is wide.
    """
    console = Console()
    if whole:
        console.width = max(
            console.width, Measurement.get(console, console.options.update(max_width=WIDEST), what).maximum
        )
    with console.capture() as printed:
        console.print(what)
    _print(printed.get().rstrip("\n"))


def plain(text: str) -> Text:
    """Text for `show` that is neither markup nor able to act on the terminal; its line breaks stay."""
    return Text("\n".join(map(readable, text.split("\n"))))


def finish() -> None:
    """Write what is still buffered; to be called last, because Python's own attempt changes the exit status."""
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None:
                stream.flush()
        except (OSError, ValueError):
            _silence(stream)


def _silence(stream: io.TextIOBase | object) -> None:
    """Send what is written to `stream` from now on to nowhere."""
    with suppress(OSError, ValueError, AttributeError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())  # type: ignore[union-attr]
        os.close(nowhere)
