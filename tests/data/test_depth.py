"""Division by white: by depth, as configured, refused where it cannot be meant, and the same for every source."""

import contextlib
import shutil
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support_images import decode_image

from audit.config import DataConfig
from audit.data.depth import Stored, stored_array, to_unit
from audit.data.images import decode_stored, read_header
from audit.data.load import load_data
from audit.errors import DataError

DEEP = np.array([[0, 1, 2048], [4000, 4095, 4080]], dtype=np.uint16)


def tiff(values: np.ndarray, bits: int, photometric: int = 1, data: bytes | None = None) -> bytes:
    """One uncompressed grey TIFF, written by hand: Pillow writes neither 12 bits nor "min is white"."""
    content = values.tobytes() if data is None else data
    height, width = values.shape
    kind = 3 if values.dtype.kind == "f" else 2 if values.dtype.kind == "i" else 1
    tags = {256: width, 257: height, 258: bits, 259: 1, 262: photometric, 273: 8, 277: 1, 278: height,
            279: len(content), 339: kind}  # fmt: skip
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    padded = content + b"\0" * (len(content) % 2)
    return b"II*\0" + struct.pack("<I", 8 + len(padded)) + padded + struct.pack("<H", len(tags)) + entries + b"\0" * 4


@pytest.mark.parametrize("name", ["deep.png", "deep.tif"])
def test_a_white_of_12_bits(tmp_path: Path, name: str) -> None:
    Image.fromarray(DEEP).save(tmp_path / name)
    decoded = decode_image(tmp_path / name, white=4095)
    assert decoded.dtype == np.float32
    np.testing.assert_allclose(decoded, DEEP / 4095, rtol=1e-6)
    assert read_header(tmp_path / name).kind == "16-bit grey"


def test_above_white_is_white() -> None:
    assert to_unit(stored_array(DEEP), 2048, "it").tolist()[1] == [1, 1, 1]
    assert to_unit(Stored(np.array([[0, 15]], dtype=np.uint8), 255), 10, "it").tolist() == [[0, 1]]


def test_bytes_stay_bytes_where_white_is_255(tmp_path: Path) -> None:
    Image.fromarray(DEEP.astype(np.uint8)).save(tmp_path / "a.png")
    for white in (None, 255):
        assert decode_image(tmp_path / "a.png", white).dtype == np.uint8
    np.testing.assert_allclose(decode_image(tmp_path / "a.png", 1), (DEEP.astype(np.uint8) > 0).astype(float))


def test_a_white_that_a_depth_cannot_hold_is_refused(tmp_path: Path) -> None:
    Image.fromarray(DEEP.astype(np.uint8)).save(tmp_path / "a.png")
    Image.fromarray(DEEP).save(tmp_path / "b.png")
    with pytest.raises(DataError, match=r"a\.png' holds no number above 255 where data\.white is 4095: .* one depth"):
        decode_image(tmp_path / "a.png", 4095)
    with pytest.raises(DataError, match="holds no number above 65535"):
        decode_image(tmp_path / "b.png", 70000)


def test_a_tiff_of_12_bits_ends_at_4095(tmp_path: Path) -> None:
    path = tmp_path / "twelve.tif"
    path.write_bytes(tiff(np.zeros((2, 2), np.uint16), 12, data=bytes([0xFF, 0xF0, 0x02, 0x80, 0x00, 0x01])))
    np.testing.assert_allclose(decode_image(path), np.array([[4095, 2], [2048, 1]]) / 4095, rtol=1e-6)
    assert read_header(path).kind == "12-bit grey"


@pytest.mark.parametrize(
    ("values", "bits"), [(DEEP, 16), (DEEP.astype(np.uint8), 8), (np.array([[0, 0.25, 1]], dtype=np.float32), 32)]
)
def test_min_is_white_is_inverted_at_every_depth(tmp_path: Path, values: np.ndarray, bits: int) -> None:
    path = tmp_path / "inverted.tif"
    path.write_bytes(tiff(values, bits, photometric=0))
    top = 1 if bits == 32 else 2**bits - 1
    pixels = decode_image(path)
    pixels = pixels / 255 if pixels.dtype == np.uint8 else pixels
    np.testing.assert_allclose(pixels, 1 - values / top, atol=1e-6)


def test_32_bit_integers_and_floats_with_a_white(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, 500], [1000, 2000]], dtype=np.int32)).save(tmp_path / "wide.tif")
    assert decode_image(tmp_path / "wide.tif", 1000).tolist() == [[0, 0.5], [1, 1]]
    with pytest.raises(DataError, match=r"wide\.tif' holds 32-bit integers, whose white is unknown: set data\.white"):
        decode_image(tmp_path / "wide.tif")
    Image.fromarray(np.array([[0, 51.0, 255.0]], dtype=np.float32)).save(tmp_path / "float.tif")
    np.testing.assert_allclose(decode_image(tmp_path / "float.tif", 255), [[0, 0.2, 1]], rtol=1e-6)
    for bad in (-1024.0, np.nan):
        Image.fromarray(np.array([[0, bad]], dtype=np.float32)).save(tmp_path / "bad.tif")
        with pytest.raises(DataError, match=r"bad\.tif' holds NaN or numbers outside \[0, 255\]"):
            decode_image(tmp_path / "bad.tif", 255)


def test_deep_colour_is_reduced_and_takes_no_other_white(tmp_path: Path) -> None:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    row = b"\0" + np.array([65535, 4095, 255], dtype=">u2").tobytes()
    header = struct.pack(">IIBBBBB", 1, 1, 16, 2, 0, 0, 0)
    path = tmp_path / "colour.png"
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(row)) + chunk(b"IEND", b"")
    )
    assert decode_image(path)[0, 0].tolist() == [255, 15, 0]
    assert decode_stored(path).reduced
    assert read_header(path).kind == "16-bit colour"
    assert decode_image(path, 65535)[0, 0].tolist() == [255, 15, 0]
    with pytest.raises(DataError, match="of which the upper 8 are read"):
        decode_image(path, 200)


def test_a_colour_space_is_converted_or_named(tmp_path: Path) -> None:
    Image.new("LAB", (4, 4)).save(tmp_path / "lab.tif")
    assert read_header(tmp_path / "lab.tif").kind == "8-bit LAB"
    with contextlib.suppress(DataError):  # versions of Pillow differ in what they convert; any other error fails
        assert decode_image(tmp_path / "lab.tif").shape == (4, 4, 3)


def _folder(root: Path) -> Path:
    for name in ("a", "b"):
        for split in ("val", "test"):
            (root / split / name).mkdir(parents=True)
            Image.fromarray(DEEP).save(root / split / name / "0.png")
    return root


def test_every_source_divides_alike(tmp_path: Path, manifest: Callable[[str], Path]) -> None:
    folder = _folder(tmp_path / "set")
    shutil.make_archive(str(tmp_path / "set"), "zip", folder)
    rows = "".join(f"set/{s}/{n}/0.png,{n},{s}\n" for s in ("val", "test") for n in "ab")
    table = manifest("image,label,split\n" + rows)
    stack, labels = np.stack([DEEP, DEEP]), np.array([0, 1])
    np.savez(tmp_path / "set.npz", val_images=stack, val_labels=labels, test_images=stack, test_labels=labels)
    np.savez(
        tmp_path / "float.npz",
        val_images=stack * 1.0, val_labels=labels, test_images=stack * 1.0, test_labels=labels,
    )  # fmt: skip
    signed = stack.astype(np.int64)
    np.savez(tmp_path / "int.npz", val_images=signed, val_labels=labels, test_images=signed, test_labels=labels)
    for path in (folder, tmp_path / "set.zip", table, *(tmp_path / f"{n}.npz" for n in ("set", "float", "int"))):
        images = load_data(DataConfig(path=str(path), white=4095), seed=0).images()
        assert images.shape == (4, 1, 2, 3)
        np.testing.assert_allclose(images[3, 0].numpy(), DEEP / 4095, rtol=1e-6)


def test_arrays_without_a_white_say_how_to_give_one(tmp_path: Path) -> None:
    labels = np.array([0, 1])
    for values in (np.stack([DEEP, DEEP]), np.stack([DEEP, DEEP]) / 2):
        np.savez(tmp_path / "set.npz", test_images=values, test_labels=labels)
        with pytest.raises(DataError, match=r"set data\.white to the number that means white"):
            load_data(DataConfig(path=str(tmp_path / "set.npz")), seed=0)
    np.savez(tmp_path / "set.npz", test_images=-np.ones((2, 2, 2)), test_labels=labels)
    with pytest.raises(DataError, match=r"outside \[0, 4095\]: scale it"):
        load_data(DataConfig(path=str(tmp_path / "set.npz"), white=4095), seed=0)
    np.savez(tmp_path / "set.npz", test_images=np.zeros((2, 2, 2), np.uint8), test_labels=labels)
    with pytest.raises(DataError, match="holds no number above 255"):
        load_data(DataConfig(path=str(tmp_path / "set.npz"), white=4095), seed=0)


def test_a_bitmap_of_16_bits_a_pixel_is_not_deep(tmp_path: Path) -> None:
    pixels = struct.pack("<HH", 0xF800, 0x07E0)  # one row: red, green, in 5, 6 and 5 bits
    masks = struct.pack("<III", 0xF800, 0x07E0, 0x001F)
    sizes = struct.pack("<IiiHHIIiiII", 40, 2, 1, 1, 16, 3, len(pixels), 0, 0, 0, 0)
    offset = 14 + len(sizes) + len(masks)
    path = tmp_path / "small.bmp"
    path.write_bytes(b"BM" + struct.pack("<IHHI", offset + 4, 0, 0, offset) + sizes + masks + pixels)
    assert read_header(path).kind == "8-bit colour"
    assert decode_image(path).tolist() == [[[255, 0, 0], [0, 255, 0]]]
