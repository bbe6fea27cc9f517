"""The one door: kinds of data, the calibration split, the phantom, and the two real sets beside the repository."""

import pathlib

import numpy as np
import pytest
import torch

from audit.config import DataConfig
from audit.data.load import calibration_split, converted, detect_format, load_data, training_split
from audit.errors import DataError

shared = pathlib.Path(__file__).parents[2].parent / "shared"
needs_shared = pytest.mark.skipif(
    not (shared / "data").is_dir(), reason="real data sets (../shared/data) are not beside the repository"
)


def _npz(path: pathlib.Path, *splits: str) -> DataConfig:
    arrays = {}
    for split in splits:
        arrays[f"{split}_images"] = np.zeros((2, 4, 4), dtype=np.uint8)
        arrays[f"{split}_labels"] = np.array([0, 1])
    np.savez(path / "set.npz", **arrays)
    return DataConfig(path=str(path / "set.npz"))


@pytest.mark.parametrize(
    ("splits", "expected"),
    [
        (("train", "test"), "train"),
        (("train", "calibration", "test"), "calibration"),
        (("train", "validation", "test"), "validation"),
        (("train", "valid", "test"), "valid"),
    ],
)
def test_default_calibration_split(tmp_path: pathlib.Path, splits: tuple[str, ...], expected: str) -> None:
    config = _npz(tmp_path, *splits)
    assert calibration_split(config, load_data(config, 0)) == expected


def test_configured_calibration_split(tmp_path: pathlib.Path) -> None:
    config = _npz(tmp_path, "train", "val", "test").model_copy(update={"calibration_split": "val"})
    assert calibration_split(config, load_data(config, 0)) == "val"


def test_calibration_is_disjoint_from_the_audited_split(tmp_path: pathlib.Path) -> None:
    config = _npz(tmp_path, "train", "test").model_copy(update={"audit_split": "train"})
    with pytest.raises(DataError, match=r"has no split 'calibration', 'val' or 'train' beside the audited one"):
        calibration_split(config, load_data(config, 0))
    alone = _npz(tmp_path, "test")
    dataset = load_data(alone, 0)  # loading is enough for an audit of robustness alone
    with pytest.raises(DataError, match=r"set data\.calibration_split"):
        calibration_split(alone, dataset)


def test_images_a_model_was_not_trained_on_come_first(tmp_path: pathlib.Path) -> None:
    config = _npz(tmp_path, "train", "val", "test")
    data = load_data(config, 0)
    assert calibration_split(config, data) == "val"
    assert training_split(config, data, None) == "train"
    assert training_split(config, data, "test") == "test"
    with pytest.raises(DataError, match="'vall'"):
        training_split(config, data, "vall")


def test_kinds_of_data(tmp_path: pathlib.Path) -> None:
    assert detect_format("phantom") == "phantom"
    assert detect_format(str(tmp_path)) == "folder"
    for name, kind in (("a.csv", "manifest"), ("a.CSV", "manifest"), ("a.npz", "npz")):
        (tmp_path / name).touch()
        assert detect_format(str(tmp_path / name)) == kind


def test_the_phantom_through_the_same_door() -> None:
    config = DataConfig.model_validate({"path": "phantom", "phantom": {"calibration": 30, "audit": 9}})
    data = load_data(config, seed=1)
    assert data.image_shape == (1, 64, 64)
    assert len(data.split("test")) == 9
    assert calibration_split(config, data) == "calibration"
    assert load_data(config, seed=1).images([0, 35]).equal(data.images([0, 35]))
    small = load_data(config.model_copy(update={"image_size": 32, "channels": 3}), seed=1)
    assert small.images([3]).shape == (1, 3, 32, 32)
    pooled = torch.nn.functional.avg_pool2d(data.images([3]), 2)
    assert (small.images([3])[:, :1] - pooled).abs().mean() < 0.02
    inside, whole = small.region("heart", [3]).float().mean(), data.region("heart", [3]).float().mean()
    assert abs(inside - whole) < 0.02
    with pytest.raises(DataError, match=r"data\.classes must be absent or healthy, opacity, cardiomegaly"):
        load_data(config.model_copy(update={"classes": ("a", "b")}), seed=1)


def test_nothing_to_convert_gives_the_same_set() -> None:
    config = DataConfig.model_validate({"path": "phantom", "phantom": {"calibration": 30, "audit": 6}})
    data = load_data(config, seed=0)
    assert converted(data, None, None) is data
    assert converted(data, None, 1) is data


@needs_shared
def test_white_blood_cells() -> None:
    path = shared / "data" / "wbc" / "manifest.csv"
    with pytest.raises(
        DataError, match=r"\.png' is \d+ x \d+ pixels where '001\.png' is 120 x 120: set data\.image_size"
    ):
        load_data(DataConfig(path=str(path)), seed=0)
    config = DataConfig(path=str(path), image_size=64)
    data = load_data(config, seed=0)
    assert data.class_names == ("basophil", "eosinophil", "lymphocyte", "monocyte", "neutrophil")
    assert torch.bincount(data.row_labels).tolist() == [1, 22, 53, 48, 176]
    assert (len(data.split("train")), len(data.split("test"))) == (225, 75)
    assert calibration_split(config, data) == "train"
    images, regions = data.images(range(40)), data.region("region", range(40))
    assert images.shape == (40, 3, 64, 64)
    # Cytoplasm (128) and nucleus (255) are both inside: a cell covers a tenth to a half of its picture.
    shares = regions.float().mean((1, 2))
    assert shares.min() > 0.1
    assert shares.max() < 0.6
    grey = images.mean(1)
    assert grey[regions].mean() < grey[~regions].mean()  # a stained cell is darker than the plasma


@needs_shared
def test_pneumoniamnist_at_the_generators_size() -> None:
    path = str(shared / "data" / "pneumoniamnist.npz")
    data = load_data(DataConfig(path=path, classes=("normal", "pneumonia"), image_size=32), seed=0)
    assert {split: len(data.split(split)) for split in ("train", "val", "test")} == {
        "train": 4708,
        "val": 524,
        "test": 624,
    }
    test = data.split("test")
    assert torch.bincount(test.row_labels).tolist() == [234, 390]
    images = test.images(range(64))
    assert images.shape == (64, 1, 32, 32)
    native = load_data(DataConfig(path=path), seed=0).split("test").images(range(64))
    enlarged = torch.nn.functional.interpolate(native, (32, 32), mode="bilinear", align_corners=False)
    assert (images - enlarged).abs().max() < 1.5 / 255  # Pillow rounds to bytes, after each of the two directions


@needs_shared
def test_mnist_has_no_calibration_split() -> None:
    config = DataConfig(path=str(shared / "data" / "mnist_test.npz"))
    data = load_data(config, seed=0)
    assert len(data) == 10000
    assert data.class_names[9] == "class 9"
    with pytest.raises(DataError, match=r"has no split 'calibration', 'val' or 'train'"):
        calibration_split(config, data)
