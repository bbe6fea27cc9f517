"""Choice of the query images: common, balanced, seeded."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from audit.config import QueryConfig
from audit.errors import ConfigError, DataError
from audit.pipeline.queries import (
    Selection,
    asked_classes,
    choose_queries,
    invert_queries,
    select_queries,
    source_classes,
    stable_queries,
)

NAMES = ("healthy", "opacity", "heart")


def test_sources_are_all_but_a_fixed_target():
    assert source_classes(QueryConfig(target="healthy"), NAMES) == (1, 2)
    assert source_classes(QueryConfig(target="nearest"), NAMES) == (0, 1, 2)
    assert source_classes(QueryConfig(target="healthy", classes=("heart",)), NAMES) == (2,)


def test_calibration_is_asked_only_for_what_edits_leave_or_enter():
    assert asked_classes(QueryConfig(target="nearest", classes=("heart",)), NAMES) == (0, 1, 2)
    assert asked_classes(QueryConfig(target="healthy"), NAMES) == (0, 1, 2)
    assert asked_classes(QueryConfig(target="healthy", classes=("heart",)), NAMES) == (0, 2)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"target": "helthy"}, "queries.target"),
        ({"target": "healthy", "classes": ("lung",)}, "queries.classes"),
        ({"target": "healthy", "classes": ("healthy",)}, "nothing to explain"),
    ],
)
def test_unknown_classes_are_named(config, said):
    with pytest.raises(ConfigError, match=said):
        source_classes(QueryConfig(**config), NAMES)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 500), n=st.integers(2, 40))
def test_only_images_that_all_models_get_right_and_equal_shares(seed, n):
    rng = torch.Generator().manual_seed(seed)
    labels = torch.randint(3, (60,), generator=rng)
    predicted = {
        name: torch.where(torch.rand(60, generator=rng) < 0.2, (labels + 1) % 3, labels) for name in ("a", "b")
    }
    chosen = select_queries(labels, predicted, QueryConfig(n=n, target="healthy"), NAMES, seed)
    rows = chosen.indices
    assert len(rows) <= n
    assert len(rows.unique()) == len(rows)
    assert (labels[rows] != 0).all()
    for name, decision in predicted.items():
        assert (decision[rows] == labels[rows]).all()
        wrong = (labels != 0) & (decision != labels)
        assert sum(chosen.left_out[name].values()) == int(wrong.sum())
    counts = torch.bincount(labels[rows], minlength=3)[1:]
    if len(rows) == n:
        right = (predicted["a"] == labels) & (predicted["b"] == labels)
        available = torch.bincount(labels[right], minlength=3)[1:]
        if (available >= (n + 1) // 2).all():
            assert abs(int(counts[0]) - int(counts[1])) <= 1
    again = select_queries(labels, predicted, QueryConfig(n=n, target="healthy"), NAMES, seed)
    assert torch.equal(rows, again.indices)


def test_a_model_that_gets_no_query_right_takes_no_part(small):
    audited = small.images.audited
    right, wrong = audited.row_labels, 1 - audited.row_labels
    chosen, failed = choose_queries(small.context, audited, {"right": right, "wrong": wrong})
    assert list(failed) == ["wrong"]
    assert failed["wrong"].stage == "query images"
    assert chosen.left_out == {"right": {"dark": 0, "bright": 0}}
    assert len(chosen.indices) == 8  # two more than asked for
    none, failed = choose_queries(small.context, audited, {"wrong": wrong})
    assert (failed, none.left_out) == ({}, {"wrong": {"dark": 6, "bright": 6}})
    with pytest.raises(DataError, match=r"Only 0 image.*wrong misses 12"):
        invert_queries(small.context, small.networks, audited, none)


def test_queries_are_inverted_in_their_order(small):
    rows = torch.tensor([5, 2, 9])
    found = invert_queries(small.context, small.networks, small.images.audited, Selection(rows, {}))
    assert found.positions.tolist() == [5, 2, 9]
    assert torch.equal(found.images, small.images.audited.images()[rows])
    assert found.inversion.images.shape == (3, 1, 16, 16)


def test_only_images_that_every_model_decides_as_before_are_kept(small):
    yes, some = torch.ones(6, dtype=torch.bool), torch.tensor([True, False, True, True, False, True])
    kept = stable_queries(small.queries, [yes, some], 3)
    assert kept.positions.tolist() == [0, 2, 3]
    assert torch.equal(kept.images, small.queries.images[[0, 2, 3]])
    assert torch.equal(kept.inversion.images, kept.images)
    with pytest.raises(DataError, match="keep their decision on 0 of 6"):
        stable_queries(small.queries, [yes, ~yes], 3)
