"""Decoding, channels and resizing, against pixels that are known by construction."""

import contextlib
import io
import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image
from support_images import decode_image

from audit.data.images import (
    ORIENTATION_TAG,
    KeepingReader,
    convert_channels,
    convert_image,
    read_header,
    resize_image,
)
from audit.errors import DataError


def _gradient(height: int = 6, width: int = 9) -> np.ndarray:
    return (np.arange(height * width, dtype=np.uint8) * 3).reshape(height, width)


@pytest.mark.parametrize("ending", ["png", "bmp", "tif", "webp", "jpg"])
def test_decodes_every_format_it_lists(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"image.{ending}"
    rgb = np.full((6, 9, 3), (200, 100, 50), dtype=np.uint8)
    Image.fromarray(rgb).save(path)
    decoded = decode_image(path)
    assert decoded.shape == (6, 9, 3)
    assert np.abs(decoded.astype(int) - rgb).max() <= 3  # jpg and webp are lossy
    header = read_header(path)
    assert (header.height, header.width, header.channels) == (6, 9, 3)


def test_16_bit_grey_is_divided_by_65535(tmp_path: Path) -> None:
    values = np.array([[0, 1, 256], [40000, 65534, 65535]], dtype=np.uint16)
    for name in ("deep.png", "deep.tif"):
        Image.fromarray(values).save(tmp_path / name)
        decoded = decode_image(tmp_path / name)
        assert decoded.dtype == np.float32
        np.testing.assert_allclose(decoded, values / 65535, rtol=1e-6)
        assert read_header(tmp_path / name).channels == 1


def test_float_tiff_must_be_in_range(tmp_path: Path) -> None:
    path = tmp_path / "float.tif"
    Image.fromarray(np.array([[0.0, 0.25], [0.5, 1.0]], dtype=np.float32)).save(path)
    np.testing.assert_array_equal(decode_image(path), [[0.0, 0.25], [0.5, 1.0]])
    for bad in (np.nan, 1.5, -0.1):
        Image.fromarray(np.array([[0.0, bad]], dtype=np.float32)).save(path)
        with pytest.raises(DataError, match=r"float\.tif.*outside \[0, 1\]"):
            decode_image(path)


def test_32_bit_integers_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "wide.tif"
    Image.fromarray(np.array([[0, 100000]], dtype=np.int32)).save(path)
    with pytest.raises(DataError, match=r"wide\.tif.*32-bit"):
        decode_image(path)


def test_transparency_is_composited_over_black(tmp_path: Path) -> None:
    rgba = np.full((2, 2, 4), (200, 100, 50, 255), dtype=np.uint8)
    rgba[0, 0, 3] = 0
    rgba[0, 1, 3] = 128
    Image.fromarray(rgba).save(tmp_path / "rgba.png")
    decoded = decode_image(tmp_path / "rgba.png")
    assert decoded[0, 0].tolist() == [0, 0, 0]
    assert np.abs(decoded[0, 1].astype(int) - [100, 50, 25]).max() <= 1
    assert decoded[1, 1].tolist() == [200, 100, 50]
    grey = Image.fromarray(np.array([[80]], dtype=np.uint8))
    grey.putalpha(255)
    grey.save(tmp_path / "la.png")
    assert decode_image(tmp_path / "la.png").tolist() == [[80]]


def test_palette_and_one_bit_images(tmp_path: Path) -> None:
    Image.fromarray(_gradient()).convert("RGB").quantize(64).save(tmp_path / "palette.png")
    assert np.abs(decode_image(tmp_path / "palette.png")[..., 0].astype(int) - _gradient()).max() <= 4
    Image.fromarray(np.eye(4, dtype=bool)).save(tmp_path / "bits.png")
    np.testing.assert_array_equal(decode_image(tmp_path / "bits.png"), np.eye(4, dtype=np.uint8) * 255)


@pytest.mark.parametrize("ending", ["png", "webp", "tif", "jpg"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path: Path, ending: str, orientation: int) -> None:
    upright = np.zeros((8, 16), dtype=np.uint8)
    upright[:4, :8] = 255  # the bright quarter is at the upper left
    inverse = {
        1: lambda a: a,
        2: np.fliplr,
        3: lambda a: np.rot90(a, 2),
        4: np.flipud,
        5: np.transpose,
        6: lambda a: np.rot90(a, 1),
        7: lambda a: np.rot90(a, 2).T,
        8: lambda a: np.rot90(a, -1),
    }[orientation]
    path = tmp_path / f"turned.{ending}"
    exif = Image.Exif()
    exif[ORIENTATION_TAG] = orientation
    options = {"webp": {"lossless": True}, "jpg": {"quality": 100}}.get(ending, {})
    Image.fromarray(np.ascontiguousarray(inverse(upright))).convert("RGB").save(path, exif=exif, **options)
    header = read_header(path)
    assert (header.height, header.width) == (8, 16)
    assert header.turned == (orientation > 1)
    decoded = convert_channels(decode_image(path), 1)
    assert np.abs(decoded.astype(int) - upright).max() <= 2


def test_a_missing_and_a_foreign_file_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gone\.png.*does not exist"):
        decode_image(tmp_path / "gone.png")
    (tmp_path / "text.png").write_text("hello")
    for read in (decode_image, read_header):
        with pytest.raises(DataError, match=r"text\.png.*not an image"):
            read(tmp_path / "text.png")


def test_a_stack_of_frames_is_refused(tmp_path: Path) -> None:
    frames = [Image.fromarray(_gradient()), Image.fromarray(_gradient())]
    frames[0].save(tmp_path / "stack.tif", save_all=True, append_images=frames[1:])
    for read in (decode_image, read_header):
        with pytest.raises(DataError, match=r"stack\.tif.*2 frames"):
            read(tmp_path / "stack.tif")


def test_a_truncated_image_fails_on_decoding_and_is_named(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (32, 32), dtype=np.uint8)
    for ending in ("png", "jpg", "tif", "bmp", "webp"):
        path = tmp_path / f"cut.{ending}"
        Image.fromarray(noise).save(path)
        path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
        with pytest.raises(DataError, match=rf"cut\.{ending}"):
            decode_image(path)


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@settings(max_examples=60, deadline=None)
@given(
    ending=st.sampled_from(["png", "jpeg", "tiff", "bmp", "webp"]),
    damage=st.lists(st.tuples(st.integers(0, 2**31), st.integers(0, 255)), min_size=1, max_size=12),
)
def test_damaged_bytes_give_pixels_or_a_data_error(
    tmp_path_factory: pytest.TempPathFactory, ending: str, damage: list[tuple[int, int]]
) -> None:
    buffer = io.BytesIO()
    Image.fromarray(_gradient()).save(buffer, format=ending)
    data = bytearray(buffer.getvalue())
    for position, value in damage:
        data[position % len(data)] = value
    path = tmp_path_factory.mktemp("damage") / f"image.{ending}"
    path.write_bytes(bytes(data))
    with contextlib.suppress(DataError):  # any other error fails the test
        read_header(path)
        assert decode_image(path).ndim in (2, 3)


def test_channels_are_converted_alike_for_bytes_and_floats() -> None:
    rgb = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    grey = convert_channels(rgb, 1)
    assert grey.shape == (5, 7)
    grey_float = convert_channels((rgb / 255).astype(np.float32), 1)
    assert grey_float.dtype == np.float32
    assert np.abs(grey / 255 - grey_float).max() <= 1 / 255
    again = convert_channels(grey, 3)
    assert again.shape == (5, 7, 3)
    assert (again == grey[..., None]).all()
    assert convert_channels(rgb, None) is rgb


def test_halving_averages_and_does_not_alias() -> None:
    checkerboard = (np.indices((16, 16)).sum(0) % 2 * 255).astype(np.uint8)
    small = resize_image(checkerboard, 4)
    assert np.abs(small.astype(float) - 127.5).max() < 8  # without antialiasing it would be 0 or 255


@settings(max_examples=25, deadline=None)
@given(
    pixels=arrays(np.float32, st.tuples(st.integers(1, 12), st.integers(1, 12)), elements=st.floats(0, 1, width=32)),
    side=st.integers(1, 16),
)
def test_resizing_keeps_the_range_and_agrees_between_types(pixels: np.ndarray, side: int) -> None:
    resized = resize_image(pixels, side)
    assert resized.shape == (side, side)
    assert resized.dtype == np.float32
    assert resized.min() >= max(0, pixels.min() - 1e-6)
    assert resized.max() <= min(1, pixels.max() + 1e-6)
    as_bytes = np.round(pixels * 255).astype(np.uint8)
    if pixels.shape != (side, side):
        exact = resize_image((as_bytes / 255).astype(np.float32), side)
        assert np.abs(resize_image(as_bytes, side) / 255 - exact).max() <= 2 / 255


def test_a_keeping_reader_decodes_once_within_its_budget() -> None:
    calls: list[int] = []

    def read(row: int) -> np.ndarray:
        calls.append(row)
        return np.full((10, 10), row, dtype=np.uint8)

    reader = KeepingReader(read, budget=250)  # room for two images
    for _ in range(3):
        assert [int(reader(row)[0, 0]) for row in range(4)] == [0, 1, 2, 3]
    assert sorted(calls) == [0, 1, 2, 2, 2, 3, 3, 3]
    pixels = np.arange(100, dtype=np.uint8).reshape(1, 10, 10)
    full = KeepingReader(pixels.__getitem__, budget=100)
    assert full(0).sum() == pickle.loads(pickle.dumps(full))(0).sum() == 4950


def test_converting_colour_and_size_together() -> None:
    rgb = np.full((10, 20, 3), 100, dtype=np.uint8)
    assert convert_image(rgb, 8, 1).shape == (8, 8)
    assert convert_image(rgb, 8, None).shape == (8, 8, 3)
    assert convert_image(rgb[..., 0], 8, 3).shape == (8, 8, 3)
    floats = np.full((10, 20, 3), 0.25, dtype=np.float32)
    np.testing.assert_allclose(convert_image(floats, 8, None), 0.25, atol=1e-6)
    assert convert_image(rgb, None, None) is rgb
