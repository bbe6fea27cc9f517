"""Transfer: what one model's adversarial images do to the others, against what can be told by hand."""

import pytest
import torch
from support_models import Brightness, grey_levels
from torch import Tensor, nn

from audit.config import RobustnessConfig
from audit.errors import ConfigError
from audit.robustness.attacks.registry import check_attacks, shown_attack
from audit.robustness.balls import Ball, attacked_rows
from audit.robustness.evaluate import robust_accuracy
from audit.robustness.panel import Panel
from audit.robustness.transfer import Onlookers, Shown, transfer_attack

LEVELS, LABELS = [0.45, 0.40, 0.30, 0.55, 0.60, 0.70], [0, 0, 0, 1, 1, 1]
CONFIG = RobustnessConfig(n=6, attacks=("pgd", "transfer"), eps=("0.08", "0.15"), steps=10, batch_size=4, trust=None)


class Deaf(nn.Module):
    """Answers class 0 to every image."""

    def forward(self, images: Tensor) -> Tensor:
        return torch.tensor([[1.0, 0.0]]).expand(len(images), 2)


class Broken(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        raise RuntimeError("no such image")


def seen(**models: nn.Module) -> Onlookers:
    onlookers = Onlookers(Panel(models), 6)
    robust_accuracy(Brightness(), grey_levels(LEVELS, LABELS), CONFIG, 0, witness=onlookers.see)
    return onlookers


def test_the_others_answer_to_the_images_that_the_attack_left() -> None:
    order = attacked_rows(grey_levels(LEVELS, LABELS), 6, 0)
    found = seen(itself=Brightness(), deaf=Deaf())
    assert {(name, ball.radius) for name, ball in found.answers} == {
        ("itself", "0.08"), ("itself", "0.15"), ("deaf", "0.08"), ("deaf", "0.15"),
    }  # fmt: skip
    ball = Ball("pgd", "Linf", "0.15")
    # What 0.08 fools is shown as it was fooled there, and 0.3 and 0.7 as they are after an attack in vain.
    fooled = found.answers["itself", ball] != order.row_labels
    assert {order.row_ids[i] for i in fooled.nonzero().flatten().tolist()} == {"0", "1", "3", "4"}
    assert found.answers["deaf", ball].tolist() == [0] * 6


def test_a_model_that_fails_is_asked_no_more_and_costs_the_others_nothing() -> None:
    found = seen(broken=Broken(), itself=Brightness())
    assert "no such image" in str(found.panel.failed["broken"])
    assert {name for name, _ in found.answers} == {"itself"}


def test_all_sources_together_are_an_attack_whose_accuracy_falls() -> None:
    chosen = grey_levels(LEVELS, LABELS)
    clean = torch.tensor([0, 0, 0, 1, 1, 0])  # the last one is misclassified as it is

    def shown(source: str, radius: str, answers: list[int], fooled: list[bool]) -> Shown:
        return Shown(source, Ball("pgd", "Linf", radius), torch.tensor(answers), torch.tensor(fooled))

    found = transfer_attack(
        chosen,
        clean,
        [
            shown("a", "0.15", [1, 0, 0, 1, 1, 1], [True, True, False, True, False, False]),
            shown("a", "0.08", [0, 0, 0, 0, 1, 1], [True, False, False, True, False, False]),
            shown("b", "0.15", [0, 1, 0, 1, 1, 0], [False, True, False, False, False, True]),
        ],
    )
    small, large = (found.attacks[Ball("transfer", "Linf", radius)] for radius in ("0.08", "0.15"))
    assert (small.robust_accuracy.value, large.robust_accuracy.value) == (pytest.approx(4 / 6), pytest.approx(2 / 6))
    assert small.outcomes == {"0": None, "1": None, "2": None, "3": "transfer", "4": None, "5": "before"}
    assert large.outcomes == {"0": "transfer", "1": "transfer", "2": None, "3": "smaller", "4": None, "5": "before"}
    assert large.confusion == [[1, 2], [2, 1]]
    assert found.standing["robust.attacks.transfer.0.15"].tolist() == [False, False, True, False, True, False]
    rows = {(row.source, row.metric): row for row in found.rows}
    # Image 5, which this model misclassifies anyway, is not asked; of a's three at 0.15 only the first fools it.
    assert rows["a", "robust.pgd.0.15"].fooled.value == pytest.approx(1 / 3)
    assert rows["a", "robust.pgd.0.15"].accuracy.value == pytest.approx(4 / 6)
    assert (rows["b", "robust.pgd.0.15"].fooled.value, rows["b", "robust.pgd.0.15"].fooled.n) == (1.0, 1)


def test_images_of_pgd_are_shown_or_else_of_the_first_attack_with_a_radius() -> None:
    assert shown_attack(RobustnessConfig(attacks=("square", "pgd", "transfer"))) == "pgd"
    assert shown_attack(RobustnessConfig(attacks=("transfer", "rotation-translation", "square"))) == "square"
    with pytest.raises(ConfigError, match="name one with a radius"):
        check_attacks(RobustnessConfig(attacks=("transfer", "rotation-translation")))
