"""The image set: selection, splits, the pixel contract and regions."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from audit.data.audit_set import AuditSet
from audit.errors import DataError


def _set(count: int = 7, dtype: type = np.uint8, colour: bool = False) -> AuditSet:
    shape = (count, 4, 5, 3) if colour else (count, 4, 5)
    pixels = np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)
    stored = pixels if dtype is np.uint8 else (pixels / 255).astype(dtype)

    def mask(row: int) -> np.ndarray | None:
        return None if row % 2 else pixels[row].reshape(4, 5, -1)[..., 0] > 100

    return AuditSet(
        read_image=stored.__getitem__,
        labels=np.arange(count) % 3,
        class_names=("a", "b", "c"),
        ids=tuple(f"image {row}" for row in range(count)),
        splits=np.array(["calibration", "test"])[np.arange(count) // 4 % 2],
        image_shape=(3 if colour else 1, 4, 5),
        regions={"region": mask},
        source="a test",
    )


@pytest.mark.parametrize("colour", [False, True])
def test_bytes_and_floats_give_the_same_pixels(colour: bool) -> None:
    as_bytes = _set(colour=colour).images()
    as_floats = _set(dtype=np.float64, colour=colour).images()
    assert as_bytes.dtype == as_floats.dtype == torch.float32
    assert as_bytes.shape == (7, 3 if colour else 1, 4, 5)
    assert as_bytes.min() >= 0
    assert as_bytes.max() <= 1
    torch.testing.assert_close(as_bytes, as_floats)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, 6), max_size=9), st.data())
def test_selecting_twice_is_selecting_once(outer: list[int], data: st.DataObject) -> None:
    whole = _set()
    inner = data.draw(st.lists(st.integers(0, len(outer) - 1), max_size=5)) if outer else []
    twice, once = whole.select(outer).select(inner), whole.select([outer[i] for i in inner])
    assert twice.row_ids == once.row_ids
    assert twice.row_labels.equal(once.row_labels)
    assert twice.images().equal(once.images())
    assert twice.region().equal(once.region())


def test_images_at_indices_count_within_the_selection() -> None:
    part = _set().split("test")
    assert part.row_ids == ("image 4", "image 5", "image 6")
    assert part.images([2]).equal(_set().images([6]))
    assert part.images(torch.tensor([1, 0])).equal(_set().images([5, 4]))
    assert part.row_labels.tolist() == [1, 2, 0]


def test_an_absent_split_is_named_with_those_present() -> None:
    with pytest.raises(DataError, match=r"Split 'train' of a test is empty; splits present: calibration, test\."):
        _set().split("train")
    with pytest.raises(DataError, match="splits present: test"):
        _set().split("test").split("calibration")


def test_rows_without_a_mask_are_empty() -> None:
    whole = _set()
    regions = whole.region()
    assert regions.shape == (7, 4, 5)
    assert regions.dtype == torch.bool
    assert not regions[1::2].any()
    assert regions[0::2].flatten(1).any(1).all()
    assert not whole.region("no such region").any()
    assert whole.region("region", [2]).equal(regions[2:3])


@pytest.mark.parametrize("batch_size", [1, 3, 7, 100])
def test_batches_cover_the_set_in_order(batch_size: int) -> None:
    whole = _set()
    images, labels, indices = (torch.cat(parts) for parts in zip(*whole.batches(batch_size), strict=True))
    assert images.equal(whole.images())
    assert labels.equal(whole.row_labels)
    assert indices.tolist() == list(range(7))
    assert max(len(batch) for batch, _, _ in whole.batches(batch_size)) <= batch_size


def test_images_are_read_when_asked_for_only() -> None:
    read: list[int] = []

    def reader(row: int) -> np.ndarray:
        read.append(row)
        return np.zeros((4, 5), dtype=np.uint8)

    whole = _set()
    watched = AuditSet(reader, whole.labels, whole.class_names, whole.ids, whole.splits, whole.image_shape)
    batches = watched.select([6, 1, 3]).batches(2)
    assert read == []
    next(batches)
    assert read == [6, 1]


def test_an_image_of_another_shape_is_named() -> None:
    whole = _set()
    wrong = AuditSet(
        lambda row: np.zeros((4, 6), dtype=np.uint8),
        whole.labels,
        whole.class_names,
        whole.ids,
        whole.splits,
        (1, 4, 5),
    )
    with pytest.raises(DataError, match=r"Image 'image 2' .* is \(1, 4, 6\) .* where \(1, 4, 5\) is expected"):
        wrong.images([2])


def test_of_a_lot_only_its_batch_is_worked_on_whatever_is_selected() -> None:
    third = replace(_set(), lot=2).select(range(5))
    assert [places.tolist() for places in third.places(2)] == [[4]]
    ((images, labels, _),) = third.batches(2)
    assert torch.equal(images, _set().images([4]))
    assert labels.tolist() == _set().row_labels[[4]].tolist()
    assert list(replace(third, lot=3).batches(2)) == []
