"""Groups: a gap is what is left when classes are alike, chance alone makes no group the worst, and likes are found."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from audit.data.audit_set import AuditSet
from audit.reliance.groups import clusters, gaps


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_a_group_that_fails_is_found_with_its_gap():
    site = ["a"] * 100 + ["b"] * 100
    labels = torch.arange(200) % 2
    right = torch.arange(200) % 10 != 0
    right[100:140] = False
    first, second = gaps(right, labels, {"site": site}, 20, rng())
    assert (first.column, first.value, first.accuracy.n) == ("site", "b", 100)
    assert first.gap.value == pytest.approx(float(right[100:].double().mean() - right[:100].double().mean()))
    assert first.gap.high is not None
    assert first.gap.high < 0
    assert first.p_value < 0.01
    assert second.p_value > 0.5


def test_a_group_of_hard_images_is_no_bad_group():
    """All of the classes differ in accuracy, and groups in their classes; within a class they are alike."""
    labels = torch.cat([torch.zeros(100), torch.ones(100)]).long()
    right = torch.ones(200, dtype=torch.bool)
    right[100::2] = False
    site = np.where((np.arange(200) % 100 < 20) ^ (np.arange(200) >= 100), "a", "b").tolist()
    found = {row.value: row for row in gaps(right, labels, {"site": site}, 10, rng())}
    assert found["a"].accuracy.value is not None
    assert found["b"].accuracy.value is not None
    assert abs(found["a"].accuracy.value - found["b"].accuracy.value) > 0.2
    assert found["a"].gap.value == pytest.approx(0, abs=1e-9)
    assert all(row.p_value > 0.5 for row in found.values())


def test_small_groups_and_images_without_a_value_are_left_out():
    labels = torch.arange(60) % 2
    columns = {"site": ["a"] * 10 + [""] * 20 + ["b"] * 30, "device": ["x"] * 60}
    found = gaps(labels == 0, labels, columns, 20, rng())
    assert [(row.column, row.value) for row in found] == [("site", "b")]  # x has no other images to stand beside
    assert gaps(labels == 0, labels, {}, 20, rng()) == []


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), n=st.integers(10, 80), groups=st.integers(1, 4))
def test_a_gap_lies_in_its_interval_and_in_its_range(seed: int, n: int, groups: int):
    draw = rng(seed)
    labels, right = torch.randint(3, (n,), generator=draw), torch.rand(n, generator=draw) < 0.7
    values = [f"{v}" for v in torch.randint(groups, (n,), generator=draw).tolist()]
    for row in gaps(right, labels, {"g": values}, 2, draw):
        assert row.gap.value is not None
        assert row.gap.low is not None
        assert row.gap.high is not None
        assert -1 <= row.gap.low <= row.gap.value + 1e-9
        assert row.gap.value <= row.gap.high + 1e-9
        assert row.gap.high <= 1
        assert 0 < row.p_value <= 1


def test_chance_alone_seldom_makes_a_group_the_worst():
    """With eight groups and no difference, the smallest p-value is below 5 % in about 5 % of the sets."""
    hits = 0
    for seed in range(100):
        draw = rng(seed)
        labels, right = torch.randint(2, (160,), generator=draw), torch.rand(160, generator=draw) < 0.8
        values = [f"{v}" for v in torch.randint(8, (160,), generator=draw).tolist()]
        hits += min(row.p_value for row in gaps(right, labels, {"g": values}, 5, draw)) < 0.05
    assert hits <= 12  # 99 % of the binomial of 100 draws at 5 %


def of_images(images: Tensor) -> AuditSet:
    n = len(images)
    return AuditSet(
        read_image=lambda row: images[row, 0].numpy(),
        labels=np.zeros(n, dtype=np.int64),
        class_names=("one",),
        ids=tuple(map(str, range(n))),
        splits=np.array(["test"] * n),
        image_shape=(1, 16, 16),
    )


def test_images_that_look_alike_fall_together_whatever_the_batch():
    images = 0.1 * torch.rand(40, 1, 16, 16, generator=rng())
    images[1::2, :, :8] += 0.6
    found = clusters(of_images(images), 2, 7, seed=0)
    assert len(set(found[::2])) == len(set(found[1::2])) == 1
    assert found[0] != found[1]
    assert found == clusters(of_images(images), 2, 40, seed=0)
