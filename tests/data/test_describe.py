"""What is said of the data: what was left out, what stands twice, and pixels that are not what they seem."""

import os
import pickle
import shutil
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

from audit.config import DataConfig
from audit.data import copies
from audit.data import describe as module
from audit.data.audit_set import AuditSet
from audit.data.describe import Described, describe, describe_shift, note_on_training_data
from audit.data.images import ORIENTATION_TAG
from audit.data.load import load_data, load_images, load_shift
from audit.errors import DataError
from audit.report.build import report_pages
from audit.results import DataRead

SaveImage = Callable[..., Path]
Make = Callable[..., Path]


def _noise(seed: int, size: tuple[int, ...] = (8, 8), high: int = 256, dtype: type = np.uint8) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, high, size).astype(dtype)


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Return `make(**options)`: a folder of splits val and test, classes a and b, 3 different images each."""

    def build(**options: object) -> Path:
        seed = 0
        for split in ("val", "test"):
            for name in "ab":
                (tmp_path / "set" / split / name).mkdir(parents=True, exist_ok=True)
                for index in range(3):
                    seed += 1
                    pixels = _noise(seed, **options)  # type: ignore[arg-type]
                    Image.fromarray(pixels).save(tmp_path / "set" / split / name / f"{index}.png")
        return tmp_path / "set"

    return build


def _described(path: Path, calibration: str | None = "val", **values: object) -> Described:
    data = load_data(DataConfig.model_validate({"path": str(path), **values}), seed=0)
    return describe(data, "test", calibration)


def _kinds(found: Described) -> list[str]:
    return [notice.kind for notice in found.notices]


def _text(found: Described, kind: str) -> str:
    return next(notice.text for notice in found.notices if notice.kind == kind)


def _left_out(read: DataRead) -> dict[str, int]:
    return {row.reason: row.n for row in read.left_out}


def test_a_plain_set_is_recorded_without_a_word(make: Make) -> None:
    found = _described(make())
    assert found.notices == []
    read = found.read
    assert read.splits == {"test": {"a": 3, "b": 3}, "val": {"a": 3, "b": 3}}
    assert read.kinds == {"8-bit grey": 12}
    assert (read.smallest, read.largest, read.white) == ((8, 8), (8, 8), None)
    assert read.pixels is not None
    assert (read.pixels.n, read.pixels.constant, read.pixels.clipped) == (12, 0, 0)
    assert (read.compared, read.compared_by, read.left_out, read.copies) == (12, "pixels", [], [])


def test_what_was_passed_over_is_counted_by_reason(make: Make, save_image: SaveImage) -> None:
    root = make()
    for index in range(5):
        save_image(f"set/test/b/followup/{index}.png")
        (root / "test" / "b" / f"{index}.NII").write_bytes(b"n+1")
    save_image("set/test/b/followup/deeper/9.png")
    save_image("set/loose.png")
    (root / "README").write_text("text")
    (root / "test" / "a" / "gone.png").symlink_to(root / "nowhere.png")
    (root / "test" / "a" / "Thumbs.db").write_bytes(b"")
    save_image("set/test/.cache/a.png")
    os.mkfifo(root / "test" / "a" / "pipe.png")
    (root / "test" / "a" / "loop").symlink_to(root)
    found = _described(root)
    assert _left_out(found.read) == {
        "image outside the class folders": 1, "no ending": 1, "broken link": 1, "neither file nor folder": 1,
        "ending .nii": 5, "image in a folder below a class folder": 6,
    }  # fmt: skip
    text = _text(found, "left-out")
    assert "15 files at data.path are not read" in text
    assert "5 x ending .nii (test/b/0.NII, test/b/1.NII, test/b/2.NII, ...)" in text
    assert found.read.splits["test"] == {"a": 3, "b": 3}


def test_members_of_a_zip_are_counted_alike(make: Make, tmp_path: Path) -> None:
    root = make()
    path = tmp_path / "set.zip"
    with zipfile.ZipFile(path, "w") as file:
        for entry in sorted(root.rglob("*")):
            file.write(entry, entry.relative_to(root).as_posix())
        file.write(root / "test/a/0.png", "test/a/follow/0.png")
        file.writestr("test/a/0.nii", b"")
        with pytest.warns(UserWarning, match="Duplicate name"):
            file.write(root / "test/a/1.png", "test/a/0.png")
    found = _described(path)
    assert _left_out(found.read) == {
        "ending .nii": 1, "image in a folder below a class folder": 1, "second member of one name": 1
    }  # fmt: skip


def test_arrays_that_are_not_read_are_named(tmp_path: Path) -> None:
    labels = np.array([0, 1])
    np.savez(
        tmp_path / "set.npz", test_images=_noise(1, (2, 4, 4)), test_labels=labels, test_masks=np.ones((2, 4, 4)),
        val_images=np.zeros((0, 4, 4), np.uint8), val_labels=labels[:0],
    )  # fmt: skip
    found = _described(tmp_path / "set.npz", None)
    assert _left_out(found.read) == {"array that holds neither images nor labels": 1, "array without images": 1}
    assert "test_masks" in _text(found, "left-out")


@pytest.mark.skipif(os.name != "posix", reason="file names are bytes on POSIX only")
def test_names_that_are_no_utf8_are_read_and_shown_escaped(make: Make) -> None:
    root = os.fsencode(make())
    try:
        os.rename(root + b"/test/a/0.png", root + b"/test/a/Br\xfccke.png")
        os.rename(root + b"/test/b", root + b"/test/gr\xfcn")
        os.rename(root + b"/val/b", root + b"/val/gr\xfcn")
        with open(root + b"/test/a/\xe4.nii", "wb"):
            pass
    except OSError:
        pytest.skip("this file system takes names in UTF-8 only")
    data = load_data(DataConfig(path=os.fsdecode(root)), seed=0)
    assert data.class_names == ("a", "gr\\xfcn")
    assert "test/a/Br\\xfccke.png" in data.ids
    assert "".join(data.ids).encode("utf-8")
    found = describe(data, "test", "val")
    assert found.read.left_out[0].examples == ["test/a/\\xe4.nii"]
    found.read.model_dump_json().encode("utf-8")
    with open(root + b"/test/a/\xe4.png", "wb"):
        pass
    with pytest.raises(DataError, match=r"\\xe4\.png' cannot be decoded") as caught:
        load_data(DataConfig(path=os.fsdecode(root)), seed=0)
    str(caught.value).encode("utf-8")


@pytest.mark.parametrize("bound", [2**28, 0], ids=["pixels", "bytes"])
@pytest.mark.parametrize("kind", ["folder", "zip"])
def test_images_in_two_splits_twice_and_with_two_labels(
    make: Make, monkeypatch: pytest.MonkeyPatch, bound: int, kind: str
) -> None:
    monkeypatch.setattr(module, "LOOKED_PIXELS", bound)
    root = make()
    shutil.copy(root / "val/a/0.png", root / "test/a/copied.png")
    shutil.copy(root / "test/a/1.png", root / "test/a/twin.png")
    shutil.copy(root / "test/b/1.png", root / "test/a/mislabelled.png")
    path = root if kind == "folder" else Path(shutil.make_archive(str(root), "zip", root))
    found = _described(path)
    assert found.read.compared_by == ("pixels" if bound else "bytes")
    assert [(row.split, row.n, row.other_label) for row in found.read.copies] == [("val", 1, 0), ("test", 2, 2)]
    assert found.read.copies[0].examples == [("test/a/copied.png", "val/a/0.png")]
    assert {"split-overlap", "copies", "conflicting-labels"} <= set(_kinds(found))
    assert "1 of 9 audited images stand in the split 'val', too (test/a/copied.png = val/a/0.png)" in _text(
        found, "split-overlap"
    )


def test_copies_saved_anew_are_equal_by_their_pixels(make: Make) -> None:
    root = make()
    image = Image.open(root / "val/b/2.png")
    image.save(root / "test/b/again.bmp")
    Image.fromarray(np.asarray(image).astype(np.uint16) * 257).save(root / "test/b/deep.png")
    assert [(row.split, row.n) for row in _described(root).read.copies] == [("test", 1), ("val", 2)][::-1]


def test_copies_within_arrays(tmp_path: Path) -> None:
    images, labels = _noise(1, (4, 6, 6)), np.array([0, 1, 0, 1])
    np.savez(
        tmp_path / "set.npz", test_images=images, test_labels=labels, train_images=images[:3], train_labels=labels[:3]
    )
    found = _described(tmp_path / "set.npz", None)
    assert [(row.split, row.n) for row in found.read.copies] == [("train", 3)]
    assert "a model that was trained on them has seen them" in _text(found, "split-overlap")


def test_many_equal_images_are_counted_in_linear_time() -> None:
    n = 100_000
    rows = np.arange(n)
    splits = np.where(rows % 2 == 0, "test", "val")
    found = copies.find_copies(dict.fromkeys(rows.tolist(), b"blank"), splits, rows % 3, [""] * n, "test")
    assert [(row.split, row.n) for row in found] == [("val", n // 2), ("test", n // 2 - 1)]
    assert found[1].other_label == n // 2


@pytest.mark.parametrize(
    ("options", "config", "white"),
    [
        ({"high": 4096, "dtype": np.uint16}, {}, 4095),
        ({"high": 16384, "dtype": np.uint16}, {}, 16383),
        ({"high": 16}, {}, 15),
        ({"high": 256, "dtype": np.uint16}, {"white": 4095}, 255),
    ],
    ids=["12 bits", "14 bits", "4 bits in bytes", "wrong white"],
)
def test_nearly_black_sets_are_pointed_out(make: Make, options: dict, config: dict, white: int) -> None:
    found = _described(make(size=(40, 40), **options), **config)
    assert _kinds(found) == ["dark"]
    assert f"`white = {white}`" in _text(found, "dark")
    mended = _described(make(size=(40, 40), **options), white=white)
    assert mended.notices == []
    assert mended.read.white == white


def test_one_bright_image_is_enough(make: Make) -> None:
    root = make(high=4096, dtype=np.uint16)
    Image.fromarray(np.full((8, 8), 60000, np.uint16) + _noise(0, high=9, dtype=np.uint16)).save(root / "val/a/9.png")
    assert _kinds(_described(root)) == []


def test_floats_that_are_nearly_black(tmp_path: Path) -> None:
    images = _noise(1, (4, 6, 6)) / 65025
    np.savez(tmp_path / "set.npz", test_images=images, test_labels=np.array([0, 1, 0, 1]))
    found = _described(tmp_path / "set.npz", None)
    assert _kinds(found) == ["dark"]
    assert "`white = 0.00" in _text(found, "dark")


def test_constant_saturated_and_clipped_sets(make: Make, save_image: SaveImage) -> None:
    root = make()
    save_image("set/test/a/blank.png", value=3)
    save_image("set/test/b/blank.png", value=4)
    assert _kinds(_described(root)) == ["constant"]
    assert "2 of 14 images looked at have one value only" in _text(_described(root), "constant")
    found = _described(root, white=100)
    assert _kinds(found) == ["constant", "clipped", "saturated"]
    assert "12 of 14 images looked at hold numbers above data.white = 100" in _text(found, "clipped")
    for path in root.rglob("*.png"):
        Image.fromarray(np.zeros((8, 8), np.uint8)).save(path)
    found = _described(root)
    assert "Every one of 14 images looked at has one value only" in _text(found, "constant")
    assert "dark" not in _kinds(found)


def test_transparency_orientation_and_shape_are_said(make: Make) -> None:
    root = make(size=(8, 16))
    assert _kinds(_described(root)) == []
    rgba = np.dstack([_noise(1, (8, 16, 3)), np.full((8, 16), 255, np.uint8)])
    rgba[0, 0, 3] = 7
    Image.fromarray(rgba).save(root / "test/a/8.png")
    exif = Image.Exif()
    exif[ORIENTATION_TAG] = 6
    Image.fromarray(_noise(2, (8, 16, 3))).save(root / "test/a/9.jpg", exif=exif)
    Image.new("CMYK", (16, 8), (1, 2, 3, 4)).save(root / "test/a/cmyk.jpg")
    found = _described(root, image_size=8, channels=3)
    assert _kinds(found) == ["transparent", "squeezed", "turned", "colour-space"]
    assert "15 images are not square (of different shapes, sides up to 1 : 2.00)" in _text(found, "squeezed")
    assert "test/a/9.jpg" in _text(found, "turned")
    assert found.read.kinds["8-bit colour with transparency"] == 1


def test_names_that_may_be_one(make: Make) -> None:
    root = make()
    (root / "test/b").rename(root / "test/A ")
    (root / "val/b").rename(root / "val/A ")
    (root / "Test").mkdir()
    (root / "test/a").rename(root / "Test/a")
    found = _described(root)
    assert _kinds(found) == ["similar-names", "similar-names", "class-without-images"]
    assert "'a', 'A '" in _text(found, "similar-names")
    assert "no image of 'a'" in _text(found, "class-without-images")


def test_masks_that_tell_nothing(manifest: Callable[[str], Path], tmp_path: Path) -> None:
    rows = "images/a.png,x,test,{0}\nimages/b.png,y,test,\nimages/c.png,x,val,\nimages/d.png,y,val,{0}\n"
    path = manifest("image,label,split,mask\n" + rows.format("images/m.png"))
    for value, kind in ((0, "empty-region"), (255, "full-region")):
        Image.fromarray(np.full((8, 8), value, np.uint8)).save(tmp_path / "images/m.png")
        assert _kinds(_described(path)) == ["constant", kind]
    Image.fromarray(np.eye(8, dtype=np.uint8)).save(tmp_path / "images/m.png")
    assert _kinds(_described(path)) == ["constant"]
    (tmp_path / "images/m.png").unlink()
    save = np.eye(8, dtype=np.uint8)
    Image.fromarray(save).save(tmp_path / "images/n.png")
    only = "images/a.png,x,test,\nimages/b.png,y,test,\nimages/c.png,x,val,images/n.png\n"
    assert "empty-region" in _kinds(_described(manifest("image,label,split,mask\n" + only)))


def test_broken_files_count_where_they_are_used(make: Make) -> None:
    root = make(size=(40, 40))
    for name in ("train/a/0.png", "train/b/0.png"):
        (root / name).parent.mkdir(parents=True)
        content = (root / "val/a/0.png").read_bytes()
        (root / name).write_bytes(content if "b/" in name else content[: len(content) // 2])
    found = _described(root)
    assert _left_out(found.read) == {"image that cannot be decoded, in a split that is not used": 1}
    whole = (root / "test/a/0.png").read_bytes()
    (root / "test/a/0.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"test/a/0\.png' cannot be decoded"):
        _described(root)


def test_a_large_set_is_sampled_and_what_was_decoded_is_kept(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LOOKED_ROWS", 5)
    monkeypatch.setattr(module, "SAMPLE", 4)
    data = load_data(DataConfig(path=str(make())), seed=0)
    found = describe(data, "test", "val")
    assert found.read.pixels is not None
    assert found.read.pixels.n == 4
    assert (found.read.compared, found.read.compared_by) == (12, "bytes")
    assert len(data.read_image._kept) == 4  # type: ignore[attr-defined]
    assert pickle.loads(pickle.dumps(data)).images([0]).equal(data.images([0]))


def test_a_set_in_memory_has_splits_only() -> None:
    splits, blank = np.array(["test"] * 2), np.zeros((4, 4), np.uint8)
    data = AuditSet(lambda row: blank, np.array([0, 1]), ("a", "b"), ("0", "1"), splits, (1, 4, 4))
    found = describe(data, "test", None)
    assert found.read.splits == {"test": {"a": 1, "b": 1}}
    assert found.notices == []


def test_the_report_shows_what_was_read(
    make: Make, tmp_path: Path, save_image: SaveImage, support_results: ModuleType
) -> None:
    root = make()
    save_image("set/test/b/follow<up>/0.png")
    shutil.copy(root / "val/a/0.png", root / "test/a/copied.png")
    found = _described(root)
    result = support_results.example_audit(tmp_path, n_queries=0)
    result.data_read, result.notices = found.read, found.notices
    result.classes = ["a", "b"]
    page = report_pages(result, tmp_path)["report.html"]
    assert "Left out: image in a folder below a class folder" in page
    assert "test/b/follow&lt;up&gt;/0.png" in page
    assert "Audited images also in val" in page
    assert "13 images by their pixels" in page


def test_the_second_source_is_looked_at_too(make: Make, tmp_path: Path) -> None:
    root = make(size=(9, 9))
    (tmp_path / "first").mkdir()
    first = (root).rename(tmp_path / "first" / "set")
    other = make(high=4096, dtype=np.uint16)
    (other / "test/a/x.nii").write_bytes(b"n+1")
    config = DataConfig(path=str(first), shift=str(other))
    audited = load_data(config, 0).split("test")
    notices = describe_shift(load_shift(config, 0, audited))
    assert [notice.kind for notice in notices] == ["left-out", "dark"]
    assert notices[0].text.startswith("Second source (data.shift): 1 file at data.shift is not read")
    assert describe_shift(load_shift(config.model_copy(update={"shift": str(first)}), 0, audited)) == []


def test_a_class_of_missing_labels_is_pointed_out(manifest: Callable[[str], Path]) -> None:
    rows = "images/a.png,x,test\nimages/b.png,nan,test\nimages/c.png,x,val\nimages/d.png,y,test\n"
    assert "missing-labels" in _kinds(_described(manifest("image,label,split\n" + rows)))


def test_a_white_background_is_not_over_exposed(make: Make) -> None:
    root = make(size=(16, 16))
    for inside, kinds in ((True, []), (False, ["saturated"])):
        for path in root.rglob("*.png"):
            pixels = np.full((16, 16), 255, np.uint8)
            noise = _noise(len(str(path)) + path.stat().st_size, (10, 10), 255)
            if inside:
                pixels[3:13, 3:13] = noise
            else:
                pixels[:10, :10] = noise
                pixels[10:, 10:] = noise[:6, :6]
            Image.fromarray(pixels).save(path)
        found = [kind for kind in _kinds(_described(root)) if kind == "saturated"]
        assert found == kinds


def test_folders_that_cannot_be_read_are_named(
    make: Make, save_image: SaveImage, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = make()
    save_image("set/test/a/locked/0.png")
    listed = Path.iterdir

    def guarded(folder: Path) -> Iterator[Path]:  # permissions do not bind the super-user, as whom tests may run
        if folder.name in locked:
            raise PermissionError(13, "Permission denied", str(folder))
        return listed(folder)

    monkeypatch.setattr(Path, "iterdir", guarded)
    locked = {"locked"}
    assert _left_out(_described(root).read) == {"folder that cannot be read": 1}
    locked = {"b"}
    with pytest.raises(DataError, match=r"Folder '.*test/b' cannot be read \(Permission denied\): allow it"):
        _described(root)


def test_a_training_hears_of_its_images_too(make: Make, capsys: pytest.CaptureFixture[str]) -> None:
    root = make(high=4096, dtype=np.uint16)
    (root / "val/a/x.nii").write_bytes(b"n+1")
    (root / "test/a/0.png").write_bytes((root / "test/a/0.png").read_bytes()[:80])
    data = load_images(DataConfig(path=str(root)), 0)
    note_on_training_data(data.split("val"))  # a broken file of another split is none of its business
    said = capsys.readouterr()
    assert said.out == ""
    assert "Note on data: 1 file at data.path is not read: 1 x ending .nii" in said.err
    assert "`white = 4095`" in said.err
