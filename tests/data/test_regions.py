"""Masks and boxes: what is inside, before and after resizing."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from audit.data.regions import boxes_mask, check_boxes, decode_mask, parse_boxes, resize_mask
from audit.errors import DataError


@st.composite
def _boxes(draw: st.DrawFn) -> tuple[tuple[int, int], tuple[tuple[int, int, int, int], ...]]:
    height, width = draw(st.integers(1, 40)), draw(st.integers(1, 40))
    boxes = []
    for _ in range(draw(st.integers(1, 3))):
        x0, y0 = draw(st.integers(0, width - 1)), draw(st.integers(0, height - 1))
        boxes.append((x0, y0, draw(st.integers(x0 + 1, width)), draw(st.integers(y0 + 1, height))))
    return (height, width), tuple(boxes)


@settings(max_examples=50, deadline=None)
@given(_boxes())
def test_a_box_is_half_open_and_its_mask_has_its_area(case: tuple) -> None:
    (height, width), boxes = case
    drawn = np.zeros((height, width), dtype=bool)
    for x0, y0, x1, y1 in boxes:
        drawn[y0:y1, x0:x1] = True
    np.testing.assert_array_equal(boxes_mask(boxes, (height, width), (height, width)), drawn)
    x0, y0, x1, y1 = boxes[0]
    assert boxes_mask(boxes[:1], (height, width), (height, width)).sum() == (x1 - x0) * (y1 - y0)


@settings(max_examples=50, deadline=None)
@given(_boxes(), st.integers(1, 50))
def test_a_scaled_box_equals_the_nearest_resize_of_the_drawn_box(case: tuple, side: int) -> None:
    size, boxes = case
    expected = resize_mask(boxes_mask(boxes, size, size), side)
    np.testing.assert_array_equal(boxes_mask(boxes, size, (side, side)), expected)


@settings(max_examples=25, deadline=None)
@given(_boxes())
def test_parsing_reads_back_what_was_written(case: tuple) -> None:
    _, boxes = case
    text = "; ".join(" ".join(map(str, box)) for box in boxes)
    assert parse_boxes(text) == boxes
    assert parse_boxes(text.replace(" ", "\t")) == boxes


@pytest.mark.parametrize("text", ["1 2 3", "1 2 3 4 5", "a b c d", "1 2 nan 4", "1 2 inf 4", "", "1 2 3 4;"])
def test_a_box_must_be_four_numbers(text: str) -> None:
    with pytest.raises(ValueError, match="four numbers"):
        parse_boxes(text)


@pytest.mark.parametrize("text", ["3 0 3 4", "5 0 3 4", "0 4 3 4", "0 5 3 4"])
def test_a_box_must_have_an_area(text: str) -> None:
    with pytest.raises(ValueError, match="x0 < x1"):
        parse_boxes(text)


@pytest.mark.parametrize("box", [(-1, 0, 2, 2), (0, -0.5, 2, 2), (0, 0, 11, 2), (0, 0, 2, 6)])
def test_a_box_must_lie_in_the_image(box: tuple) -> None:
    with pytest.raises(ValueError, match="width 10 and height 5"):
        check_boxes((box,), 5, 10)
    check_boxes(((0, 0, 10, 5),), 5, 10)


def _save(path: Path, array: np.ndarray, mode: str | None = None) -> Path:
    image = Image.fromarray(array)
    (image if mode is None else image.convert(mode)).save(path)
    return path


def test_masks_are_inside_where_not_zero(tmp_path: Path) -> None:
    values = np.array([[0, 1], [128, 255]], dtype=np.uint8)
    inside = values != 0
    np.testing.assert_array_equal(decode_mask(_save(tmp_path / "grey.png", values)), inside)
    np.testing.assert_array_equal(decode_mask(_save(tmp_path / "bits.png", inside)), inside)
    deep = values.astype(np.uint16)  # 1 of 65535 is inside as well
    np.testing.assert_array_equal(decode_mask(_save(tmp_path / "deep.png", deep)), inside)
    colour = np.zeros((2, 2, 3), dtype=np.uint8)
    colour[inside, 2] = 9
    np.testing.assert_array_equal(decode_mask(_save(tmp_path / "rgb.png", colour)), inside)
    rgba = np.dstack([np.full((2, 2, 3), 255, dtype=np.uint8), values])
    np.testing.assert_array_equal(decode_mask(_save(tmp_path / "rgba.png", rgba)), inside)
    palette = Image.fromarray(values // 100, mode=None).convert("L")
    palette.putpalette([255, 255, 255, 0, 0, 0, 9, 9, 9])  # index 0 is white, and outside all the same
    palette.save(tmp_path / "palette.png")
    np.testing.assert_array_equal(decode_mask(tmp_path / "palette.png"), values // 100 != 0)


def test_a_jpeg_mask_is_refused(tmp_path: Path) -> None:
    path = _save(tmp_path / "mask.jpg", np.eye(8, dtype=np.uint8) * 255)
    with pytest.raises(DataError, match=r"mask\.jpg.*PNG"):
        decode_mask(path)


def test_resizing_a_mask_by_whole_factors_repeats_pixels() -> None:
    mask = np.random.default_rng(0).random((5, 5)) < 0.5
    np.testing.assert_array_equal(resize_mask(mask, 15), mask.repeat(3, 0).repeat(3, 1))
    np.testing.assert_array_equal(resize_mask(mask.repeat(3, 0).repeat(3, 1), 5), mask)
    assert resize_mask(mask, None) is mask
