"""Sets of MedMNIST by name: found where its package puts them, with its class names in the order of the labels."""

from pathlib import Path

import numpy as np
import pytest

from audit.config import DataConfig
from audit.data.load import load_data
from audit.errors import DataError

pytest.importorskip("medmnist", reason="extra medmnist")


def write(file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    arrays = {}
    for split in ("train", "val", "test"):
        arrays[f"{split}_images"] = np.arange(4 * 64, dtype=np.uint8).reshape(4, 8, 8)
        arrays[f"{split}_labels"] = np.array([[0], [1], [0], [1]])
    np.savez(file, **arrays)


def test_a_name_is_looked_for_at_home_and_beside_the_configuration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    config = DataConfig(path=str(tmp_path / "set" / "breastmnist_64"), format="medmnist")
    with pytest.raises(DataError, match=r"download breastmnist_64\.npz to one of them"):
        load_data(config, seed=0)
    write(tmp_path / ".medmnist" / "breastmnist_64.npz")
    home = load_data(config, seed=0)
    assert home.class_names == ("malignant", "normal, benign")
    assert home.split("test").row_labels.tolist() == [0, 1, 0, 1]
    write(tmp_path / "breastmnist.npz")
    beside = load_data(DataConfig(path=str(tmp_path / "breastmnist.npz"), format="medmnist"), seed=0)
    np.testing.assert_array_equal(beside.images(), home.images())


def test_a_name_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"has no set 'brestmnist', which data\.path names: did you mean 'breastmnist'"):
        load_data(DataConfig(path=str(tmp_path / "brestmnist"), format="medmnist"), seed=0)
