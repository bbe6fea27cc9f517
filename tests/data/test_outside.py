"""A data set of somebody else's package: found by its name, checked, and audited as any other."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support_outside import install

from audit.config import AuditConfig, DataConfig, parse_config
from audit.data.audit_set import AuditSet
from audit.data.describe import describe
from audit.data.load import FORMATS, load_data, load_images, load_shift
from audit.errors import ConfigError, DataError
from audit.pipeline.runner import run_audit

CODE = '''
from pathlib import Path

import numpy as np

from audit.data.audit_set import AuditSet

def load(config, seed):
    """Rows `name,label,split,level` of a text file: flat images with a mark, which is their region."""
    rows = [line.split(",") for line in Path(config.path).read_text().split()]
    names, labels, splits, levels = zip(*rows)
    side = config.options.get("side", 8)

    def read_image(row):
        if config.options.get("broken") == names[row]:
            raise KeyError("no such row")
        image = np.full((side, side), int(levels[row]), dtype=config.options.get("dtype", "uint8"))
        image[:2, :2] += 10
        return image

    def read_mask(row):
        mask = np.zeros((side, side), dtype=np.uint8)
        mask[:2, :2] = 7
        return mask if labels[row] == "bright" else None

    return AuditSet(
        read_image=read_image,
        labels=np.array([["bright", "dark"].index(label) for label in labels]),
        class_names=("bright", "dark"),
        ids=names,
        splits=np.array(splits),
        image_shape=(1, side, side),
        regions={"region": read_mask},
        source=f"levels '{config.path}'",
    )
'''
NET = """
from torch import nn

def net():
    return nn.Sequential(nn.Conv2d(1, 2, 1, bias=False), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 2))
"""


@pytest.fixture
def levels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The text file of the package's format, which is installed as `levels`."""
    install(tmp_path, monkeypatch, "spruce_audit.datasets: levels = load", CODE)
    rows = [
        f"{split}{number},{label},{split},{level + number}"
        for split in ("val", "test")
        for label, level, start in (("bright", 150, 0), ("dark", 80, 8))
        for number in range(start, start + 8)
    ]
    (tmp_path / "levels.txt").write_text("\n".join(rows))
    return tmp_path / "levels.txt"


def config_of(path: Path, **values: Any) -> DataConfig:
    return DataConfig.model_validate({"path": str(path), "format": "levels", **values})


def test_the_configuration_is_applied_to_what_the_package_reads(levels: Path) -> None:
    data = load_data(config_of(levels), 0)
    assert data.image_shape == (1, 8, 8)
    assert len(data.split("test")) == 16
    assert data.images([0])[0, 0, 7, 7] * 255 == 150
    assert data.images([0])[0, 0, 0, 0] * 255 == 160
    assert data.region("region", [0, 8]).sum((1, 2)).tolist() == [4, 0]
    large = load_data(config_of(levels, image_size=16, channels=3), 0)
    assert large.images([0]).shape == (1, 3, 16, 16)
    assert large.region("region", [0]).sum() == 16
    assert load_images(config_of(levels), 0).images([0]).equal(data.images([0]))
    deep = config_of(levels, white=4095, options={"dtype": "uint16"})
    assert load_data(deep, 0).images([0])[0, 0, 7, 7] == torch.tensor(150 / 4095)
    shift = load_shift(config_of(levels, shift=str(levels), options={"side": 4}), 0, data)
    assert shift.image_shape == (1, 8, 8)


def test_the_data_checks_and_the_record_hold_for_it(levels: Path) -> None:
    read = describe(load_data(config_of(levels), 0), "test", "val").read
    assert read.origin == "outside-part 1.0"
    assert read.kinds == {"uint8 grey": 32}
    assert read.compared_by == "pixels"
    (copies,) = read.copies
    assert (copies.split, copies.n) == ("val", 16)


def test_masks_of_a_folder_are_joined(levels: Path, tmp_path: Path, save_image: Callable[..., Path]) -> None:
    save_image("masks/marker/test0.png", 255)
    data = load_data(config_of(levels, masks=str(tmp_path / "masks")), 0)
    assert set(data.regions) == {"region", "marker"}
    assert data.split("test").region("marker").sum() == 64


def test_a_loader_may_build_on_those_of_this_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, save_image: Callable[..., Path]
) -> None:
    def load(config: DataConfig, seed: int) -> AuditSet:
        return load_data(config.model_copy(update={"format": "folder"}), seed)

    monkeypatch.setattr(FORMATS, "added", {"again": load})
    for name, value in (("a", 50), ("b", 100)):
        for number in range(2):
            save_image(f"images/{name}/{number}.png", value)
    values = {"path": str(tmp_path / "images"), "format": "again", "white": 200}
    data = load_data(DataConfig.model_validate(values), 0)
    assert [float(image.max()) for image in data.images()] == [0.25, 0.25, 0.5, 0.5]
    assert describe(data, "test", None).read.white == 200


def test_a_small_audit(levels: Path, tmp_path: Path) -> None:
    (tmp_path / "nets.py").write_text(NET)
    head = {"3.weight": torch.tensor([[20.0, 20.0], [-20.0, -20.0]]), "3.bias": torch.tensor([-18.0, 18.0])}
    torch.save({"0.weight": torch.ones(2, 1, 1, 1), **head}, tmp_path / "net.pt")
    values = {
        "data": {"path": str(levels), "format": "levels", "options": {"side": 16}},
        "robustness": {"n": 16, "eps": ["1/255"], "steps": 2, "trust": False},
        "classifiers": [
            {"name": "m", "factory": f"{tmp_path / 'nets.py'}:net", "checkpoint": str(tmp_path / "net.pt")}
        ],
    }
    result = run_audit(parse_config(AuditConfig, values, "the test"), tmp_path / "out")
    assert result.models[0].clean.accuracy.value == 1
    assert result.data["shape"] == [1, 16, 16]
    assert result.config["data"]["options"] == {"side": 16}
    assert result.data_read is not None
    assert result.data_read.origin == "outside-part 1.0"


def test_a_format_that_there_is_not_is_said_at_once(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"'data\.format' names 'level', which is none of: folder, zip, manifest, npz"
    ):
        load_data(DataConfig(path=str(tmp_path / "absent"), format="level"), 0)
    np.savez(tmp_path / "set.npz", test_images=np.zeros((2, 4, 4)), test_labels=np.array([0, 1]))
    with pytest.raises(DataError, match=r"data\.options are for the formats of other packages .* for 'npz'"):
        load_data(DataConfig(path=str(tmp_path / "set.npz"), options={"a": 1}), 0)


def test_what_the_package_raises_is_told(levels: Path, tmp_path: Path) -> None:
    what = r"The data set 'levels' \(outside-part 1\.0\)"
    with pytest.raises(DataError, match=rf"{what} cannot be read \(No such file .*absent.*\): correct data\.path"):
        load_data(config_of(tmp_path / "absent"), 0)
    with pytest.raises(DataError, match=rf"data\.classes must be absent or bright, dark for {what}"):
        load_data(config_of(levels, classes=["dark", "bright"]), 0)
    data = load_data(config_of(levels, options={"broken": "test3"}), 0)
    with pytest.raises(
        DataError, match=r"Image 'test3' of levels '.*' cannot be read \(KeyError: 'no such row'\): mend"
    ):
        data.split("test").images()
    with pytest.raises(DataError, match=r"Image 'test0' of levels .* 32-bit integers, whose white is unknown"):
        describe(load_data(config_of(levels, options={"dtype": "int64"}), 0), "test", None)
    with pytest.raises(DataError, match=r"Image 'val0' .* is an array of shape \(8, 8\) and type complex64"):
        load_data(config_of(levels, options={"dtype": "complex64"}), 0)


@pytest.mark.parametrize(
    ("changes", "pattern"),
    [
        ({"labels": np.array([0, 1, 1])}, r"needs an array 'labels' of shape \(2,\)"),
        ({"labels": [0, 1]}, "needs an array 'labels'"),
        ({"labels": np.array([0, 2])}, "whole numbers from 0 to 1"),
        ({"labels": np.array([0.0, 1.0])}, "whole numbers from 0 to 1"),
        ({"labels": np.array([0, 0])}, "Class 'b' has no image"),
        ({"splits": np.array(["test"])}, "needs an array 'splits'"),
        ({"ids": ("x", "x")}, "Two images are called 'x'"),
        ({"ids": (), "labels": np.array([]), "splits": np.array([])}, "has no image"),
        ({"image_shape": (4, 8, 8)}, r"image_shape \(4, 8, 8\)"),
        ({"regions": {"a/b": lambda row: None}}, "region 'a/b'"),
        (None, "is a NoneType where an AuditSet is needed"),
    ],
)
def test_what_does_not_fit_together_is_refused(
    monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any] | None, pattern: str
) -> None:
    given = {
        "read_image": lambda row: np.zeros((8, 8), dtype=np.uint8), "labels": np.array([0, 1]),
        "class_names": ("a", "b"), "ids": ("x", "y"), "splits": np.array(["test", "test"]), "image_shape": (1, 8, 8),
    }  # fmt: skip
    monkeypatch.setattr(
        FORMATS, "added", {"mine": lambda config, seed: None if changes is None else AuditSet(**(given | changes))}
    )
    with pytest.raises(DataError, match=pattern):
        load_data(DataConfig(path="x", format="mine"), 0)


def test_a_mask_of_another_size_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(config: DataConfig, seed: int) -> AuditSet:
        return AuditSet(
            read_image=lambda row: np.zeros((8, 8), dtype=np.uint8),
            labels=np.array([0, 1]),
            class_names=("a", "b"),
            ids=("x", "y"),
            splits=np.array(["test", "test"]),
            image_shape=(1, 8, 8),
            regions={"region": lambda row: np.ones((4, 8)), "other": lambda row: np.ones(8)},
        )

    monkeypatch.setattr(FORMATS, "added", {"mine": load})
    data = load_data(DataConfig(path="x", format="mine"), 0)
    with pytest.raises(
        DataError, match=r"mask of region 'region' of image 'x' of memory is \(4, 8\) \(height, width\)"
    ):
        data.region("region")
    with pytest.raises(DataError, match=r"mask of region 'other' of Image 'x' of memory has shape \(8,\)"):
        data.region("other")
