"""AWP-TRADES: the perturbation by its formula, and the gradient at w + v against a model moved there by hand."""

import copy

import pytest
import torch
from torch import Tensor, nn

from audit.training.classifier.objectives.adversarial import Trades
from audit.training.classifier.objectives.awp import AwpTrades, weight_perturbation


def network(dropout: float = 0.0) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(1, 6, 3, padding=1),
            nn.BatchNorm2d(6),
            nn.GELU(),
            nn.Flatten(),
            nn.Dropout(dropout),
            nn.Linear(216, 3),
        )


def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.rand(8, 1, 6, 6, generator=generator), torch.randint(3, (8,), generator=generator)


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(2)


def perturbation(model: nn.Module, objective: Trades, images: Tensor, attacked: Tensor, labels: Tensor, gamma: float):
    return weight_perturbation(
        model, lambda forward: objective.outer(forward, images, attacked, labels), gamma, images.device
    )


def test_on_a_linear_softmax_model_value_and_gradient_are_those_of_the_formula() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 3)).double()
    with torch.no_grad():
        for seed, parameter in enumerate(model.parameters()):
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(seed)))
    images, labels = batch()
    images = images.double()
    objective = AwpTrades(eps=0.1, steps=3, beta=4.0, gamma=0.05, warmup=0.0)
    value = objective(model, images, labels, seeded())
    gradients = torch.autograd.grad(value, list(model.parameters()))

    attacked = objective.attack(model, images, seeded(), 1.0)
    rows = torch.arange(8)

    def by_hand(w: Tensor, b: Tensor) -> Tensor:
        p, q = ((x.flatten(1) @ w.T + b).softmax(dim=1) for x in (images, attacked))
        return -p[rows, labels].log().mean() + 4.0 * (p * (p / q).log()).sum(dim=1).mean()

    w, b = (p.detach().clone().requires_grad_(True) for p in model.parameters())
    (g,) = torch.autograd.grad(by_hand(w, b), w)
    moved = (w + 0.05 * w.norm() / g.norm() * g).detach().requires_grad_(True)
    expected = by_hand(moved, b)
    assert value.item() == pytest.approx(expected.item(), rel=1e-9)
    for ours, theirs in zip(gradients, torch.autograd.grad(expected, (moved, b)), strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("training", [True, False])
def test_gradient_equals_that_of_a_copy_moved_by_hand(training: bool) -> None:
    model, (images, labels) = network().train(training), batch()
    objective = AwpTrades(eps=0.1, steps=2, gamma=0.05, warmup=0.0)
    attacked = objective.attack(model, images, seeded(), 1.0)
    change = perturbation(model, objective, images, attacked, labels, 0.05)
    by_hand = copy.deepcopy(model)
    with torch.no_grad():
        for name, parameter in by_hand.named_parameters():
            parameter += change.get(name, torch.zeros(()))
    Trades(eps=0.1).outer(by_hand, images, attacked, labels).backward()
    objective(model, images, labels, seeded()).backward()
    for ours, theirs in zip(model.parameters(), by_hand.parameters(), strict=True):
        assert torch.allclose(ours.grad, theirs.grad, rtol=1e-4, atol=1e-6)
    assert torch.allclose(model[1].running_mean, by_hand[1].running_mean, atol=1e-6)


def test_perturbation_is_relative_per_layer_raises_the_loss_and_spares_vectors() -> None:
    model, (images, labels) = network().eval(), batch()
    objective = Trades(eps=0.1, steps=2)
    attacked = objective.attack(model, images, seeded(), 1.0)
    change = perturbation(model, objective, images, attacked, labels, 0.02)
    weights = dict(model.named_parameters())
    assert set(change) == {"0.weight", "5.weight"}
    for name, moved in change.items():
        assert moved.norm().item() == pytest.approx(0.02 * weights[name].norm().item(), rel=1e-4)
        assert not moved.requires_grad
    before = objective.outer(model, images, attacked, labels)
    with torch.no_grad():
        for name, moved in change.items():
            weights[name] += moved
    assert objective.outer(model, images, attacked, labels) > before


def test_frozen_weights_and_weights_without_a_gradient_stay() -> None:
    model, (images, labels) = network().eval(), batch()
    model[0].weight.requires_grad_(False)
    model.register_parameter("unused", nn.Parameter(torch.ones(2, 2)))
    objective = Trades(eps=0.1, steps=1)
    change = perturbation(model, objective, images, images.flip(3), labels, 0.1)
    assert set(change) == {"5.weight"}
    with torch.no_grad():
        model[5].weight.zero_()
    flat = perturbation(model, objective, images, images, labels, 0.1)
    assert torch.equal(flat["5.weight"], torch.zeros_like(model[5].weight)), "a weight of length 0 moves by 0"


def test_it_is_trades_during_the_warm_up_and_more_than_trades_after() -> None:
    model, (images, labels) = network().eval(), batch()
    objective = AwpTrades(eps=0.1, steps=2, gamma=0.05, warmup=0.5)
    trades = Trades(eps=0.1, steps=2)(model, images, labels, seeded()).item()
    assert objective(model, images, labels, seeded(), 0.49).item() == trades
    assert objective(model, images, labels, seeded(), 0.5).item() > trades


def test_the_ascent_meets_the_dropout_of_the_pass_after_it() -> None:
    model, (images, labels) = network(dropout=0.5).train(), batch()
    seen: list[Tensor] = []
    model[4].register_forward_hook(lambda module, inputs, output: seen.append(output == 0))
    with torch.random.fork_rng(devices=[]):
        AwpTrades(eps=0.1, steps=1, warmup=0.0)(model, images, labels, seeded())
    # Two passes of the attack in evaluation mode (clean, one step), two of the ascent, two of the loss.
    assert len(seen) == 6
    assert torch.equal(seen[2], seen[4])
    assert not torch.equal(seen[2], seen[3])
