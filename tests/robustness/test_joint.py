"""One perturbation against all labels: it stays in its ball, never helps, and heeds weights and what is unknown."""

import pytest
import torch
from torch import Tensor, nn

from audit.robustness.attacks.ball import Norm, distance
from audit.robustness.joint import Aim, Budget, Harmed, joint_attack


class Halves(nn.Module):
    """Two labels: whether the left half is bright, and whether the right half is."""

    def forward(self, images: Tensor) -> Tensor:
        left, right = images.mean(dim=(1, 2)).chunk(2, dim=1)
        return 40 * (torch.stack([left.mean(dim=1), right.mean(dim=1)], dim=1) - 0.5)


IMAGES = (
    torch.tensor([[0.52, 0.52], [0.52, 0.8], [0.48, 0.9]])[:, None, None, :]
    .repeat_interleave(2, dim=3)
    .expand(3, 1, 4, 4)
)
TRUTH = torch.tensor([[1, 1], [1, 1], [0, -1]])


def _attack(eps: float, weights: tuple[float, float] = (1.0, 1.0), norm: Norm = "Linf") -> tuple[Harmed, Aim]:
    aim = Aim(TRUTH, torch.tensor(weights), torch.zeros(2))
    harmed = joint_attack(Halves(), IMAGES, aim, Budget(eps, norm, 10), torch.Generator().manual_seed(0))
    assert (distance(harmed.images, IMAGES, norm) <= eps + 1e-5).all()
    assert harmed.images.min() >= 0
    assert harmed.images.max() <= 1
    assert torch.allclose(harmed.logits, Halves()(harmed.images))
    return harmed, aim


def test_it_makes_every_label_fall_that_is_near_enough() -> None:
    harmed, aim = _attack(0.05)
    assert aim.right(harmed.logits).tolist() == [[False, False], [False, True], [False, True]]
    harmed, aim = _attack(0.01)
    assert aim.right(harmed.logits).all()


def test_it_works_in_l2() -> None:
    harmed, aim = _attack(0.2, norm="L2")
    assert aim.right(harmed.logits)[0].tolist() == [False, False]


def test_a_label_without_weight_is_left_alone() -> None:
    harmed, aim = _attack(0.05, weights=(0.0, 1.0))
    assert aim.right(harmed.logits)[:, 0].tolist() == [True, True, True]
    assert not aim.right(harmed.logits)[0, 1]


def test_a_limit_moves_the_decision() -> None:
    limits = torch.tensor([0.0, 5.0])  # the right half has to be brighter than .625
    aim = Aim(TRUTH, torch.ones(2), limits)
    assert aim.right(Halves()(IMAGES)).tolist() == [[True, False], [True, True], [True, True]]
    assert aim.harm(Halves()(IMAGES)).tolist() == [1, 0, 0]


def test_an_answer_at_the_limit_says_absent() -> None:
    aim = Aim(torch.tensor([[1, 0]]), torch.ones(2), torch.zeros(2))
    assert aim.right(torch.zeros(1, 2)).tolist() == [[False, True]]


@pytest.mark.parametrize("seed", range(3))
def test_no_image_comes_back_less_harmful_than_it_was(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(8, 1, 4, 4, generator=generator)
    aim = Aim(torch.randint(-1, 2, (8, 2), generator=generator), torch.rand(2, generator=generator), torch.zeros(2))
    harmed = joint_attack(Halves(), images, aim, Budget(0.02, "Linf", 3), generator)
    assert (aim.harm(harmed.logits) >= aim.harm(Halves()(images))).all()
