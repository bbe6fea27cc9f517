"""CSV manifests: columns, regions, labels, and errors that name the row."""

from collections.abc import Callable
from pathlib import Path

import pytest

from audit.config import DataConfig
from audit.data.audit_set import AuditSet
from audit.data.load import load_data
from audit.errors import DataError

Write = Callable[[str], Path]


def _load(path: Path, **values: object) -> AuditSet:
    return load_data(DataConfig.model_validate({"path": str(path), **values}), seed=0)


WHOLE = """image,label,split,mask,mask:marker,id,age
images/a.png,healthy,train,,,patient 1,40
images/b.png,ill,train,images/m.png,,patient 2,50
images/c.png,healthy,test,,images/m.png,patient 3,60
images/d.png,ill,test,images/m.png,images/m.png,patient 4,70
"""


def test_every_column(manifest: Write) -> None:
    data = _load(manifest(WHOLE))
    assert data.class_names == ("healthy", "ill")
    assert data.row_labels.tolist() == [0, 1, 0, 1]
    assert data.ids == ("patient 1", "patient 2", "patient 3", "patient 4")
    assert data.splits.tolist() == ["train", "train", "test", "test"]
    assert (data.images()[:, 0, 0, 0] * 255).round().int().tolist() == [0, 10, 20, 30]
    assert sorted(data.regions) == ["marker", "region"]
    assert data.region().sum((1, 2)).tolist() == [0, 6, 0, 6]
    assert data.region("marker").sum((1, 2)).tolist() == [0, 0, 6, 6]
    assert data.region()[1, 2:4, 3:6].all()
    assert data.split("test").region("marker").sum() == 12


def test_masks_and_boxes_follow_the_size(manifest: Write) -> None:
    boxed = manifest(
        "image,label,box\nimages/a.png,x,3 2 6 4\nimages/b.png,y,0 0 1 1; 7 7 8 8\nimages/c.png,x,\n"
        "images/d.png,y,0 0 8 8\n"
    )
    assert _load(boxed).region().sum((1, 2)).tolist() == [6, 2, 0, 64]
    scaled = _load(boxed, image_size=16)
    assert scaled.image_shape == (1, 16, 16)
    assert scaled.region().sum((1, 2)).tolist() == [24, 8, 0, 256]
    masked = _load(
        manifest("image,label,mask\nimages/a.png,x,images/m.png\nimages/b.png,y,\n"), audit_split="test", image_size=16
    )
    assert masked.region()[0].equal(scaled.region()[0])


def test_masks_and_boxes_may_alternate_between_rows(manifest: Write) -> None:
    data = _load(manifest("image,label,mask,box\nimages/a.png,x,images/m.png,\nimages/b.png,y,,3 2 6 4\n"))
    assert data.region()[0].equal(data.region()[1])


def test_whole_numbers_as_labels(manifest: Write) -> None:
    rows = "image,label,split\nimages/a.png,0,test\nimages/b.png,1,test\nimages/c.png,1,train\n"
    data = _load(manifest(rows))
    assert data.class_names == ("class 0", "class 1")
    assert data.row_labels.tolist() == [0, 1, 1]
    assert _load(manifest(rows), classes=["no", "yes"]).class_names == ("no", "yes")
    named = _load(manifest(rows), classes=["1", "0"])  # names win over positions where they are numbers
    assert named.row_labels.tolist() == [1, 0, 0]


def test_the_seeded_split_does_not_depend_on_the_order_of_rows(
    manifest: Write, save_image: Callable[..., Path]
) -> None:
    rows = []
    for index in range(20):
        save_image(f"images/{index}.png")
        rows.append(f"images/{index}.png,{'xy'[index % 2]}")
    forward = _load(manifest("\n".join(["image,label", *rows])))
    backward = _load(manifest("\n".join(["image,label", *rows[::-1]])))
    assert dict(zip(forward.ids, forward.splits, strict=True)) == dict(zip(backward.ids, backward.splits, strict=True))
    assert len(forward.split("calibration")) == 10


def test_spreadsheet_habits(manifest: Write) -> None:
    data = _load(manifest('\ufeffimage, label\r\n"images/a.png", NA\r\n\r\nimages/b.png,null\r\n,\r\n'))
    assert data.class_names == ("NA", "null")
    assert len(data) == 2


def test_absolute_paths(manifest: Write, tmp_path: Path) -> None:
    path = manifest(f"image,label\n{tmp_path}/images/a.png,x\nimages/b.png,y\n")
    assert _load(path).images().shape == (2, 1, 8, 8)


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("", "is empty"),
        ("image,label\n", "no rows"),
        ("file,label\nimages/a.png,x\n", r"no column 'image' \(its columns: file, label\)"),
        ("image;label\nimages/a.png;x\n", r"no column 'image' \(its columns: image;label\)"),
        ("image,label,bbox\nimages/a.png,x,0 0 1 1\n", r"column 'bbox': did you mean 'box'\?"),
        ("image,label,masks\nimages/a.png,x,\n", r"column 'masks': did you mean 'mask'\?"),
        ("image,label,label\nimages/a.png,x,x\n", "column 'label' twice"),
        ("image,label,mask:region\nimages/a.png,x,\n", "call the class's own region 'mask'"),
        ("image,label\nimages/a.png,x\nimages/gone.png,y\n", r"'images/gone\.png' of column 'image' in row 3"),
        ("image,label\n\n\nimages/gone.png,y\n", "in row 4"),
        ("image,label\nimages/a.png,x\nimages/b.png\n", "'label' is empty in row 3"),
        ("image,label\nimages/a.png,x\nimages/b.png,y,z\n", "Row 3 .* has 3 cells where the header has 2"),
        ("image,label\nimages/a.png,x\nimages/a.png,y\n", "row 3 .* is already that of row 2"),
        ("image,label,id\nimages/a.png,x,1\nimages/b.png,y,1\n", "id '1' in row 3 .* is already that of row 2"),
        ("image,label,split\nimages/a.png,x,test\nimages/b.png,y,\n", "'split' is empty in row 3"),
        ("image,label,split\nimages/a.png,x,tset\nimages/b.png,y,tset\n", r"Split 'test' .* did you mean 'tset'\?"),
        ("image,label\nimages/a.png,0\nimages/b.png,1.5\n", "Label '1.5' in row 3 .* is not a whole number"),
        ("image,label\nimages/a.png,0\nimages/b.png,-1\n", "Label -1 in row 3 .* out of range"),
        ("image,label\nimages/a.png,0\nimages/b.png,nan\n", "Label 'nan' in row 3 .* is not a whole number"),
        ("image,label\nimages/a.png,0\nimages/b.png,2\n", "Class 'class 1' has no image"),
        ("image,label,mask\nimages/a.png,x,images/gone.png\n", r"'images/gone\.png' of column 'mask' in row 2"),
        ("image,label,mask:pin\nimages/a.png,x,images/gone.png\n", r"of column 'mask:pin' in row 2"),
        ("image,label,box\nimages/a.png,x,1 2 3\n", "box '1 2 3' in row 2 .* four numbers"),
        ("image,label,box\nimages/a.png,x,0 0 2 2\nimages/b.png,y,0 0 9 8\n", "box in row 3 .* inside the image"),
        ("image,label,mask,box\nimages/a.png,x,images/m.png,0 0 1 1\n", "Both mask and box are given in row 2"),
        ('image,label\nimages/a.png,"x\n', "cannot be read as UTF-8 CSV"),
    ],
)
def test_errors_name_the_row_and_the_remedy(manifest: Write, text: str, match: str) -> None:
    with pytest.raises(DataError, match=match) as caught:
        _load(manifest(text))
    assert "\n" not in str(caught.value)


def test_labels_against_the_class_list(manifest: Write) -> None:
    named = manifest("image,label\nimages/a.png,healthy\nimages/b.png,il\n")
    with pytest.raises(DataError, match=r"Label 'il' in row 3 .* not in the class list: did you mean 'ill'\?"):
        _load(named, classes=["healthy", "ill"])
    numbered = manifest("image,label\nimages/a.png,0\nimages/b.png,2\n")
    with pytest.raises(DataError, match=r"Label 2 in row 3 .* must lie between 0 and 1"):
        _load(numbered, classes=["healthy", "ill"])


def test_a_mask_must_have_the_size_of_its_image(manifest: Write, save_image: Callable[..., Path]) -> None:
    save_image("images/small.png", size=(4, 8))
    path = manifest("image,label,mask\nimages/a.png,x,images/m.png\nimages/b.png,y,images/small.png\n")
    for size in (None, 16):
        with pytest.raises(DataError, match=r"small\.png' in row 3 .* is 8 x 4 pixels but its image is 8 x 8"):
            _load(path, image_size=size)


def test_a_mask_that_is_no_image_is_named(manifest: Write, tmp_path: Path) -> None:
    (tmp_path / "images" / "broken.png").write_text("no image")
    with pytest.raises(DataError, match=r"broken\.png' cannot be decoded"):
        _load(manifest("image,label,mask\nimages/a.png,x,\nimages/b.png,y,images/broken.png\n"))


def test_other_encodings_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "latin.csv"
    path.write_bytes("image,label\na.png,Lungenentzündung\n".encode("latin-1"))
    with pytest.raises(DataError, match=r"latin\.csv' cannot be read as UTF-8"):
        _load(path)
    with pytest.raises(DataError, match="does not exist"):
        _load(tmp_path / "gone.csv", format="manifest")


def test_region_names_stay_inside_the_folder_of_pictures(manifest: Write) -> None:
    for name in ("../up", "a/b", "a\\b", "a\0b"):
        with pytest.raises(DataError, match="becomes part of file names"):
            _load(manifest(f"image,label,mask:{name}\nimages/a.png,x,\nimages/b.png,y,\n"))
    rows = "image,label,split,mask:Lungenflügel 2\nimages/a.png,x,test,images/m.png\nimages/b.png,y,test,\n"
    assert "Lungenflügel 2" in _load(manifest(rows)).regions


def test_boxes_in_shares_of_a_side_are_refused(manifest: Write) -> None:
    with pytest.raises(DataError, match=r"boxes are in pixels, so multiply"):
        _load(manifest("image,label,box\nimages/a.png,x,0.1 0.2 0.5 1\nimages/b.png,y,0 0 1 0.5\n"))


@pytest.mark.parametrize("cell", ["x" * 5000, "~nobody-here/a.png", "a\0b"])
def test_cells_that_cannot_be_paths_are_named(manifest: Write, cell: str) -> None:
    with pytest.raises(DataError, match=r"of column 'image' in row 2 .* does not exist"):
        _load(manifest(f"image,label\n{cell},x\nimages/b.png,y\n"))


def test_columns_of_metadata_are_kept_where_they_are_asked_for(manifest: Write) -> None:
    data = _load(manifest(WHOLE), groups=["age"])
    assert data.split("test").row_groups == {"age": ["60", "70"]}
    assert _load(manifest(WHOLE)).row_groups == {}
    with pytest.raises(DataError, match=r"no column 'site', which data.groups names: .*age"):
        _load(manifest(WHOLE), groups=["site"])


def test_columns_are_asked_of_manifests_only() -> None:
    with pytest.raises(DataError, match="'phantom' has none"):
        _load(Path("phantom"), groups=["site"])
