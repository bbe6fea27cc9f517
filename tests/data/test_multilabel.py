"""Images with any number of labels: how data say so, what is unknown, what is refused, and the view of one label."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from audit.config import DataConfig
from audit.data.audit_set import AuditSet
from audit.data.describe import describe
from audit.data.fingerprint import fingerprint, listing_fingerprint
from audit.data.listing import seeded_split
from audit.data.load import load_data, load_images
from audit.data.multilabel import label_view
from audit.errors import DataError

MULTI = "multi-label"


def _load(path: Path, **values: object) -> AuditSet:
    return load_data(DataConfig.model_validate({"path": str(path), **values}), seed=0)


def _npz(tmp_path: Path, test: object, **values: object) -> AuditSet:
    labels = np.array(test)
    arrays = {"test_images": np.arange(len(labels) * 16, dtype=np.uint8).reshape(-1, 4, 4), "test_labels": labels}
    np.savez(tmp_path / "set.npz", **arrays)
    return _load(tmp_path / "set.npz", **values)


HOT = [[1, 0, 1], [0, 0, 0], [1, 1, 0], [0, 1, 1]]


def test_npz_in_the_layout_of_chestmnist(tmp_path: Path) -> None:
    data = _npz(tmp_path, HOT)
    assert data.is_multi_label
    assert data.class_names == ("label 0", "label 1", "label 2")
    assert data.row_labels.tolist() == HOT
    (notice,) = data.notices
    assert notice.kind == MULTI
    assert "data.task" in notice.text
    assert _npz(tmp_path, HOT, task=MULTI, classes=["a", "b", "c"]).notices == ()


def test_npz_of_one_label_is_two_classes_unless_the_task_says_so(tmp_path: Path) -> None:
    column = [[1], [0], [1], [0]]
    assert not _npz(tmp_path, column).is_multi_label
    assert _npz(tmp_path, column, task=MULTI).row_labels.tolist() == column
    assert _npz(tmp_path, [1, 0, 1, 0], task=MULTI).row_labels.tolist() == column


@pytest.mark.parametrize(
    ("labels", "settings", "match"),
    [
        ([[1, 0], [0, 1]], {}, 'set data.task to "multi-label"'),
        (HOT, {"task": "single-label"}, "one label per image"),
        ([[1, 0], [0, 2]], {"task": MULTI}, "holds 2 in row 1, column 1"),
        (HOT, {"classes": ["a", "b"]}, "3 columns where there are 2 labels"),
        ([[1, 0], [1, 1]], {"task": MULTI}, "'label 0' is absent from no image"),
        ([[1, 0], [0, 0]], {"task": MULTI}, "'label 1' is present in no image"),
    ],
)
def test_npz_refused(tmp_path: Path, labels: object, settings: dict[str, object], match: str) -> None:
    with pytest.raises(DataError, match=match):
        _npz(tmp_path, labels, **settings)


def test_lists_of_labels(manifest: Callable[[str], Path]) -> None:
    rows = "image,label\nimages/a.png,mass; effusion\nimages/b.png,\nimages/c.png,effusion\nimages/d.png,effusion;\n"
    data = _load(manifest(rows))
    assert data.class_names == ("effusion", "mass")
    assert sorted(zip(data.row_ids, data.row_labels.tolist(), strict=True)) == [
        ("images/a.png", [1, 1]),
        ("images/b.png", [0, 0]),
        ("images/c.png", [1, 0]),
        ("images/d.png", [1, 0]),
    ]
    assert [notice.kind for notice in data.notices] == [MULTI]
    with pytest.raises(DataError, match=r"'mass' in row 2 of .* did you mean 'effusion'"):
        _load(manifest(rows), classes=["effusion"], task=MULTI)
    with pytest.raises(DataError, match="cell 'label' is empty in row 3"):
        _load(manifest(rows), task="single-label")


def test_a_column_for_every_label(manifest: Callable[[str], Path]) -> None:
    cells = "a.png,1,0.0,M\nimages/b.png,,1,F\nimages/c.png,0,-1,M\nimages/d.png,-1.0,0,F\n"
    expected = [[1, 0], [-1, 1], [0, -1], [-1, 0]]
    marked = _load(manifest(f"image,label:mass,label:effusion,sex\nimages/{cells}"))
    plain = _load(manifest(f"image,mass,effusion,sex\nimages/{cells}"), classes=["mass", "effusion"])
    for data in (marked, plain):
        assert data.class_names == ("mass", "effusion")
        assert data.row_labels.tolist() == expected
        assert [notice.kind for notice in data.notices] == [MULTI, "unknown-labels"]
        assert "mass 2, effusion 1" in data.notices[1].text
    turned = _load(manifest(f"image,label:mass,label:effusion,sex\nimages/{cells}"), classes=["effusion", "mass"])
    assert turned.row_labels.tolist() == [row[::-1] for row in expected]


@pytest.mark.parametrize(
    ("text", "settings", "match"),
    [
        ("image,mass\nimages/a.png,1\n", {}, "no column 'label'"),
        ("image,label,label:mass\nimages/a.png,x,1\n", {}, "remove one or the others"),
        ("image,label:mass\nimages/a.png,yes\nimages/b.png,0\n", {}, "cell 'yes' of label 'mass' in row 2"),
        (
            "image,label:mass\nimages/a.png,1\nimages/b.png,0\n",
            {"classes": ["mass", "nodule"]},
            "'nodule' .* no column",
        ),
    ],
)
def test_manifest_refused(manifest: Callable[[str], Path], text: str, settings: dict[str, object], match: str) -> None:
    with pytest.raises(DataError, match=match):
        _load(manifest(text), **settings)


def test_folders_have_one_class_per_image(tmp_path: Path, save_image: Callable[..., Path]) -> None:
    for name in ("x", "y"):
        save_image(f"scans/{name}/1.png")
    with pytest.raises(DataError, match="give a CSV manifest"):
        _load(tmp_path / "scans", task=MULTI)


def test_a_view_of_one_label_leaves_out_what_is_unknown(tmp_path: Path) -> None:
    data = _npz(tmp_path, [[1, -1], [0, 1], [1, 0], [0, -1], [1, 1]])
    view = label_view(data.select([4, 3, 1, 0]), 1)
    assert view.class_names == ("no label 1", "label 1")
    assert view.row_ids == ("test/00004", "test/00001")
    assert view.row_labels.tolist() == [1, 1]
    assert label_view(data, 0).row_labels.tolist() == [1, 0, 1, 0, 1]
    assert view.images().equal(data.images([4, 1]))


def test_the_region_called_as_a_label_is_the_main_one_of_its_view(manifest: Callable[[str], Path]) -> None:
    rows = "image,label:mass,label:effusion,mask:mass\nimages/a.png,1,0,images/m.png\nimages/b.png,0,1,\n"
    data = _load(manifest(rows))
    assert set(label_view(data, 0).regions) == {"region"}
    assert int(label_view(data, 0).region().sum()) > 0
    assert set(label_view(data, 1).regions) == {"mass"}


def test_record_and_hash_know_several_labels(tmp_path: Path) -> None:
    data = _npz(tmp_path, HOT)
    assert describe(data, "test", None).read.splits == {"test": {"label 0": 2, "label 1": 2, "label 2": 2}}
    other = _npz(tmp_path, [[1, 0, 1], [0, 0, 1], [1, 1, 0], [0, 1, 1]])
    assert fingerprint(data) != fingerprint(other)
    assert listing_fingerprint(data) != listing_fingerprint(other)


def test_trainings_on_images_alone_take_them_as_one_class(tmp_path: Path) -> None:
    _npz(tmp_path, HOT)
    data = load_images(DataConfig(path=str(tmp_path / "set.npz")), seed=0)
    assert data.class_names == ("unlabelled",)
    assert data.row_labels.tolist() == [0, 0, 0, 0]


@given(st.lists(st.tuples(*[st.integers(-1, 1)] * 3), min_size=2, max_size=60), st.integers(0, 3))
def test_a_division_by_chance_keeps_rare_labels_in_both_halves(rows: list[tuple[int, ...]], seed: int) -> None:
    labels = np.array(rows)
    splits = seeded_split(labels, [str(i) for i in range(len(rows))], seed)
    rarest = (labels == 1).sum(axis=0).argmin()
    n = int((labels[:, rarest] == 1).sum())
    assert int((labels[splits == "calibration", rarest] == 1).sum()) == n // 2
    shuffled = np.random.default_rng(seed).permutation(len(rows))
    again = seeded_split(labels[shuffled], [str(i) for i in shuffled], seed)
    assert (again == splits[shuffled]).all()
