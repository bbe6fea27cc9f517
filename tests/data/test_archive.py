"""A zip of class folders is the folder: same rows, pixels, splits and refusals; and nothing in it is trusted."""

import multiprocessing
import pickle
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from audit.config import DataConfig
from audit.data import archive as module
from audit.data.load import load_data, load_images, training_split
from audit.errors import DataError

SaveImage = Callable[..., Path]


def zipped(folder: Path, prefix: str = "", name: str = "set.zip") -> Path:
    path = folder.parent / name
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for entry in sorted(folder.rglob("*"), reverse=True):
            file.write(entry, prefix + entry.relative_to(folder).as_posix())
    return path


@pytest.fixture
def folder(tmp_path: Path, save_image: SaveImage) -> Path:
    for index in range(1, 12):
        save_image(f"set/cat/img{index}.png", value=index)
    for index in range(1, 6):
        save_image(f"set/dog/img{index}.PNG", value=100 + index)
    (tmp_path / "set" / "__MACOSX").mkdir()
    (tmp_path / "set" / "cat" / "notes.txt").write_text("notes")
    return tmp_path / "set"


@pytest.mark.parametrize("prefix", ["", "set/", "./", "set//"], ids=["bare", "own folder", "dot", "doubled"])
def test_a_zip_is_its_folder(folder: Path, prefix: str) -> None:
    direct, inside = (load_data(DataConfig(path=str(p)), seed=3) for p in (folder, zipped(folder, prefix)))
    assert inside.ids == direct.ids
    assert inside.class_names == direct.class_names
    assert (inside.splits == direct.splits).all()
    assert inside.images().equal(direct.images())


def test_split_folders_in_a_zip(save_image: SaveImage, tmp_path: Path) -> None:
    for split in ("train", "test"):
        for name in ("a", "b"):
            save_image(f"set/{split}/{name}/0.png")
    data = load_data(DataConfig(path=str(zipped(tmp_path / "set"))), seed=0)
    assert data.split("test").row_ids == ("test/a/0.png", "test/b/0.png")


def _mean(data: object) -> float:
    return float(pickle.loads(data).images().mean())  # type: ignore[arg-type]


def test_threads_and_processes_read_what_one_reads(folder: Path) -> None:
    data = load_data(DataConfig(path=str(zipped(folder))), seed=0)
    stored = pickle.dumps(data)
    whole = data.images()
    with ThreadPoolExecutor(4) as pool:
        parts = list(pool.map(lambda row: pickle.loads(stored).images([row]), range(len(data))))
    assert torch.cat(parts).equal(whole)
    with multiprocessing.get_context("fork").Pool(2) as workers:
        assert workers.map(_mean, [stored] * 4) == [float(whole.mean())] * 4


def test_what_is_refused(folder: Path, tmp_path: Path, save_image: SaveImage, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(match: str, path: Path) -> None:
        with pytest.raises(DataError, match=match):
            load_data(DataConfig(path=str(path), format="zip"), seed=0)

    path = zipped(folder)
    refuse("does not exist", tmp_path / "none.zip")
    (tmp_path / "bad.zip").write_bytes(path.read_bytes()[:200])
    refuse("cannot be read as a .zip archive", tmp_path / "bad.zip")
    (folder / "cow").mkdir()
    refuse("Class 'cow' has no image in archive", zipped(folder, name="cow.zip"))
    save_image("flat/a.png")
    refuse("Archive .* holds no images .* in class folders", zipped(tmp_path / "flat", name="flat.zip"))
    monkeypatch.setattr(module, "LARGEST_MEMBER", 10)
    refuse("has more than 0 MiB", path)


def test_a_damaged_member_is_named(folder: Path) -> None:
    path = zipped(folder)
    content = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as file:
        offset = file.getinfo("dog/img2.PNG").header_offset
    content[offset + 50 : offset + 70] = b"\0" * 20
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"set\.zip/dog/img2\.PNG' cannot be"):
        load_data(DataConfig(path=str(path)), seed=0).images()


def test_a_file_with_the_name_of_a_folder_does_no_harm(tmp_path: Path, folder: Path) -> None:
    path = zipped(folder)
    with zipfile.ZipFile(path, "a") as file:
        file.writestr("cat/img1.png/x.png", b"")
        file.writestr("../../escape.png", b"")
    assert "cat/img1.png" in load_data(DataConfig(path=str(path)), seed=0).ids


@pytest.mark.parametrize("kind", ["folder", "zip"])
def test_images_without_labels_train_but_are_not_audited(kind: str, tmp_path: Path, save_image: SaveImage) -> None:
    for index in range(5):
        save_image(f"loose/{index}.png", value=index)
    path = tmp_path / "loose" if kind == "folder" else zipped(tmp_path / "loose")
    config = DataConfig(path=str(path))
    data = load_images(config, seed=0)
    assert data.ids == tuple(f"{index}.png" for index in range(5))
    assert len(data.split(training_split(config, data, None))) == 5
    with pytest.raises(DataError, match=r"holds no images .* in class folders"):
        load_data(config, seed=0)


def test_images_of_one_class_train(tmp_path: Path, save_image: SaveImage) -> None:
    for index in range(4):
        save_image(f"one/a/{index}.png")
    assert load_images(DataConfig(path=str(tmp_path / "one")), seed=0).class_names == ("a",)
