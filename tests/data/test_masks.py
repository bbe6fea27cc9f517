"""data.masks: the same regions from a folder or from arrays as from a manifest, and what is refused or said of them."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from audit.config import AuditConfig, DataConfig, load_config, parse_config
from audit.data.audit_set import AuditSet
from audit.data.describe import describe
from audit.data.load import load_data, load_shift
from audit.errors import DataError
from audit.pipeline.writing import inputs_of

SIZE = (12, 10)
CLASSES = ("opacity", "well")
SPLITS = ("test", "val")
Written = Callable[..., Path]


def mask_of(split: str, name: str, number: int) -> np.ndarray:
    rng = np.random.default_rng([SPLITS.index(split), CLASSES.index(name), number])
    return rng.random(SIZE) < 0.4


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """A folder `images/<split>/<class>/<number>.png` of 3 images each."""
    rng = np.random.default_rng(0)
    for split in SPLITS:
        for name in CLASSES:
            (tmp_path / "images" / split / name).mkdir(parents=True)
            for number in range(3):
                pixels = rng.integers(0, 256, SIZE, dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / "images" / split / name / f"{number}.png")
    return tmp_path / "images"


@pytest.fixture
def write(tmp_path: Path) -> Written:
    """Return `write(path, mask, value=255)`, which writes a mask file below `masks/` and returns that folder."""

    def write(path: str, mask: np.ndarray, value: int = 255) -> Path:
        file = tmp_path / "masks" / path
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((mask * value).astype(np.uint8)).save(file)
        return tmp_path / "masks"

    return write


def every(write: Written, pattern: str, ending: str = "png") -> None:
    for split in SPLITS:
        for name in CLASSES:
            for number in range(3):
                path = pattern.format(split=split, name=name, number=number)
                write(f"{path}.{ending}", mask_of(split, name, number))


def load(images: Path, **values: Any) -> AuditSet:
    values = {"masks": str(images.parent / "masks"), **values}
    return load_data(DataConfig.model_validate({"path": str(images), **values}), seed=0)


def kinds(data: AuditSet) -> list[str]:
    return [notice.kind for notice in describe(data, "test", None).notices]


def refuse(pattern: str, images: Path, **values: Any) -> None:
    with pytest.raises(DataError, match=pattern):
        load(images, **values)


@pytest.mark.parametrize("side", [None, 8, 15])
def test_folder_and_arrays_give_the_regions_of_a_manifest(images: Path, write: Written, side: int | None) -> None:
    every(write, "{split}/{name}/{number}")
    lines, arrays = ["image,label,split,mask"], {}
    for split in SPLITS:
        rows = [(name, number) for name in CLASSES for number in range(3)]
        files = [f"{split}/{name}/{number}.png" for name, number in rows]
        lines += [f"images/{file},{name},{split},masks/{file}" for file, (name, _) in zip(files, rows, strict=True)]
        arrays[f"{split}_images"] = np.stack([np.asarray(Image.open(images / file)) for file in files])
        arrays[f"{split}_labels"] = np.array([CLASSES.index(name) for name, _ in rows])
        arrays[f"{split}_masks"] = np.stack([mask_of(split, *row) for row in rows])
    (images.parent / "set.csv").write_text("\n".join(lines))
    np.savez(images.parent / "set.npz", **arrays)
    folder = load(images, image_size=side)
    manifest = load(images.parent / "set.csv", image_size=side, masks=None)
    npz = load(images.parent / "set.npz", image_size=side, masks="masks", classes=CLASSES)
    for split in SPLITS:
        expected = manifest.split(split)
        assert expected.region().any()
        for data in (folder.split(split), npz.split(split)):
            assert data.images().equal(expected.images())
            assert data.row_labels.equal(expected.row_labels)
            assert data.region().equal(expected.region())
    assert kinds(folder) == kinds(manifest)
    assert kinds(npz) == kinds(manifest)  # the arrays of masks are not called left out


@pytest.mark.parametrize(
    ("pattern", "regions"),
    [("{split}/{name}/{number}", {"region"}), ("marker/{split}/{name}/{number}", {"marker"}),
     ("region/{split}/{name}/{number}", {"region"})],
)  # fmt: skip
@pytest.mark.parametrize("ending", ["png", "TIF"])
def test_layouts_of_a_folder(images: Path, write: Written, pattern: str, regions: set[str], ending: str) -> None:
    every(write, pattern, ending)
    data = load(images)
    assert set(data.regions) == regions
    expected = [mask_of(*Path(i).parts[:2], int(Path(i).stem)) for i in data.row_ids]
    np.testing.assert_array_equal(data.region(*regions).numpy(), np.stack(expected))
    assert ("no-main-region" in kinds(data)) == (regions == {"marker"})


def test_the_end_of_a_path_will_do_where_one_image_has_it(images: Path, write: Written) -> None:
    (images / "test/opacity/0.png").rename(images / "test/opacity/case 7.png")
    write("case 7.png", mask_of("test", "opacity", 0), value=1)
    data = load(images)
    given = [i for i, mask in zip(data.row_ids, data.region(), strict=True) if mask.any()]
    assert given == ["test/opacity/case 7.png"]
    write("opacity/1.png", mask_of("test", "opacity", 1))
    refuse(
        r"'.*opacity/1\.png' may belong to 'test/opacity/1\.png' and 'val/opacity/1\.png': give it the whole", images
    )


def test_a_whole_path_is_meant_even_if_another_image_ends_so(tmp_path: Path, write: Written) -> None:
    lines = ["image,label,id"]
    for folder, number in (("", 0), ("b/", 1)):
        path = write(f"../pictures/{folder}x.png", np.full(SIZE, True), value=10 + number)
        lines.append(f"{path}/../pictures/{folder}x.png,{number},{folder}x")
    (tmp_path / "set.csv").write_text("\n".join(lines))
    write("x.png", mask_of("test", "well", 0))
    data = load_data(DataConfig(path=str(tmp_path / "set.csv"), masks=str(tmp_path / "masks")), 0)
    assert data.region().flatten(1).any(1).tolist() == [True, False]


def test_links_are_followed_but_not_in_circles(images: Path, write: Written, tmp_path: Path) -> None:
    every(write, "{split}/{name}/{number}")
    (tmp_path / "masks").rename(tmp_path / "kept")
    (tmp_path / "masks").mkdir()
    for name in ("region", "marker"):
        (tmp_path / "masks" / name).symlink_to(tmp_path / "kept")
    (tmp_path / "kept" / "test" / "up").symlink_to(tmp_path / "kept")
    data = load(images)
    assert set(data.regions) == {"region", "marker"}
    assert "masks-unused" not in kinds(data)


def test_images_of_a_zip(images: Path, write: Written, tmp_path: Path) -> None:
    every(write, "{split}/{name}/{number}")
    archive = shutil.make_archive(str(tmp_path / "images"), "zip", tmp_path, "images")
    assert load(Path(archive), masks=str(tmp_path / "masks")).region().equal(load(images).region())


def test_several_regions_and_what_is_missing_is_said(images: Path, write: Written) -> None:
    every(write, "region/{split}/{name}/{number}")
    every(write, "marker/{split}/{name}/{number}")
    (images.parent / "masks/region/test/opacity/1.png").unlink()
    for number in range(3):
        (images.parent / f"masks/marker/test/well/{number}.png").unlink()  # a class without a marker is no mistake
    write("region/test/opacity/unknown.png", np.ones(SIZE))
    (images.parent / "masks" / "read me.txt").touch()
    (images.parent / "masks" / ".DS_Store").touch()
    data = load(images)
    assert set(data.regions) == {"marker", "region"}
    texts = {n.kind: n.text for n in describe(data, "test", None).notices if n.kind.startswith("masks")}
    assert set(texts) == {"masks-unused", "masks-missing"}
    assert (
        "2 files in data.masks are the mask of no image (read me.txt, region/test/opacity/unknown.png)"
        in (texts["masks-unused"])
    )
    assert texts["masks-missing"].startswith(
        "1 of 3 images of opacity in the audited split have no mask of region 'region' (such as test/opacity/1.png)"
    )


def test_a_manifest_and_a_folder_are_joined_unless_both_give_a_region(images: Path, write: Written) -> None:
    every(write, "marker/{split}/{name}/{number}")
    rows = [f"images/{s}/{c}/0.png,{c},{s},1 1 3 3" for s in SPLITS for c in CLASSES]
    manifest = images.parent / "set.csv"
    manifest.write_text("\n".join(["image,label,split,box", *rows]))
    data = load(manifest)
    assert set(data.regions) == {"marker", "region"}
    assert data.region("region").sum() == 4 * 4
    (images.parent / "masks/marker").rename(images.parent / "masks/region")
    refuse("Region 'region' is given by manifest '.*' and by data.masks: remove or rename one", manifest)


def test_what_a_folder_may_not_hold(images: Path, write: Written, tmp_path: Path) -> None:
    refuse(r"Mask folder '.*masks' is not a folder: check data\.masks\.$", images)
    (tmp_path / "masks").mkdir()
    refuse(r"No file of mask folder .* which holds no image .* called test/opacity/0\.png", images)
    write("0_mask.png", np.ones(SIZE))
    refuse(r"is called as an image is, such as 0_mask\.png where an image is called test/opacity/0\.png: give", images)
    write("test/opacity/0.png", np.ones((5, 7)))
    refuse(r"Mask file '.*0\.png' is 7 x 5 pixels but its image is 10 x 12: a mask must have the size", images)
    write("test/opacity/0.png", np.ones(SIZE))
    write("test/opacity/0.bmp", np.ones(SIZE))
    refuse(r"Mask files '.*0\.bmp' and '.*0\.png' are both of region 'region' in image 'test/opacity/0\.png'", images)
    (tmp_path / "masks/test/opacity/0.bmp").unlink()
    write("test/well/2.jpg", np.ones(SIZE))
    refuse(r"2\.jpg' is a JPEG.*PNG", images)
    (tmp_path / "masks/test/well/2.jpg").unlink()
    load(images)
    (tmp_path / "masks").rename(images / "masks")
    refuse(r"Mask folder '.*' lies in data\.path, whose folders are classes", images, masks=str(images / "masks"))


def test_a_region_must_be_able_to_name_files(images: Path, write: Written) -> None:
    every(write, "a,b/{split}/{name}/{number}")
    refuse(r"'a,b': a region's name becomes part of file names", images)


def arrays(**more: np.ndarray) -> dict[str, np.ndarray]:
    found = {}
    for split in SPLITS:
        found[f"{split}_images"] = np.arange(4 * 12 * 10, dtype=np.uint16).reshape(4, 12, 10).astype(np.uint8)
        found[f"{split}_labels"] = np.array([0, 1, 0, 1])
    return {**found, **more}


def test_arrays_of_several_regions_in_one_split(tmp_path: Path) -> None:
    inside = np.zeros((4, *SIZE, 1), dtype=np.float32)
    inside[1, 2, 3] = 0.2
    np.savez(tmp_path / "set.npz", **arrays(test_masks=inside, test_masks_marker=inside[::-1] > 0, test_other=inside))
    data = load(tmp_path / "set.npz", masks="masks")
    assert set(data.regions) == {"region", "marker"}
    test, val = data.split("test"), data.split("val")
    np.testing.assert_array_equal(test.region("region").numpy(), inside[..., 0] > 0)
    np.testing.assert_array_equal(test.region("marker").numpy(), inside[::-1, ..., 0] > 0)
    assert not val.region("region").any()
    (left,) = describe(data, "test", None).read.left_out
    assert left.examples == ["test_other"]


def test_a_folder_for_arrays_of_images(tmp_path: Path, write: Written) -> None:
    np.savez(tmp_path / "set.npz", **arrays())
    folder = write("test/00002.png", mask_of("test", "well", 0))
    data = load(tmp_path / "set.npz", masks=str(folder)).split("test")
    assert data.region().flatten(1).any(1).tolist() == [False, False, True, False]


def test_arrays_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    def refuse_arrays(pattern: str, masks: str = "masks", **more: np.ndarray) -> None:
        np.savez(tmp_path / "set.npz", **arrays(**more))
        refuse(pattern, tmp_path / "set.npz", masks=masks)

    masks = np.ones((4, *SIZE), dtype=bool)
    refuse_arrays(r"no array '<split>_masks' for data\.masks = \"masks\" \(other arrays: test_images,")
    refuse_arrays(r"no array '<split>_test_masks'", masks="test_masks", test_masks=masks)
    refuse_arrays(r"'test_masks' .* shape \(3, 12, 10\) where \(4, 12, 10\) is needed", test_masks=masks[:3])
    refuse_arrays(r"'val_masks' .* shape \(4, 5, 5\)", val_masks=np.ones((4, 5, 5)))
    refuse_arrays("'test_masks' .* holds NaN", test_masks=np.where(masks, np.nan, 0))
    refuse_arrays("'test_masks' .* is of type <U1", test_masks=masks.astype("U1"))
    refuse_arrays("a region's name becomes part", **{"test_masks_a,b": masks})
    refuse_arrays("Mask folder 'masks' is not a folder.*for arrays of the .npz", masks="./masks", test_masks=masks)


def test_the_second_source_needs_no_masks(images: Path, write: Written) -> None:
    every(write, "{split}/{name}/{number}")
    config = DataConfig(path=str(images), masks=str(images.parent / "masks"), shift=str(images))
    assert not load_shift(config, 0, load_data(config, 0)).regions


def test_paths_and_inputs(tmp_path: Path) -> None:
    classifier = 'classifiers = [{ name = "a", checkpoint = "shipped:plain" }]\n'
    (tmp_path / "a.toml").write_text(f'{classifier}[data]\npath = "images"\nmasks = "masks"')
    config = load_config(tmp_path / "a.toml")
    assert config.data.masks == str(tmp_path.resolve() / "masks")
    assert inputs_of(config, None, None)["the masks (data.masks)"] == tmp_path.resolve() / "masks"
    (tmp_path / "b.toml").write_text(f'{classifier}[data]\npath = "set.npz"\nmasks = "masks"')
    config = load_config(tmp_path / "b.toml")
    assert config.data.masks == "masks"
    assert "the masks (data.masks)" not in inputs_of(config, None, None)
    values = {
        "data": {"path": "x.npz", "masks": "./masks"},
        "classifiers": [c.model_dump() for c in config.classifiers],
    }
    assert parse_config(AuditConfig, values, "the test").data.mask_arrays is None
