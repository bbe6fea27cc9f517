"""What names and paths in other people's files can reach: a manifest's images, members of archives, report pictures."""

import csv
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from audit.config import DataConfig
from audit.data.audit_set import AuditSet
from audit.data.load import load_data
from audit.errors import DataError


def picture(path: Path, value: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((8, 8), value, np.uint8)).save(path)
    return path


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for number in range(3):
        picture(tmp_path / "set" / f"{number}.png", 40 * number)
    picture(tmp_path / "private" / "scan.png", 200)
    return tmp_path / "set"


def load(root: Path, image: str, **given: object) -> AuditSet:
    with (root / "set.csv").open("w", newline="") as file:
        rows = [("image", "label", "split"), ("0.png", "a", "test"), ("1.png", "b", "test"), (image, "b", "test")]
        csv.writer(file).writerows(rows)
    return load_data(DataConfig.model_validate({"path": str(root / "set.csv"), **given}), seed=0)


def test_a_manifest_names_files_in_its_own_folder(root: Path) -> None:
    (root / "link.png").symlink_to(root.parent / "private" / "scan.png")
    (root / "folder").symlink_to(root.parent / "private")
    private = root.parent / "private" / "scan.png"
    for image in (str(private), "../private/scan.png", "link.png", "folder/scan.png", "folder/../private/scan.png"):
        with pytest.raises(DataError, match=r"'image' in row 4 .* lies outside the manifest's folder"):
            load(root, image)
        assert load(root, image, allow_outside=True).images([2]).max() > 0.7


def test_a_manifest_cannot_ask_which_files_there_are(root: Path) -> None:
    for image in ("../private/scan.png", "../private/none.png", "/none", "~/none"):
        with pytest.raises(DataError, match="lies outside"):
            load(root, image)


def test_masks_are_held_to_the_same(root: Path) -> None:
    (root / "set.csv").write_text("image,label,split,mask\n0.png,a,test,../private/scan.png\n1.png,b,test,\n")
    with pytest.raises(DataError, match=r"column 'mask' in row 2 .* lies outside"):
        load_data(DataConfig(path=str(root / "set.csv")), seed=0)


def test_paths_within_the_folder_may_be_written_in_any_way(root: Path) -> None:
    (root / "link.png").symlink_to(root / "2.png")
    for image in (str(root / "2.png"), "./2.png", "../set/2.png", "link.png"):
        assert len(load(root, image).ids) == 3
    (root.parent / "elsewhere").symlink_to(root)  # the folder itself may lie behind a link
    assert len(load(root.parent / "elsewhere", "2.png").ids) == 3
