"""PGD-AT, TRADES and MART against their formulas written out by hand, and the attack inside them."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from audit.training.classifier.objectives.adversarial import (
    Mart,
    PgdTraining,
    Trades,
    divergence_ascent,
    label_ascent,
    near_start,
    runner_up_loss,
    uniform_start,
)
from audit.training.classifier.objectives.cross_entropy import CrossEntropy


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


def linear(num_classes: int = 3, scale: float = 1.0) -> nn.Module:
    """A softmax model `z = W x + b` on 1x6x6 images, in float64."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, num_classes)).double()
    with torch.no_grad():
        for seed, parameter in enumerate(model.parameters()):
            parameter.copy_(scale * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(seed)))
    return model


def batch(n: int = 8) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.rand(n, 1, 6, 6, generator=generator), torch.randint(3, (n,), generator=generator)


def seeded(seed: int = 2) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_trades_is_clean_loss_plus_beta_times_mean_divergence() -> None:
    model = network().eval()  # evaluation mode: no dropout between the two computations
    images, labels = batch()
    value = Trades(eps=0.1, beta=6.0, steps=3)(model, images, labels, seeded())
    attacked = divergence_ascent(model, images, eps=0.1, steps=3, step_size=0.2 / 3, generator=seeded())
    p, q = model(images).softmax(dim=1), model(attacked).softmax(dim=1)
    by_hand = -p[torch.arange(8), labels].log().mean() + 6 * (p * (p / q).log()).sum(dim=1).mean()
    assert value.item() == pytest.approx(by_hand.item(), rel=1e-4)


def test_gradient_flows_through_the_clean_output_of_the_divergence() -> None:
    model = network().eval()
    images, labels = batch()
    attacked = divergence_ascent(model, images, eps=0.1, steps=2, step_size=0.1, generator=seeded())
    p, q = model(images).log_softmax(dim=1), model(attacked).log_softmax(dim=1)
    by_hand = functional.nll_loss(p, labels) + 6 * (p.exp() * (p - q)).sum(dim=1).mean()
    fixed = functional.nll_loss(p, labels) + 6 * (p.exp().detach() * (p.detach() - q)).sum(dim=1).mean()
    expected, without = (torch.autograd.grad(v, model[0].weight, retain_graph=True)[0] for v in (by_hand, fixed))
    value = Trades(eps=0.1, steps=2)(model, images, labels, seeded())
    gradient = torch.autograd.grad(value, model[0].weight)[0]
    assert torch.allclose(gradient, expected, atol=1e-5)
    assert not torch.allclose(gradient, without, atol=1e-3)


def test_the_attack_of_trades_is_the_loop_of_its_algorithm() -> None:
    model, (images, _) = network().eval(), batch()
    eps, steps, step_size = 0.08, 4, 0.03
    clean = model(images).softmax(dim=1).detach()
    x = (images + 0.001 * torch.randn(images.shape, generator=seeded())).clamp(0, 1)
    for _ in range(steps):
        x.requires_grad_(True)
        divergence = functional.kl_div(model(x).log_softmax(dim=1), clean, reduction="sum")
        x = x.detach() + step_size * torch.autograd.grad(divergence, x)[0].sign()
        x = torch.min(torch.max(x, images - eps), images + eps).clamp(0, 1)
    ours = divergence_ascent(model, images, eps=eps, steps=steps, step_size=step_size, generator=seeded())
    assert torch.allclose(ours, x, atol=1e-6)


def test_pgd_training_is_the_cross_entropy_of_a_projected_ascent_from_a_random_point() -> None:
    model, (images, labels) = network().eval(), batch()
    eps, steps, step_size = 0.08, 4, 0.03
    x = (images + (2 * torch.rand(images.shape, generator=seeded()) - 1) * eps).clamp(0, 1)
    for _ in range(steps):
        x.requires_grad_(True)
        loss = functional.cross_entropy(model(x), labels)
        x = x.detach() + step_size * torch.autograd.grad(loss, x)[0].sign()
        x = torch.min(torch.max(x, images - eps), images + eps).clamp(0, 1)
    clean_loss = CrossEntropy(0.1, torch.tensor([1.0, 2.0, 0.5]))
    objective = PgdTraining(eps=eps, steps=steps, step_size=step_size, clean_loss=clean_loss)
    assert objective(model, images, labels, seeded()).item() == pytest.approx(
        clean_loss.of_logits(model(x), labels).item(), rel=1e-5
    )


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_in_a_linear_model_of_two_classes_the_attack_reaches_the_closed_form_optimum(norm: str) -> None:
    # The loss grows along the difference of the rows alone: the optimum is eps in its steepest direction.
    model, images = linear(num_classes=2), torch.full((4, 1, 6, 6), 0.5, dtype=torch.float64)
    labels, eps = torch.tensor([0, 1, 0, 1]), 0.1
    contrast = (model[1].weight[1] - model[1].weight[0]).detach().reshape(1, 1, 6, 6)
    signed = torch.where(labels[:, None, None, None] == 0, contrast, -contrast)
    best = images + eps * (signed.sign() if norm == "Linf" else signed / contrast.norm())
    start = uniform_start(images, eps, norm, seeded())
    found = label_ascent(model, images, labels, start, eps=eps, steps=80, step_size=eps / 4, norm=norm)
    assert torch.allclose(found, best, atol=1e-6)


@pytest.mark.parametrize("norm", ["Linf", "L2"])
@pytest.mark.parametrize("start", ["near", "uniform"])
def test_ascent_raises_its_loss_inside_the_ball(norm: str, start: str) -> None:
    model, (images, labels) = network().eval(), batch(16)
    eps = 0.05 if norm == "Linf" else 0.3
    starts = {"near": near_start(images, seeded()), "uniform": uniform_start(images, eps, norm, seeded())}
    found = label_ascent(model, images, labels, starts[start], eps=eps, steps=6, step_size=eps / 3, norm=norm)
    offset = (found - images).flatten(1)
    assert (offset.abs().amax(dim=1) if norm == "Linf" else offset.norm(dim=1)).max() <= eps + 1e-6
    assert ((found >= 0) & (found <= 1)).all()
    assert not found.requires_grad
    before, after = (functional.cross_entropy(model(x), labels, reduction="none") for x in (images, found))
    assert (after > before).all()


def test_ascent_raises_the_divergence_beyond_noise() -> None:
    model = network()
    images, _ = batch(16)
    attacked = divergence_ascent(model, images, eps=0.05, steps=5, step_size=0.02, generator=seeded())
    model.eval()
    with torch.no_grad():
        clean = model(images).softmax(dim=1)
        noisy = images + 0.05 * torch.randn(images.shape, generator=seeded(3)).sign()
        divergence = [
            functional.kl_div(model(x).log_softmax(dim=1), clean, reduction="sum")
            for x in (attacked, noisy.clamp(0, 1))
        ]
    assert divergence[0] > 2 * divergence[1]


def test_ascent_leaves_mode_and_batch_statistics_as_they_were() -> None:
    model = network().train()
    running = model[1].running_mean.clone()
    images, labels = batch()
    divergence_ascent(model, images, eps=0.1, steps=2, step_size=0.1, generator=seeded())
    label_ascent(model, images, labels, images, eps=0.1, steps=2, step_size=0.1)
    assert all(module.training for module in model.modules())
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert torch.equal(model[1].running_mean, running)


@pytest.mark.parametrize("class_weights", [None, (1.0, 2.0, 0.5)])
def test_mart_on_a_linear_softmax_model_is_its_formula(class_weights: tuple[float, ...] | None) -> None:
    model, (images, labels) = linear(scale=0.5), batch()
    images = images.double()
    weights = None if class_weights is None else torch.tensor(class_weights).double()
    mart = Mart(eps=0.1, steps=3, weight=5.0, clean_loss=CrossEntropy(0.0, weights))
    value = mart(model, images, labels, seeded())
    gradient = torch.autograd.grad(value, model[1].weight)[0]

    w, b = model[1].weight.detach().requires_grad_(True), model[1].bias.detach()
    start = near_start(images, seeded())
    attacked = label_ascent(model, images, labels, start, eps=0.1, steps=3, step_size=0.2 / 3)
    rows = torch.arange(len(labels))

    def probabilities(x: Tensor) -> Tensor:
        exponential = (x.flatten(1) @ w.T + b).exp()
        return exponential / exponential.sum(dim=1, keepdim=True)

    p, q = probabilities(images), probabilities(attacked)
    wrong = q.clone()
    wrong[rows, labels] = 0
    boosted = -q[rows, labels].log() - (1 - wrong.max(dim=1).values).log()
    each = torch.ones(8, dtype=torch.float64) if weights is None else weights[labels]
    doubt = 5.0 * ((p * (p / q).log()).sum(dim=1) * (1 - p[rows, labels])).mean()
    by_hand = (each * boosted).sum() / each.sum() + doubt
    assert value.item() == pytest.approx(by_hand.item(), rel=1e-9)
    assert torch.allclose(gradient, torch.autograd.grad(by_hand, w)[0], rtol=1e-8, atol=1e-10)


def test_mart_of_two_classes_counts_the_cross_entropy_twice() -> None:
    logits, labels = torch.randn(6, 2, generator=seeded()), torch.tensor([0, 1, 0, 1, 1, 0])
    assert torch.allclose(
        runner_up_loss(logits, labels), functional.cross_entropy(logits, labels, reduction="none"), atol=1e-6
    )


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 12), st.floats(0.1, 300), st.integers(0, 2**16))
def test_runner_up_loss_is_finite_and_exact(num_classes: int, scale: float, seed: int) -> None:
    generator = seeded(seed)
    logits = scale * torch.randn(5, num_classes, generator=generator)
    labels = torch.randint(num_classes, (5,), generator=generator)
    exact = logits.double().log_softmax(dim=1)
    others = exact.scatter(1, labels[:, None], -torch.inf)
    kept = exact.scatter(1, others.argmax(dim=1, keepdim=True), -torch.inf)
    value = runner_up_loss(logits.requires_grad_(True), labels)
    assert torch.allclose(value.double(), -torch.logsumexp(kept, dim=1), rtol=1e-4, atol=1e-4)
    assert torch.isfinite(torch.autograd.grad(value.sum(), logits)[0]).all()
