"""Stein particles: the update by its equation, both limits of the kernel, one particle, and the loss around them."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from audit.training.classifier.objectives.adversarial import (
    InnerProblem,
    PgdTraining,
    Trades,
    divergence_ascent,
    label_ascent,
    uniform_start,
)
from audit.training.classifier.objectives.ald import (
    AdversarialLocalDistribution,
    Bandwidth,
    Base,
    adversarial_particles,
    kernel_variance,
    stein_direction,
)
from audit.training.classifier.objectives.cross_entropy import CrossEntropy


def network() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(1, 6, 3, padding=1), nn.BatchNorm2d(6), nn.GELU(), nn.Flatten(), nn.Linear(216, 3)
        ).eval()


def batch(n: int = 6) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.rand(n, 1, 6, 6, generator=generator), torch.randint(3, (n,), generator=generator)


def seeded(seed: int = 2) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def particles(n: int, base: Base, bandwidth: Bandwidth = "median", norm: str = "Linf", eps: float = 0.1) -> Tensor:
    images, labels = batch()
    problem = InnerProblem(eps=eps, steps=4, norm=norm)
    return adversarial_particles(
        network(), images, labels,
        particles=n, problem=problem, base=base, bandwidth=bandwidth, generator=seeded(),
    )  # fmt: skip


def drawn(seed: int, shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    generator = seeded(seed)
    return (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2))


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 5), st.floats(0.3, 5.0), st.integers(0, 2**16))
def test_update_is_the_kernel_and_its_gradient_summed_over_particles(n: int, sigma: float, seed: int) -> None:
    gradients, points = drawn(seed, (2, n, 7))
    found = stein_direction(gradients, points, sigma)
    for image in range(2):
        for i in range(n):
            expected = torch.zeros(7, dtype=torch.float64)
            for j in range(n):
                x = points[image, j].clone().requires_grad_(True)
                kernel = torch.exp(-((x - points[image, i]) ** 2).sum() / (2 * sigma**2))
                expected += kernel.detach() * gradients[image, j] + torch.autograd.grad(kernel, x)[0]
            assert torch.allclose(found[image, i], expected / n, atol=1e-9)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 6), st.integers(0, 2**16))
def test_wide_kernel_gives_every_particle_the_average_gradient(n: int, seed: int) -> None:
    gradients, points = drawn(seed, (3, n, 5))
    found = stein_direction(gradients, points, 1e6)
    assert torch.allclose(found, gradients.mean(dim=1, keepdim=True).expand_as(gradients), atol=1e-9)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 6), st.integers(0, 2**16), st.sampled_from([torch.float32, torch.float64]))
def test_narrow_kernel_gives_each_particle_its_own_gradient_divided_by_their_number(
    n: int, seed: int, dtype: torch.dtype
) -> None:
    gradients, points = (part.to(dtype) for part in drawn(seed, (3, n, 5)))
    for sigma in (1e-5, 1e-30):
        assert torch.allclose(stein_direction(gradients, points, sigma), gradients / n, rtol=1e-5, atol=0)


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_narrow_kernel_is_independent_pgd(norm: str) -> None:
    images, labels = batch()
    eps = 0.1 if norm == "Linf" else 0.5
    repeated = images.repeat(3, 1, 1, 1)
    start = uniform_start(repeated, eps, norm, seeded())
    alone = label_ascent(
        network(), repeated, labels.repeat(3), start, eps=eps, steps=4, step_size=2 * eps / 4, norm=norm
    )
    assert torch.allclose(particles(3, "pgd", 1e-6, norm, eps).flatten(0, 1), alone, atol=1e-6)


def test_wide_kernel_moves_all_particles_alike() -> None:
    # From one start and without the ball's border, steps of equal direction keep the particles' offsets.
    images, labels = torch.full((4, 1, 6, 6), 0.5), torch.tensor([0, 1, 2, 0])
    found = adversarial_particles(
        network(), images, labels,
        particles=3, problem=InnerProblem(eps=0.4, steps=3, step_size=0.01), base="trades", bandwidth=1e8,
        generator=seeded(),
    )  # fmt: skip
    start = 0.001 * torch.randn((12, 1, 6, 6), generator=seeded()).reshape(3, 4, 1, 6, 6)
    moves = found - images - start
    assert torch.allclose(moves, moves[:1].expand_as(moves), atol=1e-6)
    assert moves.abs().amax() > 0.009


@pytest.mark.parametrize("norm", ["Linf", "L2"])
@pytest.mark.parametrize("bandwidth", ["median", "literal", 0.3])
def test_one_particle_is_the_attack_of_pgd_training_and_of_trades(bandwidth: Bandwidth, norm: str) -> None:
    images, labels = batch()
    step_size = 2 * 0.1 / 4
    start = uniform_start(images, 0.1, norm, seeded())
    pgd = label_ascent(network(), images, labels, start, eps=0.1, steps=4, step_size=step_size, norm=norm)
    trades = divergence_ascent(network(), images, eps=0.1, steps=4, step_size=step_size, generator=seeded(), norm=norm)
    assert torch.equal(particles(1, "pgd", bandwidth, norm)[0], pgd)
    assert torch.equal(particles(1, "trades", bandwidth, norm)[0], trades)


def test_one_particle_makes_the_objective_trades_or_pgd_training() -> None:
    model, (images, labels) = network(), batch()
    clean_loss = CrossEntropy(0.1, torch.tensor([1.0, 2.0, 0.5]))
    common = {"eps": 0.1, "steps": 3, "ramp": 0.5, "clean_loss": clean_loss}
    trades, pgd = Trades(beta=3.0, **common), PgdTraining(**common)
    ald = AdversarialLocalDistribution(base="trades", particles=1, weight=3.0, **common)
    only = AdversarialLocalDistribution(base="pgd", particles=1, weight=1.0, clean_weight=0.0, **common)
    both = AdversarialLocalDistribution(base="pgd", particles=1, weight=2.0, **common)
    for progress in (0.2, 1.0):
        values = [
            objective(model, images, labels, seeded(), progress).item() for objective in (trades, ald, pgd, only, both)
        ]
        assert values[1] == pytest.approx(values[0], rel=1e-6)
        assert values[3] == pytest.approx(values[2], rel=1e-6)
        clean = clean_loss.of_logits(model(images), labels).item()
        assert values[4] == pytest.approx(clean + 2 * values[2], rel=1e-6)


@pytest.mark.parametrize("base", ["pgd", "trades"])
def test_objective_is_clean_loss_plus_the_mean_loss_of_the_particles(base: Base) -> None:
    model, (images, labels) = network(), batch()
    value = AdversarialLocalDistribution(eps=0.1, steps=4, base=base, particles=3, weight=2.0)(
        model, images, labels, seeded()
    )
    p = model(images).softmax(dim=1)
    losses = []
    for x in particles(3, base):
        q = model(x).softmax(dim=1)
        each = -q[torch.arange(6), labels].log() if base == "pgd" else (p * (p / q).log()).sum(dim=1)
        losses.append(each.mean())
    by_hand = -p[torch.arange(6), labels].log().mean() + 2.0 * torch.stack(losses).mean()
    assert value.item() == pytest.approx(by_hand.item(), rel=1e-5)
    ours, expected = (torch.autograd.grad(v, model[0].weight)[0] for v in (value, by_hand))
    assert torch.allclose(ours, expected, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("norm", ["Linf", "L2"])
@pytest.mark.parametrize("base", ["pgd", "trades"])
def test_particles_stay_in_the_ball_and_differ(base: Base, norm: str) -> None:
    found, (images, _) = particles(4, base, norm=norm), batch()
    assert found.shape == (4, *images.shape)
    offset = (found - images).flatten(2)
    assert (offset.abs().amax(dim=2) if norm == "Linf" else offset.norm(dim=2)).max() <= 0.1 + 1e-6
    assert ((found >= 0) & (found <= 1)).all()
    assert torch.cdist(offset.transpose(0, 1), offset.transpose(0, 1))[:, 0, 1:].min() > 1e-3


def test_repulsion_spreads_the_particles_at_the_price_of_their_loss() -> None:
    clean = network()(batch()[0]).softmax(dim=1)

    def spread_and_loss(bandwidth: Bandwidth) -> tuple[float, float]:
        found = particles(4, "trades", bandwidth)
        offsets = found.flatten(2).transpose(0, 1)
        loss = [functional.kl_div(network()(x).log_softmax(dim=1), clean, reduction="batchmean") for x in found]
        return torch.cdist(offsets, offsets).square().mean().item(), torch.stack(loss).mean().item()

    (wide, weaker), (narrow, stronger) = spread_and_loss("median"), spread_and_loss(1e-6)
    assert wide > narrow
    assert weaker < stronger


def test_median_heuristic_follows_the_distances_of_each_image() -> None:
    points = torch.tensor([[[0.0], [1.0], [3.0]], [[0.0], [2.0], [6.0]]])
    squared = torch.cdist(points, points) ** 2
    # Distances 1, 2, 3 have the squared median 4; the second image is the first at twice the size.
    expected = [4 / (2 * math.log(4)), 16 / (2 * math.log(4))]
    assert kernel_variance(squared, "median").flatten().tolist() == pytest.approx(expected)
    assert kernel_variance(squared, 0.5).flatten().tolist() == pytest.approx([0.25, 0.25])
    assert kernel_variance(squared, "literal").flatten().tolist() == pytest.approx([1e-4, 1e-4])


def test_printed_width_underflows_so_that_particles_do_not_know_of_each_other() -> None:
    # Two images that differ in one pixel by 4/255, and four particles.
    points = torch.zeros(1, 4, 36)
    points[0, torch.arange(4), torch.arange(4)] = 4 / 255 / math.sqrt(2)
    squared = torch.cdist(points, points) ** 2
    kernel = torch.exp(-squared / (2 * kernel_variance(squared, "literal")))
    assert torch.equal(kernel[0], torch.eye(4))
    assert torch.equal(particles(4, "pgd", "literal"), particles(4, "pgd", 1e-9))
    median = torch.exp(-squared / (2 * kernel_variance(squared, "median")))
    assert median[0, 0, 1].item() == pytest.approx(1 / 5)


@pytest.mark.parametrize("bandwidth", ["median", "literal"])
def test_many_and_coinciding_particles_stay_finite(bandwidth: Bandwidth) -> None:
    generator = seeded()
    points = torch.randn(2, 60, 5, generator=generator)
    points[0] = points[0, :1]
    gradients = torch.randn(2, 60, 5, generator=generator)
    found = stein_direction(gradients, points, bandwidth)
    assert torch.isfinite(found).all()
    assert torch.allclose(found[0], gradients[0].mean(dim=0).expand(60, 5), atol=1e-5)


def test_particles_sample_the_distribution_they_are_moved_towards() -> None:
    # log P = -(x - 2)^2 / (2 * 0.5^2): the limit of plain Stein variational gradient descent is known.
    points = torch.randn(1, 50, 1, generator=seeded(), dtype=torch.float64)
    for _ in range(1500):
        points = points + 0.05 * stein_direction((2 - points) / 0.25, points, "median")
    assert points.mean().item() == pytest.approx(2.0, abs=0.02)
    assert points.std().item() == pytest.approx(0.5, abs=0.05)
