"""Image files that are not what they say: decompression bombs, polyglots, programs for an interpreter, cut files."""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from audit.config import DataConfig
from audit.data.images import decode_stored
from audit.data.load import load_data
from audit.data.regions import decode_mask
from audit.errors import ConfigError, DataError, ResultsError
from audit.reliance.tokens import read_token
from audit.report.figures import read_image


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png() -> bytes:
    held = io.BytesIO()
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(held, "PNG")
    return held.getvalue()


def bomb() -> bytes:
    """A PNG of a few kilobytes whose header claims 1.6 billion pixels."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 40_000, 40_000, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(10**6))) + chunk(b"IEND", b"")


def program(mark: Path) -> bytes:
    """An EPS file, for which Pillow would start Ghostscript; as a program it makes the file `mark`."""
    return (
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n"
        + f"({mark}) (w) file closefile\nshowpage\n%%EOF\n".encode()
    )


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (bomb(), "exceeds limit"),
        (b"#!/bin/sh\nexit 1\n" + png(), "not an image"),
        (b"GIF89a" + png(), "not an image"),
        (png()[:40], "cannot be decoded"),
        (program(Path("mark")), "not an image"),
        (b"", "not an image"),
    ],
    ids=["bomb", "script", "polyglot", "cut", "eps", "empty"],
)
def test_what_is_no_image_of_its_ending_is_refused(content: bytes, said: str, tmp_path: Path) -> None:
    for label in ("a", "b"):
        (tmp_path / "set" / "test" / label).mkdir(parents=True)
        (tmp_path / "set" / "test" / label / "0.png").write_bytes(content)
    with pytest.raises(DataError, match=said):
        load_data(DataConfig(path=str(tmp_path / "set")), seed=0).images()


def test_no_program_is_run_for_a_picture(tmp_path: Path) -> None:
    file = tmp_path / "it.png"
    file.write_bytes(program(tmp_path / "mark"))
    for read, error in (
        (lambda: decode_stored(file), DataError),
        (lambda: decode_mask(file), DataError),
        (lambda: read_token(file), ConfigError),
        (lambda: read_image(tmp_path, "it.png"), ResultsError),
    ):
        with pytest.raises(error):
            read()
    assert not (tmp_path / "mark").exists()


def test_a_picture_of_a_report_that_is_a_bomb_or_no_name(tmp_path: Path) -> None:
    (tmp_path / "it.png").write_bytes(bomb())
    for name in ("it.png", "a\0b"):
        with pytest.raises(ResultsError, match="cannot be"):
            read_image(tmp_path, name)
