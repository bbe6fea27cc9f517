"""Precision and recall: closed forms, meaning of the two directions, independence of chunks and of the set's place."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from audit.errors import MetricError
from audit.metrics import precision_recall as module
from audit.metrics.precision_recall import covered, precision_recall, radii


def normal(n: int, d: int = 3, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


def test_radii_on_a_line() -> None:
    points = torch.tensor([[0.0], [1.0], [3.0], [7.0], [15.0]])
    assert radii(points, 1).tolist() == [1, 1, 2, 4, 8]
    assert radii(points, 3).tolist() == [7, 6, 4, 7, 14]


def test_a_ball_holds_its_border_and_nothing_beyond() -> None:
    points, reach = torch.tensor([[0.0], [10.0]]), torch.tensor([1.0, 2.0])
    queries = torch.tensor([[-1.0], [-1.01], [8.0], [7.9]])
    assert covered(queries, points, reach) == 0.5


def test_equal_sets_are_perfect_and_distant_ones_share_nothing() -> None:
    points = normal(40)
    assert precision_recall(points, points) == (1.0, 1.0)
    assert precision_recall(points, points + 1000) == (0.0, 0.0)


def test_dropped_modes_cost_recall_and_invented_ones_precision() -> None:
    near, far = normal(100), normal(100, seed=1) + 50
    precision, recall = precision_recall(normal(100, seed=2), torch.cat([near, far]))
    assert precision > 0.8
    assert 0.3 < recall <= 0.5
    precision, recall = precision_recall(torch.cat([near, far]), normal(100, seed=2))
    assert 0.3 < precision <= 0.5
    assert recall > 0.8


@settings(max_examples=20, deadline=None)
@given(n=st.integers(5, 30), m=st.integers(5, 30), seed=st.integers(0, 99), scale=st.floats(0.1, 10))
def test_swapping_swaps_and_moving_or_scaling_both_changes_nothing(n: int, m: int, seed: int, scale: float) -> None:
    a, b = normal(n, seed=seed).double(), normal(m, seed=seed + 100).double()
    precision, recall = precision_recall(a, b)
    assert precision_recall(b, a) == (recall, precision)
    assert precision_recall(a * scale, b * scale) == pytest.approx((precision, recall), abs=1 / min(n, m))


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = normal(50), normal(60, seed=1)
    whole = precision_recall(a, b)
    monkeypatch.setattr(module, "CHUNK", 7)
    assert precision_recall(a, b) == whole


def test_too_few_rows_are_refused() -> None:
    with pytest.raises(MetricError, match="at least 4 are needed"):
        precision_recall(normal(3), normal(10))
