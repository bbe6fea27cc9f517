"""Clean accuracy: recall, calibration, the bar of predictions."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from support_models import Brightness, grey_levels
from torch import Tensor

from audit.errors import MetricError
from audit.robustness import accuracy as clean
from audit.robustness.accuracy import (
    class_scores,
    clean_metrics,
    confidence_bins,
    expected_calibration_error,
    predict,
)
from audit.runtime.progress import Advance


def test_calibration_error_by_hand() -> None:
    probabilities = torch.tensor([[0.9, 0.1], [0.9, 0.1], [0.4, 0.6], [0.3, 0.7]])
    labels = torch.tensor([0, 1, 1, 1])
    # Bins: two at 0.9 with accuracy 1/2, one at 0.6 and one at 0.7 that are right: (2 * 0.4 + 0.4 + 0.3) / 4.
    assert expected_calibration_error(probabilities, labels) == pytest.approx(0.375)


def test_calibration_error_is_the_mean_gap_of_its_bins() -> None:
    rng = torch.Generator().manual_seed(0)
    probabilities = torch.randn(300, 3, generator=rng).mul(3).softmax(dim=1)
    labels = torch.randint(3, (300,), generator=rng)
    bins = confidence_bins(probabilities, labels)
    assert sum(one.accuracy.n for one in bins) == 300
    assert all(one.low < one.confidence <= one.high for one in bins)
    gaps = [one.accuracy.n / 300 * abs(one.confidence - one.accuracy.value) for one in bins]
    assert sum(gaps) == pytest.approx(expected_calibration_error(probabilities, labels))


def test_clean_metrics_by_hand() -> None:
    data = grey_levels([0.1, 0.2, 0.9, 0.3], [0, 0, 1, 1], ("dark", "bright", "absent"))

    class ThreeWay(Brightness):
        def forward(self, images: Tensor) -> Tensor:
            return torch.cat([super().forward(images), torch.full((len(images), 1), -100.0)], dim=1)

    clean = clean_metrics(ThreeWay(), data, batch_size=3)
    assert clean.accuracy.value == 0.75
    assert clean.recall == {"dark": 1.0, "bright": 0.5, "absent": None}
    assert clean.n == 4
    assert clean.confusion == [[2, 0, 0], [1, 1, 0], [0, 0, 0]]
    assert clean.precision == {"dark": pytest.approx(2 / 3), "bright": 1.0, "absent": None}
    assert clean.f1 == {"dark": pytest.approx(0.8), "bright": pytest.approx(2 / 3), "absent": None}
    assert clean.macro_f1 == pytest.approx((0.8 + 2 / 3) / 2)


def test_a_class_that_is_never_answered_has_no_precision_and_an_f1_of_zero() -> None:
    scores = class_scores(torch.tensor([0, 0]), torch.tensor([0, 1]), ("a", "b"))
    assert scores["precision"] == {"a": 0.5, "b": None}
    assert scores["f1"] == {"a": pytest.approx(2 / 3), "b": 0.0}


def test_answers_that_are_none_of_the_classes_have_no_scores() -> None:
    assert class_scores(torch.tensor([0, 2]), torch.tensor([0, 1]), ("a", "b")) == {}


def test_predictions_show_a_bar_and_trainings_scores_none(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[tuple[str, float]] = []

    @contextmanager
    def bar(stage: str, total: float) -> Iterator[Advance]:
        done: list[float] = []
        yield lambda amount=1: done.append(amount)
        assert sum(done) == total
        shown.append((stage, total))

    monkeypatch.setattr(clean, "stage_progress", bar)
    data = grey_levels([0.1, 0.9, 0.3], [0, 1, 0])
    logits = predict(Brightness(), data, 2)
    assert logits.argmax(1).tolist() == [0, 1, 0]
    assert shown == [("predictions Brightness", 3)]
    clean_metrics(Brightness(), data, 2)
    assert len(shown) == 1


def test_empty_set_and_foreign_labels_are_refused() -> None:
    with pytest.raises(MetricError, match="no image"):
        clean_metrics(Brightness(), grey_levels([], []))
    with pytest.raises(MetricError, match="2 classes"):
        clean_metrics(Brightness(), grey_levels([0.1], [2]))
