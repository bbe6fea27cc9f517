"""Robust accuracy: the same images and equal starts for every model, a curve that falls."""

import pytest
import torch
from support_models import Brightness, grey_levels
from torch import Tensor

from audit.config import DistanceConfig, EnsembleConfig, RobustnessConfig, TrustConfig
from audit.errors import MetricError
from audit.robustness.balls import attacked_rows
from audit.robustness.evaluate import measured_robustness, robust_accuracy


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


class Counting(Brightness):
    """Counts the images it is asked about."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = 0

    def forward(self, images: Tensor) -> Tensor:
        self.seen += len(images)
        return super().forward(images)


def test_an_image_fooled_within_a_small_ball_is_not_attacked_in_a_larger_one() -> None:
    data = grey_levels([0.45] * 6, [0] * 6)

    def images_seen(eps: tuple[str, ...]) -> int:
        model = Counting()
        robust_accuracy(model, data, RobustnessConfig(n=6, eps=eps, steps=20), seed=0)
        return model.seen

    both, small, door = images_seen(("0.06", "0.3")), images_seen(("0.06",)), 6
    assert both == small + 2 * door  # the larger radius costs the look at the images and at the answer


def test_a_curve_falls_whatever_the_order_of_the_radii() -> None:
    levels = [0.5 - 0.02 * i for i in range(1, 13)]
    config = RobustnessConfig(n=12, eps=("0.2", "0.05", "0.1"), steps=5, attacks=("pgd",))
    robust = robust_accuracy(Brightness(), grey_levels(levels, [0] * 12), config, seed=0).robust
    assert list(robust.pgd) == ["0.05", "0.1", "0.2"]
    values = [attack.robust_accuracy.value for attack in robust.pgd.values()]
    assert values == sorted(values, reverse=True)
    assert values[0] > values[-1]


def test_l2_and_the_ensemble_stand_in_tables_of_their_own_with_their_stages() -> None:
    levels = [0.45, 0.40, 0.30, 0.55, 0.60, 0.70]
    data = grey_levels(levels, [0, 0, 0, 1, 1, 1])
    small = EnsembleConfig(apgd_steps=5, fab_steps=5, square_queries=20)
    config = RobustnessConfig(
        n=6, eps=("0.08", "0.15"), l2_eps=("0.3",), attacks=("pgd", "ensemble"), ensemble=small, batch_size=4
    )
    measured = robust_accuracy(Brightness(), data, config, seed=0)
    robust = measured.robust
    assert robust.ensemble["0.15"].robust_accuracy.value == pytest.approx(2 / 6)
    # The mean of 16 pixels moves by eps / 4 in L2: images nearer than 0.075 to a half fall.
    assert robust.pgd_l2["0.3"].robust_accuracy.value == pytest.approx(4 / 6)
    assert robust.ensemble_l2["0.3"].norm == "L2"
    stages = robust.ensemble["0.15"].stages
    assert (stages[0].attack, stages[0].attacked, stages[0].standing) == ("before", 6, 4)
    assert stages[-1].standing == 2
    assert int(measured.standing["robust.ensemble.0.15"].sum()) == 2


class Quantised(Brightness):
    """A defence that hides its gradient: it decides on four levels of grey."""

    def forward(self, images: Tensor) -> Tensor:
        return super().forward((images * 4).round() / 4)


def test_a_hidden_gradient_marks_every_number_as_untrusted_and_a_sound_model_none() -> None:
    levels = [0.2 + 0.005 * i for i in range(16)]
    data = grey_levels(levels, [0] * 16)
    config = RobustnessConfig(n=16, eps=("0.1", "0.2"), steps=5, trust=TrustConfig(n=16, square_queries=50))
    sound, hidden = (measured_robustness(model(), data, config, 0).robust for model in (Brightness, Quantised))
    assert sound.trusted is True
    assert not any(attack.untrusted for attack in sound.pgd.values())
    assert hidden.trusted is False
    assert all(attack.untrusted for attack in hidden.pgd.values())
    assert hidden.pgd["0.2"].untrusted[0].endswith(".")


def test_trust_is_checked_where_something_stands() -> None:
    data = grey_levels([0.3] * 12, [0] * 12)
    config = RobustnessConfig(n=12, eps=("0.1", "0.4"), steps=10, trust=TrustConfig(n=12, square_queries=20))
    robust = measured_robustness(Brightness(), data, config, 0).robust
    assert [attack.robust_accuracy.value for attack in robust.pgd.values()] == [1, 0]
    found = next(check for check in robust.checks if check.name == "bounds")
    assert found.passed
    compared = next(check for check in robust.checks if check.name == "more-steps")
    assert "12 images" in compared.finding


class Bumpy(Brightness):
    """Decides by brightness, but its score rises and falls on the way there: plain PGD is caught in a trough."""

    def forward(self, images: Tensor) -> Tensor:
        mean = images.mean(dim=(1, 2, 3))
        score = self.sharpness * (mean - 0.5) + 3 * torch.sin(60 * mean)
        return torch.stack([-score, score], dim=1)


def test_pgd_is_marked_at_the_radius_where_the_ensemble_finds_much_more() -> None:
    data = grey_levels([0.3 + 0.002 * i for i in range(40)], [0] * 40)
    config = RobustnessConfig(
        n=40, eps=("0.01", "0.25"), steps=20, step_size=0.002, attacks=("pgd", "ensemble"),
        ensemble=EnsembleConfig(stages=("apgd-ce",), apgd_steps=40), trust=TrustConfig(n=16, square_queries=10),
    )  # fmt: skip
    robust = measured_robustness(Bumpy(), data, config, 0).robust
    a, b = (table["0.25"].robust_accuracy.value for table in (robust.pgd, robust.ensemble))
    assert a - b > 0.3
    assert any("the ensemble fools" in reason for reason in robust.pgd["0.25"].untrusted)
    assert not any("the ensemble fools" in reason for reason in robust.pgd["0.01"].untrusted)
    assert robust.trusted is False
    assert robust.checks[-1].name == "ensemble-beats-pgd"


def test_minimal_distances_are_known_for_every_image() -> None:
    data = grey_levels([0.45, 0.40, 0.30, 0.6], [0, 0, 0, 0])
    config = RobustnessConfig(n=4, eps=("0.1",), steps=10, trust=None, distance=DistanceConfig(n=4))
    (row,) = measured_robustness(Brightness(), data, config, 0).robust.distances
    found = [row.distances_by_image[str(i)] for i in range(4)]
    assert found[3] == 0
    assert found[:3] == pytest.approx([0.05, 0.1, 0.2], rel=0.03)
    assert (row.n, row.standing, row.largest) == (4, 0, pytest.approx(64 / 255))


def test_an_empty_set_is_refused() -> None:
    with pytest.raises(MetricError, match="no image"):
        robust_accuracy(Brightness(), grey_levels([], []), RobustnessConfig(), seed=0)
