"""Which models share their query images: the rule, as properties of made-up answers, and single cases by hand."""

from statistics import harmonic_mean

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from audit.pipeline.pairing import KEPT, LEAST, balanced, pair_models

N = 90
LABELS = torch.arange(N) % 3


def rows(*per_class: int, start: int = 0) -> Tensor:
    """The first images of each class, as many as given, from the `start`-th one on."""
    mask = torch.zeros(N, dtype=torch.bool)
    for label, count in enumerate(per_class):
        mask[(label == LABELS).nonzero()[start : start + count, 0]] = True
    return mask


@st.composite
def answers(draw: st.DrawFn) -> dict[str, Tensor]:
    """Up to seven models, each with its own chance of a usable image in each class."""
    rng = torch.Generator().manual_seed(draw(st.integers(0, 10_000)))
    chances = draw(st.lists(st.tuples(*[st.sampled_from([0.0, 0.1, 0.5, 0.8, 1.0])] * 3), min_size=1, max_size=7))
    usable = {str(i): torch.rand(N, generator=rng) < torch.tensor(c)[LABELS] for i, c in enumerate(chances)}
    return {name: mask for name, mask in usable.items() if int(mask.sum()) >= LEAST}


def common(usable: dict[str, Tensor], models: tuple[str, ...]) -> Tensor:
    return torch.stack([usable[name] for name in models]).all(dim=0)


@settings(max_examples=60, deadline=None)
@given(usable=answers(), n=st.integers(2, 60))
def test_every_model_is_in_one_part_and_all_but_the_first_part_are_of_one(usable, n) -> None:
    parts = pair_models(usable, LABELS, n)
    assert sorted(name for part in parts for name in part) == sorted(usable)
    assert all(len(part) == 1 for part in parts[1:])
    assert parts == pair_models(usable, LABELS, n)


@settings(max_examples=60, deadline=None)
@given(usable=answers(), n=st.integers(2, 60))
def test_nobody_loses_more_than_half_by_being_paired(usable, n) -> None:
    for part in pair_models(usable, LABELS, n):
        shared = common(usable, part)
        assert int(shared.sum()) >= LEAST
        for name in part:
            alone = torch.bincount(LABELS[usable[name]], minlength=3)
            share = -(-n // int((alone > 0).sum()))
            kept = [
                min(int((shared & (c == LABELS)).sum()), share) / min(int(alone[c]), share)
                for c in range(3)
                if alone[c]
            ]
            assert harmonic_mean(kept) >= KEPT - 1e-9


@settings(max_examples=60, deadline=None)
@given(usable=answers(), n=st.integers(2, 60))
def test_a_model_that_stays_alone_changes_nothing_for_the_others(usable, n) -> None:
    parts = pair_models(usable, LABELS, n)
    for (name,) in parts[1:]:
        others = {other: mask for other, mask in usable.items() if other != name}
        assert pair_models(others, LABELS, n) == [part for part in parts if part != (name,)]


@settings(max_examples=60, deadline=None)
@given(usable=answers(), n=st.integers(2, 60), seed=st.integers(0, 100))
def test_the_same_model_twice_is_paired_or_twice_alone(usable, n, seed) -> None:
    for name in list(usable):
        parts = pair_models({**usable, "again": usable[name]}, LABELS, n)
        mine, again = (next(part for part in parts if one in part) for one in (name, "again"))
        assert (mine == again) or (parts.index(mine) > 0 and parts.index(again) > 0)


@pytest.mark.parametrize(
    ("case", "usable", "parts"),
    [
        ("good models", {"a": rows(30, 29, 30), "b": rows(28, 30, 27)}, [("a", "b")]),
        ("fewer of many", {"a": rows(30, 30, 30), "b": rows(11, 12, 10)}, [("a", "b")]),
        ("one that never sees a class", {"a": rows(30, 30, 30), "b": rows(30, 30, 0), "c": rows(29, 29, 29)},
         [("a", "c"), ("b",)]),
        ("two that see one class only", {"x": rows(30, 0, 0), "y": rows(30, 0, 0), "a": rows(9, 9, 9)},
         [("a",), ("x",), ("y",)]),
        ("nothing in common", {"a": rows(12, 12, 12), "b": rows(10, 10, 10, start=15)}, [("a",), ("b",)]),
        ("the last is one too many", {"a": rows(30, 30, 30), "b": rows(8, 8, 8), "c": rows(8, 8, 8, start=4)},
         [("a", "b"), ("c",)]),
        ("the order of the configuration stays", {"b": rows(20, 20, 20), "a": rows(30, 30, 30)}, [("b", "a")]),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_cases(case: str, usable: dict[str, Tensor], parts: list[tuple[str, ...]]) -> None:
    assert pair_models(usable, LABELS, 30) == parts


def test_no_model_no_part() -> None:
    assert pair_models({}, LABELS, 30) == []


def test_equal_shares_and_what_a_class_lacks_goes_to_the_others() -> None:
    order = torch.tensor([8, 2, 5, 1, 4, 0, 3])
    assert balanced(LABELS, order, (0, 2), 4).tolist() == [0, 8, 3, 2]
    assert balanced(LABELS, order, (0, 2), 9).tolist() == [0, 8, 3, 2, 5]
    assert balanced(LABELS, order[:0], (0, 2), 9).tolist() == []
