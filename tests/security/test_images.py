"""Image files that are not what they say: decompression bombs, polyglots, programs for an interpreter, cut files."""

import base64
import io
import struct
import tracemalloc
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from audit.config import DataConfig
from audit.data.images import decode_stored, read_header
from audit.data.load import load_data
from audit.data.regions import decode_mask
from audit.errors import ConfigError, DataError, ResultsError
from audit.reliance.tokens import read_token
from audit.report.figures import file_uri, read_image


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


def claiming(kind: str, side: int = 40_000) -> bytes:
    """A picture of 8 x 8 pixels whose header claims 1.6 billion (WebP: the 268 million that it can)."""
    held = io.BytesIO()
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(held, kind, **({"lossless": True} if kind == "WEBP" else {}))
    data = bytearray(held.getvalue())
    if kind == "PNG":
        data[16:24] = struct.pack(">II", side, side)
        data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    elif kind == "BMP":
        data[18:26] = struct.pack("<ii", side, side)
    elif kind == "JPEG":
        at = data.index(b"\xff\xc0")
        data[at + 5 : at + 9] = struct.pack(">HH", side, side)
    elif kind == "TIFF":
        first = struct.unpack("<I", data[4:8])[0] + 2
        for at in range(first, first + 12 * struct.unpack("<H", data[first - 2 : first])[0], 12):
            if struct.unpack("<H", data[at : at + 2])[0] in (256, 257):  # width, height
                data[at + 2 : at + 12] = struct.pack("<HII", 4, 1, side)
    else:
        data[21:25] = struct.pack("<I", (2**14 - 2) << 14 | 2**14 - 2)
    return bytes(data)


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


@pytest.mark.parametrize("kind", ["PNG", "BMP", "JPEG", "TIFF", "WEBP"])
def test_a_header_that_claims_a_billion_pixels(kind: str, tmp_path: Path) -> None:
    for number in range(2):
        file = tmp_path / "set" / "test" / f"{number}" / f"0.{kind.lower()}"
        file.parent.mkdir(parents=True)
        file.write_bytes(claiming(kind))
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match="exceeds limit"):
            load_data(DataConfig(path=str(tmp_path / "set")), seed=0)
        assert tracemalloc.get_traced_memory()[1] < 2**24
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "WEBP"])
@pytest.mark.parametrize("given", ["folder", "manifest"])
def test_a_mask_that_claims_a_billion_pixels(kind: str, given: str, tmp_path: Path) -> None:
    lines = ["image,label,split,mask"]
    for number in range(2):
        for root, content in (("set", png()), ("masks", claiming(kind))):
            file = tmp_path / root / "test" / f"{number}" / ("0.png" if root == "set" else f"0.{kind.lower()}")
            file.parent.mkdir(parents=True)
            file.write_bytes(content)
        lines.append(f"set/test/{number}/0.png,{number},test,masks/test/{number}/0.{kind.lower()}")
    (tmp_path / "set.csv").write_text("\n".join(lines))
    path = {"path": str(tmp_path / "set.csv")}
    if given == "folder":
        path = {"path": str(tmp_path / "set"), "masks": str(tmp_path / "masks")}
    with pytest.raises(DataError, match="exceeds limit"):
        load_data(DataConfig.model_validate(path), seed=0)


def test_dicom_that_claims_a_billion_pixels(tmp_path: Path) -> None:
    pydicom = pytest.importorskip("pydicom", reason="extra dicom")
    image = pydicom.dcmread(pydicom.data.get_testdata_file("MR_small.dcm", download=False))
    image.Rows = image.Columns = 40_000
    image.save_as(tmp_path / "it.dcm")
    for read in (read_header, decode_stored):
        with pytest.raises(DataError, match="claims 40000 x 40000 pixels"):
            read(tmp_path / "it.dcm")


def test_what_follows_a_picture_stays_behind(tmp_path: Path) -> None:
    held = io.BytesIO(png())
    with zipfile.ZipFile(held, "a") as file:
        file.writestr("a.html", "<script>alert(1)</script>")
    (tmp_path / "it.png").write_bytes(held.getvalue())
    assert not decode_stored(tmp_path / "it.png").values.any()
    shown = base64.b64decode(file_uri(tmp_path, "it.png").partition(",")[2])
    assert len(shown) < len(png()) + 20
    assert b"script" not in shown


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
