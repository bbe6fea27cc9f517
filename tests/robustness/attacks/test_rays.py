"""RayS: the distance of a linear classifier is known, decisions are all that it sees, and the budget is kept."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from audit.robustness.attacks.rays import TOLERANCE, rays_attack


class Linear(nn.Module):
    """Two classes by the sign of w x + b; counts the images it is asked about, and gives nothing but decisions."""

    def __init__(self, weight: Tensor, bias: float) -> None:
        super().__init__()
        self.weight, self.bias = weight, bias
        self.asked = 0

    def forward(self, images: Tensor) -> Tensor:
        self.asked += len(images)
        z = images.flatten(1) @ self.weight + self.bias
        return nn.functional.one_hot((z > 0).long(), 2).float()


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_it_finds_the_distance_of_a_linear_classifier(seed: int) -> None:
    rng = torch.Generator().manual_seed(seed)
    weight = torch.randn(16, generator=rng).sign() * (0.5 + torch.rand(16, generator=rng))
    images = 0.4 + 0.2 * torch.rand(5, 1, 4, 4, generator=rng)
    model = Linear(weight, -float((0.5 * weight).sum()))
    labels = model(images).argmax(1)
    # The nearest point of the other side in L-inf, far from the bounds of [0, 1].
    expected = (images.flatten(1) @ model.weight + model.bias).abs() / weight.abs().sum()
    found = rays_attack(model, images, labels, eps=0.4, queries=2000)
    reached = (found - images).flatten(1).abs().amax(1)
    # Every flip that shortens the way by more than the tolerance is taken; each of 16 may leave one.
    assert bool((reached >= expected - 1e-6).all())
    assert bool((reached <= expected + 16 * TOLERANCE).all())
    assert bool((model(found).argmax(1) != labels).all())


def test_what_cannot_be_fooled_comes_back_and_the_budget_is_kept() -> None:
    images = torch.rand(3, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    model = Linear(torch.zeros(16), 1.0)
    labels = torch.tensor([1, 1, 0])
    found = rays_attack(model, images, labels, eps=1.0, queries=50)
    assert torch.equal(found, images)
    # The first look at all three, and 50 at each of the two that are right.
    assert model.asked == 3 + 2 * 50


@pytest.mark.parametrize("eps", [0.01, 0.3])
def test_images_stay_in_the_ball(eps: float) -> None:
    images = torch.rand(4, 3, 5, 5, generator=torch.Generator().manual_seed(0))
    model = Linear(torch.randn(75, generator=torch.Generator().manual_seed(1)), 0.0)
    found = rays_attack(model, images, model(images).argmax(1), eps=eps, queries=100)
    assert float((found - images).abs().max()) <= eps + 1e-6
    assert 0 <= float(found.min()) <= float(found.max()) <= 1
