"""Data sets that `datasets` has saved: real ones, written here, read as their images lay in folders."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from audit.config import DataConfig
from audit.data.describe import describe
from audit.data.load import load_data
from audit.errors import DataError

datasets = pytest.importorskip("datasets", reason="extra datasets")
NAMES = ["well", "ill"]


def picture(level: int) -> bytes:
    held = io.BytesIO()
    Image.fromarray(np.full((8, 8), level, np.uint8)).save(held, "PNG")
    return held.getvalue()


def table(levels: list[int], labels: list[Any], kind: Any = None) -> Any:
    kind = datasets.ClassLabel(names=NAMES) if kind is None else kind
    cells = [{"bytes": picture(level), "path": None} for level in levels]
    features = datasets.Features({"image": datasets.Image(), "label": kind})
    return datasets.Dataset.from_dict({"image": cells, "label": labels}, features=features)


def saved(folder: Path, found: Any) -> DataConfig:
    found.save_to_disk(str(folder))
    return DataConfig(path=str(folder))


def test_splits_labels_and_pixels(tmp_path: Path) -> None:
    splits = {"train": table([1, 2, 3, 4], [0, 0, 1, 1]), "test": table([60, 70, 200], [0, 0, 1])}
    data = load_data(saved(tmp_path / "it", datasets.DatasetDict(splits)), seed=0)
    assert data.class_names == ("well", "ill")  # the order of the data set, which is that of a model's outputs
    assert data.labels.tolist() == [0, 0, 1, 1, 0, 0, 1]
    test = data.split("test")
    assert test.row_ids == ("test/00000", "test/00001", "test/00002")
    assert (test.images()[:, 0, 0, 0] * 255).round().tolist() == [60, 70, 200]
    found = describe(data, "test", "train").read
    assert (found.kinds, found.compared) == ({"8-bit grey": 7}, 7)


def test_without_splits_the_seed_makes_them(tmp_path: Path) -> None:
    data = load_data(saved(tmp_path / "it", table([1, 2, 3, 4], [0, 0, 1, 1])), seed=0)
    assert sorted(data.splits) == ["calibration", "calibration", "test", "test"]


def test_labels_without_names_and_lists_of_labels(tmp_path: Path) -> None:
    plain = load_data(saved(tmp_path / "a", table([1, 2, 3, 4], [1, 0, 1, 0], datasets.Value("int64"))), seed=0)
    assert (plain.class_names, plain.labels.tolist()) == (("class 0", "class 1"), [1, 0, 1, 0])
    several = datasets.List(datasets.ClassLabel(names=NAMES))
    many = load_data(saved(tmp_path / "b", table([1, 2, 3, 4], [[0], [1], [0, 1], []], several)), seed=0)
    assert many.labels.tolist() == [[1, 0], [0, 1], [1, 1], [0, 0]]


def test_a_cell_that_names_a_file_is_refused(tmp_path: Path) -> None:
    secret = tmp_path / "secret.png"
    secret.write_bytes(picture(9))
    features = datasets.Features({"image": datasets.Image(decode=False), "label": datasets.ClassLabel(names=NAMES)})
    cells = [{"bytes": None, "path": str(secret)}] * 4
    raw = {"bytes": datasets.Value("binary"), "path": datasets.Value("string")}
    held = datasets.Dataset.from_dict(
        {"image": cells, "label": [0, 0, 1, 1]}, features=datasets.Features({**features, "image": raw})
    )
    held.save_to_disk(str(tmp_path / "it"))
    info = tmp_path / "it" / "dataset_info.json"
    # `save_to_disk` itself would put the file's bytes in; whoever writes the folder otherwise need not.
    said = json.loads(info.read_text())
    said["features"]["image"] = {"decode": False, "_type": "Image"}
    info.write_text(json.dumps(said))
    with pytest.raises(DataError, match="holds no image but at most the name of a file"):
        load_data(DataConfig(path=str(tmp_path / "it")), seed=0)


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (table([1, 2, 3], [0, 1, -1]), r"row 2 of split 'all' .* is missing \(-1\)"),
        (table([1, 2], [0, 1]).remove_columns("label"), "0 columns that may be 'label'"),
    ],
)
def test_what_cannot_be_taken(tmp_path: Path, found: Any, said: str) -> None:
    with pytest.raises(DataError, match=said):
        load_data(saved(tmp_path / "it", found), seed=0)


def test_damaged_folders_are_one_sentence(tmp_path: Path) -> None:
    config = saved(tmp_path / "it", table([1, 2, 3, 4], [0, 0, 1, 1]))
    arrow = next((tmp_path / "it").glob("*.arrow"))
    arrow.write_bytes(arrow.read_bytes()[:100])
    with pytest.raises(DataError, match="save it again by save_to_disk"):
        load_data(config, seed=0)
    (tmp_path / "other").mkdir()
    with pytest.raises(DataError, match="is not one that save_to_disk"):
        load_data(DataConfig(path=str(tmp_path / "other"), format="datasets"), seed=0)


def test_files_outside_the_folder_are_refused(tmp_path: Path) -> None:
    saved(tmp_path / "other", table([1, 2, 3, 4], [0, 0, 1, 1]))
    config = saved(tmp_path / "it", table([1, 2, 3, 4], [0, 0, 1, 1]))
    state = tmp_path / "it" / "state.json"
    said = json.loads(state.read_text())
    said["_data_files"] = [{"filename": "../other/" + file["filename"]} for file in said["_data_files"]]
    state.write_text(json.dumps(said))
    with pytest.raises(DataError, match="names files outside its folder"):
        load_data(config, seed=0)
