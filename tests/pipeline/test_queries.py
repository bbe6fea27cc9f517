"""Choice of the query images: common, balanced, seeded."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support_explained import image_set
from support_small_audit import Small, configured, small_audit

from audit.config import QueryConfig
from audit.errors import ConfigError
from audit.pipeline.context import Context
from audit.pipeline.pairing import Group
from audit.pipeline.queries import (
    asked_classes,
    choose_queries,
    invert_queries,
    source_classes,
    stable_groups,
    sure_targets,
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


def test_misclassified_images_are_led_to_their_own_class_whatever_the_target():
    wrong, both = QueryConfig(target="healthy", pick="wrong"), QueryConfig(target="healthy", pick="all")
    assert source_classes(wrong, NAMES) == asked_classes(wrong, NAMES) == sure_targets(wrong, NAMES) == (0, 1, 2)
    assert source_classes(both, NAMES) == (1, 2)
    assert sure_targets(both, NAMES) == (0, 1, 2)
    assert sure_targets(QueryConfig(target="healthy"), NAMES) == (0,)
    assert sure_targets(QueryConfig(target="nearest"), NAMES) == ()


def asking(small: Small, **queries: object) -> Context:
    return replace(small.context, config=configured(queries={"n": 6, "target": "nearest"} | queries))


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 500), n=st.integers(2, 40), pick=st.sampled_from(["correct", "wrong", "all"]))
def test_every_model_gets_images_of_its_own_kind_in_equal_shares(seed, n, pick):
    rng = torch.Generator().manual_seed(seed)
    labels = torch.randint(3, (60,), generator=rng)
    audited = image_set(torch.zeros(60, 1, 16, 16), labels, NAMES)
    context = asking(small_audit(), n=n, target="healthy", pick=pick)
    predicted = {
        name: torch.where(torch.rand(60, generator=rng) < 0.3, (labels + 1) % 3, labels) for name in ("a", "b", "c")
    }
    chosen = choose_queries(context, audited, predicted)
    assert chosen.failed == chosen.nothing == {}
    assert sorted(name for group in chosen.groups for name in group.models) == ["a", "b", "c"]
    assert len(chosen.indices.unique()) == len(chosen.indices)
    used = torch.cat([group.places for group in chosen.groups])
    assert used.unique().tolist() == list(range(len(chosen.indices)))
    candidate = (labels != 0) | (pick == "wrong")
    for group in chosen.groups:
        rows = chosen.indices[group.places]
        assert 2 <= len(rows) <= n + max(2, n // 12)
        usable = candidate.clone()
        for name in group.models:
            right = predicted[name] == labels
            usable &= {"correct": right, "wrong": ~right, "all": torch.ones_like(right)}[pick]
            left_out = int((candidate & ~right).sum())
            assert sum(chosen.left_out[name].values()) == left_out
        assert usable[rows].all()
        counts, most = (torch.bincount(labels[some], minlength=3) for some in (rows, usable))
        short = counts < counts.max() - 1  # a class with less than its share has no more images
        assert torch.equal(counts[short], most[short])
    again = choose_queries(context, audited, predicted)
    assert torch.equal(again.indices, chosen.indices)


def test_a_model_that_gets_no_query_right_fails_and_takes_nothing_from_the_others(small):
    audited = small.images.audited
    right, wrong = audited.row_labels, 1 - audited.row_labels
    both = choose_queries(small.context, audited, {"right": right, "wrong": wrong})
    assert list(both.failed) == ["wrong"]
    assert both.failed["wrong"].stage == "query images"
    assert "gets none of the 12 images" in both.failed["wrong"].why
    assert both.left_out == {"right": {"dark": 0, "bright": 0}, "wrong": {"dark": 6, "bright": 6}}
    alone = choose_queries(small.context, audited, {"right": right})
    assert torch.equal(both.indices, alone.indices)
    assert len(alone.indices) == 8  # two more than asked for
    none = choose_queries(small.context, audited, {"wrong": wrong})
    assert (list(none.failed), none.groups, len(none.indices)) == (["wrong"], (), 0)


def test_of_a_model_that_is_always_right_there_is_nothing_to_explain_of_what_is_wrong(small):
    audited = small.images.audited
    right, one = audited.row_labels, audited.row_labels.clone()
    one[3] = 1 - one[3]
    predicted = {"right": right, "one": one, "wrong": 1 - right}
    chosen = choose_queries(asking(small, pick="wrong"), audited, predicted)
    assert chosen.failed == {}
    assert "'right' misclassifies none of the 12" in chosen.nothing["right"]
    assert "'one' misclassifies 1 of the 12" in chosen.nothing["one"]
    assert [group.models for group in chosen.groups] == [("wrong",)]


def test_a_model_that_calls_nearly_everything_one_class_is_explained_on_its_own_images(small):
    audited = small.images.audited
    right, weak = audited.row_labels, torch.zeros(12, dtype=torch.int64)
    weak[1] = 1
    chosen = choose_queries(asking(small, n=9), audited, {"weak": weak, "right": right, "again": right})
    assert [group.models for group in chosen.groups] == [("right", "again"), ("weak",)]
    shared, own = (chosen.indices[group.places] for group in chosen.groups)
    assert torch.bincount(right[shared]).tolist() in ([6, 5], [5, 6])
    assert torch.bincount(right[own]).tolist() == [6, 1]
    assert torch.equal(chosen.groups[0].places, torch.arange(11))  # the common ones come first


def test_queries_are_inverted_in_their_order(small):
    rows = torch.tensor([5, 2, 9])
    found = invert_queries(small.context, small.networks, small.images.audited, rows)
    assert found.positions.tolist() == [5, 2, 9]
    assert torch.equal(found.images, small.images.audited.images()[rows])
    assert found.inversion.images.shape == (3, 1, 16, 16)


def test_only_images_that_every_model_decides_as_before_are_kept(small):
    yes, some = torch.ones(6, dtype=torch.bool), torch.tensor([True, False, True, True, False, True])
    groups = [Group(("a", "b"), torch.arange(6))]
    stable = stable_groups(small.queries, groups, {"a": yes, "b": some}, 3)
    assert stable.failed == {}
    assert [(one.models, one.places.tolist()) for one in stable.groups] == [(("a", "b"), [0, 2, 3])]


def test_a_model_that_decides_inversions_otherwise_takes_none_from_the_others(small):
    yes, few, no = torch.ones(6, dtype=torch.bool), torch.zeros(6, dtype=torch.bool), torch.zeros(6, dtype=torch.bool)
    few[[1, 3]] = True
    groups = [Group(("a", "few", "no", "gone"), torch.arange(5)), Group(("other",), torch.tensor([5, 0]))]
    stable = stable_groups(small.queries, groups, {"a": yes, "few": few, "no": no, "other": yes}, 4)
    assert [(one.models, one.places.tolist()) for one in stable.groups] == [
        (("a",), [0, 1, 2, 3]),
        (("few",), [1, 3]),
        (("other",), [5, 0]),
    ]
    assert list(stable.failed) == ["no"]
    assert "keeps its decision on 0 of 5 inverted" in stable.failed["no"].why
