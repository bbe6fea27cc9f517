"""MedMNIST archives: layouts, types, and what is refused."""

import pickle
import struct
import tempfile
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from audit.config import DataConfig
from audit.data.audit_set import AuditSet
from audit.data.load import load_data
from audit.data.npz_arrays import read_arrays
from audit.errors import DataError


def _arrays(shape: tuple[int, ...] = (6, 6), **replaced: object) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    arrays: dict[str, np.ndarray] = {}
    for split, count in (("train", 5), ("val", 3), ("test", 4)):
        arrays[f"{split}_images"] = rng.integers(0, 256, (count, *shape), dtype=np.uint8)
        arrays[f"{split}_labels"] = (np.arange(count, dtype=np.uint8) % 2)[:, None]
    return {**arrays, **replaced}  # type: ignore[dict-item]


def _load(tmp_path: Path, arrays: dict[str, np.ndarray], **values: object) -> AuditSet:
    np.savez_compressed(tmp_path / "set.npz", **arrays)
    return load_data(DataConfig.model_validate({"path": str(tmp_path / "set.npz"), **values}), seed=0)


@pytest.mark.parametrize(("shape", "channels"), [((6, 6), 1), ((6, 6, 1), 1), ((6, 6, 3), 3)])
def test_layouts(tmp_path: Path, shape: tuple[int, ...], channels: int) -> None:
    arrays = _arrays(shape)
    data = _load(tmp_path, arrays)
    assert data.image_shape == (channels, 6, 6)
    assert data.class_names == ("class 0", "class 1")
    for split in ("train", "val", "test"):
        part = data.split(split)
        assert part.row_labels.tolist() == arrays[f"{split}_labels"][:, 0].tolist()
        pixels = part.images().permute(0, 2, 3, 1).numpy()
        np.testing.assert_allclose(pixels, arrays[f"{split}_images"].reshape(pixels.shape) / 255, atol=1e-7)
    assert data.split("val").row_ids == ("val/00000", "val/00001", "val/00002")


def test_flat_labels_names_and_conversion(tmp_path: Path) -> None:
    arrays = _arrays()
    flat = {name: value[:, 0] if name.endswith("labels") else value for name, value in arrays.items()}
    data = _load(tmp_path, flat, classes=["normal", "pneumonia"], image_size=8, channels=3)
    assert data.class_names == ("normal", "pneumonia")
    assert data.images([0, 11]).shape == (2, 3, 8, 8)
    assert pickle.loads(pickle.dumps(data)).images([4]).equal(data.images([4]))


def test_floats_in_range(tmp_path: Path) -> None:
    arrays = _arrays()
    floats = {name: value / 255 if name.endswith("images") else value.astype(float) for name, value in arrays.items()}
    assert _load(tmp_path, floats).images().allclose(_load(tmp_path, arrays).images(), atol=1e-6)


def test_empty_splits_and_other_arrays_are_left_out(tmp_path: Path) -> None:
    none = np.zeros((0, 6, 6), dtype=np.uint8)
    data = _load(tmp_path, _arrays(val_images=none, val_labels=none[:, :1, 0], info=np.array("text")))
    assert sorted(set(data.splits)) == ["test", "train"]


NAN = np.full((4, 6, 6), 0.5)
NAN[2, 3, 3] = np.nan
WIDE = np.full((4, 6, 6), 0.5)
WIDE[3] = 255


@pytest.mark.parametrize(
    ("replaced", "match"),
    [
        ({"test_images": NAN}, "Image 2 of array 'test_images' .* NaN or numbers outside"),
        ({"test_images": WIDE}, "Image 3 of array 'test_images'"),
        ({"test_images": np.zeros((4, 6, 6), dtype=np.uint16)}, "'test_images' .* of type uint16"),
        ({"test_images": np.zeros((4, 6, 6, 4), dtype=np.uint8)}, "'test_images' .* shape"),
        ({"test_images": np.zeros((4, 6), dtype=np.uint8)}, "'test_images' .* shape"),
        ({"val_images": np.zeros((3, 7, 6), dtype=np.uint8)}, "'val_images' .* give all splits one shape"),
        ({"test_labels": np.zeros(3, dtype=int)}, "has 3 labels for 4 images"),
        ({"test_labels": np.zeros((4, 2), dtype=int)}, "one label per image"),
        ({"test_labels": np.array([0, 1, 0.5, 1])}, "Label 0.5 in row 2 of array 'test_labels' .* not a whole number"),
        ({"test_labels": np.array([0, 1, np.nan, 1])}, "Label nan in row 2"),
        ({"test_labels": np.array([0, -1, 0, 1])}, "Label -1 in row 1 of array 'test_labels' .* out of range"),
        ({"test_labels": np.array([0, 1, 0, 20000])}, "Label 20000 in row 3"),
        ({"test_labels": np.array([0, 1, 3, 1])}, "Class 'class 2' has no image"),
        ({"test_labels": np.array(list("abcd"))}, "labels must be whole numbers"),
        ({"test_labels": np.array([0, 1, None, 1], dtype=object)}, "'test_labels' .* holds objects"),
        ({"extra_images": np.zeros((1, 6, 6), dtype=np.uint8)}, "no array 'extra_labels'"),
    ],
)
def test_bad_arrays_are_named(tmp_path: Path, replaced: dict[str, np.ndarray], match: str) -> None:
    with pytest.raises(DataError, match=match) as caught:
        _load(tmp_path, _arrays(**replaced))
    assert "\n" not in str(caught.value)


def test_labels_beyond_the_class_list(tmp_path: Path) -> None:
    labels = np.array([0, 1, 2, 1])
    with pytest.raises(DataError, match=r"Label 2 in row 2 .* between 0 and 1 \(normal, pneumonia\)"):
        _load(tmp_path, _arrays(test_labels=labels), classes=["normal", "pneumonia"])


def test_files_that_are_no_such_archive(tmp_path: Path) -> None:
    def refuse(match: str, **values: object) -> None:
        with pytest.raises(DataError, match=match):
            load_data(DataConfig.model_validate({"path": str(path), **values}), seed=0)

    path = tmp_path / "set.npz"
    refuse("does not exist", format="npz")
    path.write_text("no archive")
    refuse("is not an .npz archive")
    np.save(tmp_path / "single.npy", np.zeros(3))
    path.write_bytes((tmp_path / "single.npy").read_bytes())
    refuse("is not an .npz archive")
    np.savez(path, x=np.zeros(3))
    refuse(r"no arrays '<split>_images' and '<split>_labels' \(it has: x\)")
    np.savez_compressed(path, **_arrays())
    data = bytearray(path.read_bytes())
    data[60:120] = bytes(60)
    path.write_bytes(bytes(data))
    refuse("is damaged")
    none = np.zeros((0, 6, 6), dtype=np.uint8)
    np.savez(path, test_images=none, test_labels=none[:, 0, 0])
    refuse("holds no images")


def test_a_header_that_claims_more_than_there_is(tmp_path: Path) -> None:
    header = {"descr": "|u1", "fortran_order": False, "shape": (10**14, 1, 1)}
    with zipfile.ZipFile(tmp_path / "set.npz", "w") as archive, archive.open("test_images.npy", "w") as member:
        np.lib.format.write_array_header_1_0(member, header)
    with pytest.raises(DataError, match=r"'test_images' .* claims more numbers than it holds"):
        load_data(DataConfig(path=str(tmp_path / "set.npz")), seed=0)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_arrays_are_mapped_to_the_bit(tmp_path: Path, save: Callable[..., None]) -> None:
    rng = np.random.default_rng(0)
    colour = rng.random((5, 6, 7, 3))
    arrays = {
        "bytes": rng.integers(0, 256, (5, 6, 7), dtype=np.uint8),
        "columns": np.asfortranarray(colour),
        "other end": colour.astype(">f4"),
        "half": colour.astype(np.float16),
        "integers": rng.integers(-9, 9, (5, 1)),
        "none": np.zeros((0, 6, 6), dtype=np.uint8),
        "one": np.array(3.5),
        "yes": colour > 0.5,
    }
    save(tmp_path / "set.npz", **arrays, left=np.zeros(2))
    mapped, others = read_arrays(tmp_path / "set.npz", arrays.__contains__)
    assert others == ["left"]
    assert list(mapped) == list(arrays)
    for name, array in arrays.items():
        assert mapped[name].dtype == array.dtype
        assert mapped[name].flags.f_contiguous == array.flags.f_contiguous
        np.testing.assert_array_equal(mapped[name], array)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_memory_does_not_grow_with_the_archive(tmp_path: Path, save: Callable[..., None]) -> None:
    images = np.zeros((4096, 128, 128), dtype=np.uint8)
    images[:, :64] = np.arange(4096)[:, None, None] % 251
    labels = np.arange(4096) % 2
    save(tmp_path / "set.npz", val_images=images[:2], val_labels=labels[:2], test_images=images, test_labels=labels)
    tracemalloc.start()
    try:
        data = load_data(DataConfig(path=str(tmp_path / "set.npz")), seed=0)
        held = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert held < images.nbytes / 8
    np.testing.assert_array_equal(data.read_image(4095), images[4095])


def test_a_stored_array_whose_bytes_changed_or_are_missing(tmp_path: Path) -> None:
    path = tmp_path / "set.npz"
    np.savez(path, **_arrays())
    whole = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        info = archive.getinfo("test_images.npy")
    changed = bytearray(whole)
    changed[info.header_offset + 250] ^= 1
    short = bytearray(whole)
    place = short.rindex(b"test_images.npy") - 46  # its entry in the directory: of fewer bytes packed than unpacked
    short[place + 20 : place + 24] = struct.pack("<I", info.file_size - 40)
    for damaged in (changed, short):
        path.write_bytes(bytes(damaged))
        with pytest.raises(DataError, match="is damaged"):
            load_data(DataConfig(path=str(path)), seed=0)


def test_a_temporary_folder_without_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    resource = pytest.importorskip("resource", reason="limits are set as POSIX does")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    np.savez_compressed(tmp_path / "set.npz", **_arrays((99, 99)))
    config = DataConfig(path=str(tmp_path / "set.npz"))
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
        with pytest.raises(DataError, match=r"cannot be unfolded into the temporary folder .* set TMPDIR") as caught:
            load_data(config, seed=0)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "\n" not in str(caught.value)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "none"))
    with pytest.raises(DataError, match="no temporary folder"):
        load_data(config, seed=0)
