"""Folders of class folders: both layouts, natural order, the seeded split, and what is refused."""

import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from audit.config import DataConfig
from audit.data.folder import list_folder
from audit.data.load import load_data
from audit.errors import DataError

SaveImage = Callable[..., Path]


def _config(path: Path, **values: object) -> DataConfig:
    return DataConfig.model_validate({"path": str(path), **values})


@pytest.fixture
def class_folders(tmp_path: Path, save_image: SaveImage) -> Path:
    for index in range(1, 12):
        save_image(f"set/cat/img{index}.png", value=index)
    for index in range(1, 6):
        save_image(f"set/dog/img{index}.PNG", value=100 + index)
    return tmp_path / "set"


def test_classes_ids_and_images_in_natural_order(class_folders: Path) -> None:
    data = load_data(_config(class_folders), seed=0)
    assert data.class_names == ("cat", "dog")
    assert data.image_shape == (1, 8, 8)
    assert data.ids[:3] == ("cat/img1.png", "cat/img2.png", "cat/img3.png")
    assert data.ids[10:12] == ("cat/img11.png", "dog/img1.PNG")
    assert data.row_labels.tolist() == [0] * 11 + [1] * 5
    expected = [*range(1, 12), *range(101, 106)]
    assert (data.images()[:, 0, 0, 0] * 255).round().int().tolist() == expected
    assert not data.region().any()


def test_without_splits_half_of_each_class_is_for_calibration(class_folders: Path) -> None:
    data = load_data(_config(class_folders), seed=3)
    for label, calibration, test in ((0, 5, 6), (1, 2, 3)):
        chosen = data.splits[data.labels == label]
        assert (chosen == "calibration").sum() == calibration
        assert (chosen == "test").sum() == test
    again = load_data(_config(class_folders), seed=3)
    assert (again.splits == data.splits).all()
    others = [load_data(_config(class_folders), seed=seed).splits for seed in range(4, 9)]
    assert any((other != data.splits).any() for other in others)


def test_split_folders(save_image: SaveImage, tmp_path: Path) -> None:
    for split, count in (("train", 3), ("test", 2)):
        for name in ("a", "b"):
            for index in range(count):
                save_image(f"set/{split}/{name}/{index}.png")
    save_image("set/train/only_here/0.png")
    data = load_data(_config(tmp_path / "set"), seed=0)
    assert data.class_names == ("a", "b", "only_here")
    assert len(data.split("train")) == 7
    assert data.split("test").row_ids == ("test/a/0.png", "test/a/1.png", "test/b/0.png", "test/b/1.png")


@pytest.mark.parametrize("installed", [True, False])
def test_files_called_dicom_are_left_out_where_they_are_none_or_cannot_be_read(
    class_folders: Path, monkeypatch: pytest.MonkeyPatch, installed: bool
) -> None:
    monkeypatch.setattr("audit.data.dicom.is_installed", lambda: installed)
    before = set(list_folder(class_folders).ids)
    folder = next(path for path in sorted(class_folders.iterdir()) if path.is_dir())
    image = next(path for path in sorted(folder.iterdir()) if path.suffix == ".png")
    (folder / "picture.dcm").write_bytes(image.read_bytes())
    (folder / "real.dcm").write_bytes(b"\0" * 128 + b"DICM")
    listed = list_folder(class_folders)
    assert set(listed.ids) - before == ({f"{folder.name}/real.dcm"} if installed else set())
    reasons = {one.reason: one.examples for one in listed.left_out}
    assert reasons["ending .dcm, but no DICOM file"] == [f"{folder.name}/picture.dcm"]
    assert ("DICOM, which needs pip install 'spruce-audit[dicom]'" in reasons) is not installed


def test_tools_leftovers_and_other_files_are_no_images(class_folders: Path) -> None:
    (class_folders / ".ipynb_checkpoints").mkdir()
    (class_folders / "__MACOSX").mkdir()
    (class_folders / "cat" / "._img1.png").write_bytes(b"resource fork")
    (class_folders / "cat" / "notes.txt").write_text("notes")
    assert len(load_data(_config(class_folders), seed=0)) == 16


def test_class_list_gives_the_order(class_folders: Path) -> None:
    data = load_data(_config(class_folders, classes=["dog", "cat"]), seed=0)
    assert data.row_labels.tolist() == [1] * 11 + [0] * 5


def test_numbered_folders_keep_their_names(save_image: SaveImage, tmp_path: Path) -> None:
    for name in ("10", "2", "1"):
        save_image(f"set/{name}/x.png")
        save_image(f"set/{name}/y.png")
    assert load_data(_config(tmp_path / "set"), seed=0).class_names == ("1", "2", "10")


def test_size_and_channels_are_converted(save_image: SaveImage, tmp_path: Path) -> None:
    save_image("set/a/0.png", value=51, size=(10, 20))
    save_image("set/a/1.png", value=51, size=(9, 9), mode="RGB")
    save_image("set/b/0.png", value=51, size=(8, 8))
    save_image("set/b/1.png", value=51, size=(7, 8))
    data = load_data(_config(tmp_path / "set", image_size=16, channels=3), seed=0)
    assert data.image_shape == (3, 16, 16)
    images = data.images()
    assert images.shape == (4, 3, 16, 16)
    assert images.sub(0.2).abs().max() < 1e-6


def test_a_set_can_be_sent_to_another_process(class_folders: Path) -> None:
    data = load_data(_config(class_folders), seed=0)
    copy = pickle.loads(pickle.dumps(data))
    assert copy.images([0, 5]).equal(data.images([0, 5]))


def test_mixed_sizes_name_the_first_that_differs(class_folders: Path, save_image: SaveImage) -> None:
    save_image("set/cat/img7.png", size=(8, 9))
    with pytest.raises(DataError, match=r"img7\.png' is 9 x 8 pixels where 'img1\.png' is 8 x 8: set data\.image_size"):
        load_data(_config(class_folders), seed=0)


def test_mixed_channels_name_the_first_that_differs(class_folders: Path, save_image: SaveImage) -> None:
    save_image("set/cat/img7.png", mode="RGB")
    with pytest.raises(DataError, match=r"img7\.png' is in colour where 'img1\.png' is grey: set data\.channels"):
        load_data(_config(class_folders), seed=0)


def test_a_corrupt_image_is_named_when_decoded(class_folders: Path) -> None:
    path = class_folders / "dog" / "img2.PNG"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (8, 8), dtype=np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:60])
    data = load_data(_config(class_folders), seed=0)
    with pytest.raises(DataError, match=r"dog/img2\.PNG' cannot be decoded"):
        data.images()
    path.write_bytes(b"")
    with pytest.raises(DataError, match=r"dog/img2\.PNG' cannot be decoded"):
        load_data(_config(class_folders), seed=0)


def test_what_is_refused(tmp_path: Path, class_folders: Path, save_image: SaveImage) -> None:
    def refuse(match: str, path: Path, **values: object) -> None:
        with pytest.raises(DataError, match=match):
            load_data(_config(path, **values), seed=0)

    refuse("'.*nowhere' does not exist", tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    refuse("'.*empty' holds no images", tmp_path / "empty")
    save_image("flat/a.png")
    refuse("'.*flat' holds no images .* in class folders", tmp_path / "flat")
    refuse("is not a folder", tmp_path / "flat" / "a.png", format="folder")
    refuse("neither a folder, a .csv, an .npz nor a .zip", tmp_path / "flat" / "a.png")
    refuse(
        r"Label 'dog' in folder '.*dog' is not in the class list: did you mean 'dogs'\?",
        class_folders,
        classes=["cat", "dogs"],
    )
    refuse("Class 'cow' has no image in folder", class_folders, classes=["cat", "cow", "dog"])
    refuse("names 'cat' twice", class_folders, classes=["cat", "cat"])
    refuse("fewer than two", class_folders, classes=["cat"])
    refuse(
        r"Split 'tset' of data.audit_split .*calibration, test.*did you mean 'test'\?",
        class_folders,
        audit_split="tset",
    )
    refuse(r"Split 'trian' of data.calibration_split", class_folders, calibration_split="trian")
    refuse(r"is not in folder '.*' \(divided 50/50 by the seed\)", class_folders, audit_split="val")
    refuse("both 'test': they must be disjoint", class_folders, calibration_split="test")
    (class_folders / "cow").mkdir()
    refuse("Class 'cow' has no image", class_folders)
    (class_folders / "cow" / "1.nii").write_bytes(b"n+1")
    refuse(r"Class 'cow' has no image in folder '.*' \(there: 1 x ending \.nii, as cow/1\.nii\): add", class_folders)
    (tmp_path / "empty" / "scan.nii.gz").write_bytes(b"")
    refuse(r"holds no images .* \(there: 1 x ending \.gz, as scan\.nii\.gz\): lay it out", tmp_path / "empty")
    save_image("set/cow/inner/a.png")
    refuse("mixes two layouts", class_folders)
    save_image("patients/ill/p1/a.png")
    save_image("patients/well/p2/a.png")
    refuse(r"\(laid out as <split>/<class>/\) \(its splits: ill, well\)", tmp_path / "patients")
    save_image("one/a/0.png")
    save_image("one/a/1.png")
    refuse("one class only", tmp_path / "one")
