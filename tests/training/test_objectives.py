"""TRADES against the formula written out by hand; the attack inside it; what may and may not change."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from audit.training.objectives import CrossEntropy, Trades, divergence_ascent


def network(seed: int = 0) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(1, 6, 3, padding=1),
            nn.BatchNorm2d(6),
            nn.GELU(),
            nn.Flatten(),
            nn.Dropout(0.5),
            nn.Linear(216, 3),
        )


def batch(n: int = 8) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.rand(n, 1, 6, 6, generator=generator), torch.randint(3, (n,), generator=generator)


def test_trades_is_clean_loss_plus_beta_times_mean_divergence() -> None:
    model = network().eval()  # evaluation mode: no dropout between the two computations
    images, labels = batch()
    objective = Trades(eps=0.1, beta=6.0, steps=3)
    value = objective(model, images, labels, torch.Generator().manual_seed(2))
    attacked = divergence_ascent(
        model, images, eps=0.1, steps=3, step_size=0.2 / 3, generator=torch.Generator().manual_seed(2)
    )
    p, q = model(images).softmax(dim=1), model(attacked).softmax(dim=1)
    by_hand = -p[torch.arange(8), labels].log().mean() + 6 * (p * (p / q).log()).sum(dim=1).mean()
    assert value.item() == pytest.approx(by_hand.item(), rel=1e-4)


def test_gradient_flows_through_the_clean_output_of_the_divergence() -> None:
    model = network().eval()
    images, labels = batch()
    generator = torch.Generator().manual_seed(2)
    attacked = divergence_ascent(model, images, eps=0.1, steps=2, step_size=0.1, generator=generator)
    p, q = model(images).log_softmax(dim=1), model(attacked).log_softmax(dim=1)
    by_hand = functional.nll_loss(p, labels) + 6 * (p.exp() * (p - q)).sum(dim=1).mean()
    expected = torch.autograd.grad(by_hand, model[0].weight)[0]
    value = Trades(eps=0.1, steps=2)(model, images, labels, torch.Generator().manual_seed(2))
    assert torch.allclose(torch.autograd.grad(value, model[0].weight)[0], expected, atol=1e-5)


def test_ascent_raises_the_divergence_inside_the_ball() -> None:
    model = network()
    images, _ = batch(16)
    attacked = divergence_ascent(model, images, eps=0.05, steps=5, step_size=0.02, generator=torch.Generator())
    assert ((attacked - images).abs() <= 0.05 + 1e-6).all()
    assert ((attacked >= 0) & (attacked <= 1)).all()
    assert not attacked.requires_grad
    model.eval()
    with torch.no_grad():
        clean = model(images).softmax(dim=1)
        noisy = images + 0.05 * torch.randn(images.shape, generator=torch.Generator().manual_seed(3)).sign()
        divergence = [
            functional.kl_div(model(x.clamp(0, 1)).log_softmax(dim=1), clean, reduction="sum")
            for x in (attacked, noisy)
        ]
    assert divergence[0] > 2 * divergence[1]


def test_ascent_leaves_mode_and_batch_statistics_as_they_were() -> None:
    model = network().train()
    running = model[1].running_mean.clone()
    divergence_ascent(model, batch()[0], eps=0.1, steps=2, step_size=0.1, generator=torch.Generator())
    assert all(module.training for module in model.modules())
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert torch.equal(model[1].running_mean, running)


def test_the_radius_grows_over_the_ramp() -> None:
    model, (images, labels) = network().eval(), batch()
    objective = Trades(eps=0.1, steps=2, ramp=0.5)

    def value(progress: float) -> float:
        return objective(model, images, labels, torch.Generator().manual_seed(0), progress).item()

    at_once = Trades(eps=0.1, steps=2)(model, images, labels, torch.Generator().manual_seed(0), 0.0).item()
    assert value(0.0) < value(0.25) < value(0.5) == value(1.0) == at_once


def test_cross_entropy_takes_weights_and_smoothing() -> None:
    model, (images, labels) = network().eval(), batch()
    weights = torch.tensor([1.0, 2.0, 0.5])
    value = CrossEntropy(0.1, weights)(model, images, labels, torch.Generator())
    expected = functional.cross_entropy(model(images), labels, weight=weights, label_smoothing=0.1)
    assert torch.equal(value, expected)
