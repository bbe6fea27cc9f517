"""Robust accuracy: the same images and equal starts for every model, a curve that falls."""

import pytest
import torch
from support_models import Brightness, grey_levels
from torch import Tensor

from audit.config import RobustnessConfig
from audit.errors import MetricError
from audit.robustness.evaluate import attacked_rows, robust_accuracy


def test_robust_accuracy_counts_the_images_farther_than_eps() -> None:
    levels = [0.45, 0.40, 0.30, 0.55, 0.60, 0.70]
    data = grey_levels(levels, [0, 0, 0, 1, 1, 1])
    config = RobustnessConfig(n=6, eps=("0.01", "0.08", "0.15", "0.3"), steps=10, batch_size=4)
    robust = robust_accuracy(Brightness(), data, config, seed=0).robust
    assert [robust.pgd[e].robust_accuracy.value for e in config.eps] == pytest.approx([1, 4 / 6, 2 / 6, 0])
    attack = robust.pgd["0.08"]
    assert (attack.eps, attack.steps, attack.restarts, attack.robust_accuracy.n) == (0.08, 10, 1, 6)


def test_the_same_images_are_attacked_for_every_model_and_count() -> None:
    data = grey_levels([i / 50 for i in range(50)], [0] * 50)
    assert attacked_rows(data, 20, seed=4).row_ids == attacked_rows(data, 20, seed=4).row_ids
    assert attacked_rows(data, 20, seed=4).row_ids[:10] == attacked_rows(data, 10, seed=4).row_ids
    assert attacked_rows(data, 20, seed=4).row_ids != attacked_rows(data, 20, seed=5).row_ids
    assert len(attacked_rows(data, 500, seed=4)) == 50


def test_models_are_attacked_from_equal_points_whatever_they_do_before() -> None:
    levels = [0.1 + 0.05 * i for i in range(12)]
    data = grey_levels(levels, [0] * 12)
    config = RobustnessConfig(n=12, eps=("0.01",), steps=2, restarts=3, batch_size=1)

    class Recording(Brightness):
        """Keeps the first noisy image it sees of every grey level: the start of the first attack on it."""

        def __init__(self, threshold: float) -> None:
            super().__init__()
            self.threshold = threshold
            self.starts: dict[int, Tensor] = {}

        def forward(self, images: Tensor) -> Tensor:
            images, given = images.detach(), images
            if float(images.std()) > 1e-4:
                self.starts.setdefault(round(float(images.mean()) / 0.05), images.clone())
            return super().forward(given + 0.5 - self.threshold)

    standing, fooled = Recording(0.99), Recording(0.38)
    values = [
        robust_accuracy(model, data, config, seed=0).robust.pgd["0.01"].robust_accuracy.value
        for model in (standing, fooled)
    ]
    assert values[0] == 1 > values[1] > 0
    assert 0 < len(fooled.starts) < len(standing.starts) == 12
    assert all(torch.equal(start, standing.starts[level]) for level, start in fooled.starts.items())


def test_batches_start_from_different_points() -> None:
    data = grey_levels([0.2] * 4, [0] * 4)
    seen: list[Tensor] = []
    model = Brightness()
    model.register_forward_pre_hook(lambda _, given: seen.append(given[0].detach().clone()))
    robust_accuracy(model, data, RobustnessConfig(n=4, eps=("0.01",), steps=1, batch_size=1), seed=0)
    starts = [images for images in seen if float(images.std()) > 1e-4]
    assert not torch.equal(starts[0], starts[len(starts) // 4])


def test_an_empty_set_is_refused() -> None:
    with pytest.raises(MetricError, match="no image"):
        robust_accuracy(Brightness(), grey_levels([], []), RobustnessConfig(), seed=0)
