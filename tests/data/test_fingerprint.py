"""The hash of a set: equal for equal content, other for any other image, label, id or order."""

from dataclasses import replace

import numpy as np

from audit.data.audit_set import AuditSet
from audit.data.fingerprint import fingerprint, listing_fingerprint


def images(dtype: type = np.uint8) -> np.ndarray:
    pixels = np.random.default_rng(0).integers(0, 256, (4, 6, 5)).astype(np.uint8)
    return pixels if dtype is np.uint8 else (pixels / 255).astype(dtype)


def set_of(pixels: np.ndarray, **changes: object) -> AuditSet:
    data = AuditSet(
        read_image=lambda row: pixels[row],
        labels=np.array([0, 1, 0, 1]),
        class_names=("a", "b"),
        ids=("1", "2", "3", "4"),
        splits=np.array(["test"] * 4),
        image_shape=(1, 6, 5),
    )
    return replace(data, **changes)


def test_bytes_and_floats_of_equal_pixels_are_the_same() -> None:
    assert fingerprint(set_of(images())) == fingerprint(set_of(images(np.float32)))


def test_every_change_shows() -> None:
    first = fingerprint(set_of(images()))
    moved = images()
    moved[3, 0, 0] ^= 1
    others = [
        set_of(moved),
        set_of(images(), labels=np.array([0, 1, 1, 0])),
        set_of(images(), ids=("1", "2", "4", "3")),
        set_of(images(), class_names=("b", "a")),
        set_of(images()).select([0, 1, 2]),
        set_of(images()).select([1, 0, 2, 3]),
    ]
    assert len({first, *map(fingerprint, others)}) == 7


def test_the_listing_says_ids_and_labels_only() -> None:
    assert listing_fingerprint(set_of(images())) == listing_fingerprint(set_of(255 - images()))
    assert listing_fingerprint(set_of(images())) != listing_fingerprint(set_of(images()).select([1, 0, 2, 3]))


def test_names_that_are_not_text_can_be_hashed() -> None:
    assert len(fingerprint(set_of(images(), ids=("1", "2", "3", "\udce9")))) == 64
