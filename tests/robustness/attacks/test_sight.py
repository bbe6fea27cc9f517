"""An attack that never had a gradient says so itself, whatever checks are switched off; one that could see does not."""

from collections.abc import Callable

import pytest
import torch
from support_models import Brightness, grey_levels
from torch import Tensor, nn

from audit.config import DistanceConfig, EnsembleConfig, RobustnessConfig, TrustConfig
from audit.results import Robust
from audit.robustness.attacks.blind import Account, sight_check, without_gradient
from audit.robustness.attacks.sight import Sight
from audit.robustness.evaluate import measured_robustness
from audit.robustness.trust.case import chance_limit
from audit.robustness.trust.verdict import doubt_all, telling_ball


class Blinded(Brightness):
    """Brightness behind something that lets no gradient through: `before` is done to the images."""

    def __init__(self, before: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.before = before

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(self.before(images))


class FrozenBackbone(nn.Module):
    """A backbone under `no_grad` with a trainable head, as a linear probe is written."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(1, 2)
        with torch.no_grad():
            self.head.weight.copy_(torch.tensor([[-40.0], [40.0]]))
            self.head.bias.copy_(torch.tensor([20.0, -20.0]))

    def forward(self, images: Tensor) -> Tensor:
        with torch.no_grad():
            features = images.mean(dim=(1, 2, 3))[:, None]
        return self.head(features)


class Inference(FrozenBackbone):
    def forward(self, images: Tensor) -> Tensor:
        with torch.inference_mode():
            features = images.mean(dim=(1, 2, 3))[:, None]
        return self.head(features.clone())


class OnlyZeros(Brightness):
    """Part of the gradient exists, and it is zero everywhere: the skip is switched off."""

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images.detach()) + 0 * images.sum(dim=(1, 2, 3))[:, None]


class Constant(Brightness):
    def forward(self, images: Tensor) -> Tensor:
        return torch.tensor([1.0, 0.0]).expand(len(images), 2)


BLIND: dict[str, Callable[[], nn.Module]] = {
    "no_grad": FrozenBackbone,
    "inference mode": Inference,
    "detached": lambda: Blinded(lambda images: images.detach()),
    "rounded": lambda: Blinded(lambda images: (images * 255).round() / 255),
    "only zeros": OnlyZeros,
    "constant": Constant,
}
SETTINGS: dict[str, dict] = {
    "no checks": {"eps": ("0.1",), "trust": None},
    "L2 only": {"eps": (), "l2_eps": ("0.4",), "trust": None},
    "few images": {"eps": ("0.1",), "l2_eps": ("0.4",), "n": 8},
    "very few images": {"eps": ("0.1",), "n": 3},
}
WHITE_BOX = EnsembleConfig(stages=("apgd-ce", "apgd-t", "fab-t"), apgd_steps=3, fab_steps=3)


def measured(model: nn.Module, n: int = 12, **settings: object) -> Robust:
    data = grey_levels([0.25 + 0.01 * i for i in range(12)], [0] * 12)
    config = RobustnessConfig(
        **{
            "n": n, "steps": 3, "attacks": ("pgd", "ensemble"), "ensemble": WHITE_BOX,
            "distance": DistanceConfig(n=n, bisections=2), "trust": TrustConfig(n=8, square_queries=10), **settings,
        }
    )  # fmt: skip
    return measured_robustness(model, data, config, 0).robust


def numbers(robust: Robust) -> list:
    tables = (robust.pgd, robust.pgd_l2, robust.ensemble, robust.ensemble_l2)
    return [*(attack for table in tables for attack in table.values()), *robust.distances]


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("name", BLIND)
def test_every_number_of_a_blind_attack_is_untrusted_whatever_the_settings(name: str, settings: str) -> None:
    robust = measured(BLIND[name](), **SETTINGS[settings])
    assert len(numbers(robust)) >= 3
    for number in numbers(robust):
        assert any("zero or absent at every step" in reason for reason in number.untrusted)
    assert robust.trusted is False
    check = next(row for row in robust.checks if row.name == "blind-attack")
    assert check.passed is False
    assert check.value == 1
    assert all(attack.without_gradient == attack.robust_accuracy.n for attack in robust.pgd.values())


@pytest.mark.parametrize("settings", SETTINGS)
def test_a_sound_model_is_not_called_blind(settings: str) -> None:
    robust = measured(Brightness(), **SETTINGS[settings])
    assert not any(number.untrusted for number in numbers(robust))
    check = next(row for row in robust.checks if row.name == "blind-attack")
    assert check.passed is True
    assert check.value == 0
    assert robust.trusted is (True if settings == "few images" else None)
    for number in numbers(robust):
        assert bool(number.unchecked) is (settings != "few images")


@pytest.mark.parametrize("name", BLIND)
def test_a_model_without_a_gradient_is_told_from_one_that_has_one(name: str) -> None:
    images = torch.rand(5, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    assert "no gradient with respect to any of 5 images" in str(without_gradient(BLIND[name](), images))
    assert without_gradient(Brightness(), images) is None
    sharp = Brightness()
    sharp.sharpness.data *= 1e4
    assert without_gradient(sharp, images) is None
    assert without_gradient(Brightness(), images[:0]) is None


def test_square_needs_no_gradient_and_is_not_judged() -> None:
    square = EnsembleConfig(stages=("square",), square_queries=20)
    robust = measured(FrozenBackbone(), attacks=("ensemble",), ensemble=square, distance=None, trust=None)
    assert robust.ensemble["8/255"].untrusted == []
    assert robust.ensemble["8/255"].without_gradient is None
    assert robust.checks == []


def test_one_attack_may_be_blind_where_another_sees() -> None:
    """Cross-entropy underflows on margins above a hundred; the margin itself does not."""
    sharp = Brightness()
    sharp.sharpness.data *= 100
    robust = measured(sharp, eps=("0.02",), trust=None)
    assert robust.pgd["0.02"].without_gradient == 12
    assert robust.pgd["0.02"].untrusted
    assert robust.ensemble["0.02"].without_gradient == 0
    assert robust.ensemble["0.02"].untrusted == []
    assert robust.distances[0].untrusted == []
    assert robust.ensemble["0.02"].unchecked  # the checks of PGD are no checks of it
    check = next(row for row in robust.checks if row.name == "blind-attack")
    assert check.attacks == ("pgd",)


def test_a_few_images_without_gradient_are_tolerated_and_all_of_them_never() -> None:
    for n in (1, 2, 3, 8, 64):
        assert Account("pgd", "PGD", n, n).failed
        assert not Account("pgd", "PGD", 0, n).failed
    assert not Account("pgd", "PGD", 1, 64).failed
    assert not Account("pgd", "PGD", int(chance_limit(64) * 64), 64).failed
    assert Account("pgd", "PGD", int(chance_limit(64) * 64) + 1, 64).failed
    check, reasons = sight_check({"a": Account("pgd", "PGD", 0, 0)})
    assert check.passed is None
    assert not reasons
    assert sight_check({})[0].passed is None


def test_the_account_counts_an_image_named_twice_and_what_underflows_in_l2() -> None:
    sight = Sight.of(3, torch.device("cpu"))
    gradient = torch.zeros(3, 1, 2, 2)
    gradient[1] = 1e-30
    sight.note(torch.tensor([2, 2, 0]), gradient, "Linf")
    assert sight.taken.tolist() == [1, 0, 2]
    assert sight.blind.tolist() == [True, False, False]
    flat = Sight.of(3, torch.device("cpu"))
    flat.note(torch.tensor([2, 2, 0]), gradient, "L2")
    assert flat.blind.tolist() == [True, False, True]


def test_an_image_seen_at_any_step_or_stage_is_not_blind() -> None:
    class Plateau(Brightness):
        """Flat where it is darkest; a random start may begin on the slope."""

        def forward(self, images: Tensor) -> Tensor:
            return super().forward(images.clamp_min(0.3))

    robust = measured(Plateau(), n=12, eps=("0.02", "0.3"), trust=None, distance=None, attacks=("pgd",))
    assert 0 < robust.pgd["0.02"].without_gradient < 12
    assert robust.pgd["0.02"].untrusted
    assert robust.pgd["0.3"].without_gradient == 0


def test_checks_are_made_in_l2_where_no_linf_radius_is_given() -> None:
    config = RobustnessConfig(eps=(), l2_eps=("0.1", "0.4"))
    standing = {"robust.pgd_l2.0.1": torch.ones(9, dtype=torch.bool), "robust.pgd_l2.0.4": torch.zeros(9)}
    assert telling_ball(config, standing) == ("L2", 0.1)
    sound = measured(Brightness(), eps=(), l2_eps=("0.1", "0.4"), distance=None)
    assert sound.trusted is True
    assert {row.norm for row in sound.checks if row.eps is not None} == {"L2"}
    hidden = measured(BLIND["rounded"](), eps=(), l2_eps=("0.4",), distance=None)
    failed = {row.name for row in hidden.checks if row.passed is False}
    assert {"zero-gradients", "large-eps", "blind-attack"} <= failed


def test_with_few_images_the_checks_are_made_where_half_of_them_stand() -> None:
    config = RobustnessConfig(eps=("0.1", "0.4"))
    few = {"robust.pgd.0.1": torch.arange(8) < 5, "robust.pgd.0.4": torch.zeros(8, dtype=torch.bool)}
    assert telling_ball(config, few) == ("Linf", 0.1)
    many = {"robust.pgd.0.1": torch.arange(64) < 7, "robust.pgd.0.4": torch.zeros(64, dtype=torch.bool)}
    assert telling_ball(config, many) == ("Linf", 0.4)


def test_seven_right_of_eight_are_enough_for_the_checks() -> None:
    data = grey_levels([0.25 + 0.01 * i for i in range(7)] + [0.6], [0] * 8)
    config = RobustnessConfig(n=8, steps=5, eps=("0.1",), trust=TrustConfig(n=8, square_queries=20))
    assert measured_robustness(Brightness(), data, config, 0).robust.trusted is True
    hidden = measured_robustness(BLIND["rounded"](), data, config, 0).robust
    assert {"zero-gradients", "large-eps"} <= {check.name for check in hidden.checks if check.passed is False}


def test_what_became_of_every_image_is_kept_by_its_id() -> None:
    data = grey_levels([0.45, 0.30, 0.10, 0.7], [0, 0, 0, 0])
    config = RobustnessConfig(
        n=4, steps=5, eps=("0.1", "0.25"), attacks=("pgd", "ensemble"), ensemble=WHITE_BOX, trust=None, batch_size=3
    )
    robust = measured_robustness(Brightness(), data, config, 0).robust
    assert robust.pgd["0.1"].outcomes == {"0": "pgd", "1": None, "2": None, "3": "before"}
    assert robust.pgd["0.25"].outcomes == {"0": "smaller", "1": "pgd", "2": None, "3": "before"}
    assert robust.ensemble["0.1"].outcomes == {"0": "apgd-ce", "1": None, "2": None, "3": "before"}
    assert robust.ensemble["0.25"].outcomes == {"0": "smaller", "1": "apgd-ce", "2": None, "3": "before"}
    for attack in (*robust.pgd.values(), *robust.ensemble.values()):
        stands = [place for place in attack.outcomes.values() if place is None]
        assert len(stands) == round(attack.robust_accuracy.value * 4)


def test_a_doubt_about_the_model_stands_beside_every_number() -> None:
    robust = measured(Brightness(), **SETTINGS["few images"])
    check = robust.checks[0].model_copy(update={"name": "whole", "passed": False, "finding": "All of it."})
    doubt_all(robust, [check])
    assert robust.trusted is False
    assert robust.checks[0] == check
    assert all(number.untrusted[0] == "All of it." for number in numbers(robust))
    other = measured(Brightness(), **SETTINGS["few images"])
    doubt_all(other, [check.model_copy(update={"passed": None})])
    assert other.trusted is None
    assert all(number.unchecked == ["All of it."] for number in numbers(other))
