"""FAB: its projections against solvers, its distances against linear classifiers, and what it leaves untouched."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import LinearConstraint, linprog, minimize
from torch import Tensor, nn

from audit.errors import ClassifierError, MetricError
from audit.robustness.attacks.ball import TOLERANCE, distance
from audit.robustness.attacks.fab import fab_attack, fab_minimal, nearest_on_line
from audit.robustness.attacks.fab_projection import shortest_step

NORMS = ["Linf", "L2"]


def network(classes: int = 3, channels: int = 1, size: int = 6, seed: int = 0) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(channels, 8, 3, padding=1), nn.BatchNorm2d(8), nn.GELU(), nn.Flatten(),
            nn.Linear(8 * size * size, classes),
        ).eval()  # fmt: skip


def case(classes: int = 3, channels: int = 1, n: int = 6) -> tuple[nn.Sequential, Tensor, Tensor]:
    model = network(classes, channels)
    images = torch.rand(n, channels, 6, 6, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return model, images, model(images).argmax(dim=1)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Counting(nn.Module):
    """Keeps the sizes of the batches that pass through a network."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.batches: list[int] = []

    def forward(self, images: Tensor) -> Tensor:
        self.batches.append(len(images))
        logits: Tensor = self.inner(images)
        return logits


def problem(seed: int, size: int, share: float) -> tuple[Tensor, Tensor, Tensor]:
    """Points with some coordinates on the box, normals with some zeros, and a gap that can be closed within the box."""
    rng = torch.Generator().manual_seed(seed)
    points = (torch.rand(4, size, generator=rng) * 1.4 - 0.2).clamp(0, 1)
    normals = torch.randn(4, size, generator=rng) * (torch.rand(4, size, generator=rng) < 0.8)
    most = torch.where(normals > 0, normals * (1 - points), -normals * points).sum(dim=1)
    least = torch.where(normals > 0, -normals * points, normals * (1 - points)).sum(dim=1)
    return points, normals, share * torch.tensor([most[0], least[1], most[2], least[3]])


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), size=st.integers(1, 30), share=st.floats(0.0, 0.98))
def test_linf_step_is_that_of_a_linear_programme(seed: int, size: int, share: float) -> None:
    points, normals, gap = problem(seed, size, share)
    step = shortest_step(points, normals, gap, "Linf")
    for x, w, missing, found in zip(points.double(), normals.double(), gap.double(), step.double(), strict=True):
        # Variables: the step and its largest entry t; minimise t with |step_i| <= t.
        eye, ones = np.eye(size), np.ones((size, 1))
        solution = linprog(
            np.r_[np.zeros(size), 1.0],
            A_ub=np.block([[eye, -ones], [-eye, -ones]]),
            b_ub=np.zeros(2 * size),
            A_eq=np.r_[w.numpy(), 0.0][None],
            b_eq=[float(missing)],
            bounds=[*((float(-v), float(1 - v)) for v in x), (0, None)],
        )
        assert solution.success
        assert float(found.abs().max()) == pytest.approx(solution.fun, abs=1e-4)
        assert float(w @ found) == pytest.approx(float(missing), abs=1e-4)
        assert ((x + found) >= -1e-6).all()
        assert ((x + found) <= 1 + 1e-6).all()


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), size=st.integers(1, 12), share=st.floats(0.0, 0.95))
def test_l2_step_is_that_of_a_quadratic_programme(seed: int, size: int, share: float) -> None:
    points, normals, gap = problem(seed, size, share)
    step = shortest_step(points, normals, gap, "L2")
    for x, w, missing, found in zip(points.double(), normals.double(), gap.double(), step.double(), strict=True):
        assert float(w @ found) == pytest.approx(float(missing), abs=1e-4)
        assert ((x + found) >= -1e-6).all()
        assert ((x + found) <= 1 + 1e-6).all()
        solution = minimize(
            lambda v: float(v @ v),
            found.numpy(),
            jac=lambda v: 2 * v,
            method="SLSQP",
            bounds=[(float(-v), float(1 - v)) for v in x],
            constraints=LinearConstraint(w[None].numpy(), float(missing), float(missing)),
            options={"ftol": 1e-12},
        )
        assert float(found.square().sum()) <= solution.fun + 1e-3 * (1 + solution.fun)


@pytest.mark.parametrize("norm", NORMS)
def test_a_hyperplane_beyond_the_box_leads_to_its_nearest_point(norm: str) -> None:
    points, normals = torch.tensor([[0.2, 0.9, 0.5]]), torch.tensor([[1.0, -2.0, 0.0]])
    step = shortest_step(points, normals, torch.tensor([100.0]), norm)
    assert torch.allclose(points + step, torch.tensor([[1.0, 0.0, 0.5]]))


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("scale", [1e-18, 1e-6, 1.0, 1e12])
def test_the_size_of_the_gradient_does_not_matter(norm: str, scale: float) -> None:
    points, normals, gap = problem(3, 20, 0.5)
    expected = shortest_step(points, normals, gap, norm)
    assert torch.allclose(shortest_step(points, normals * scale, gap * scale, norm), expected, atol=1e-5)
    assert (shortest_step(points, torch.zeros_like(normals), gap, norm) == 0).all()


def linear_case(classes: int, n: int = 12) -> tuple[nn.Module, Tensor, Tensor]:
    """A linear classifier of grey images, whose boundary is near enough for no pixel to meet the box."""
    rng = torch.Generator().manual_seed(5)
    layer = nn.Linear(36, classes)
    with torch.no_grad():
        layer.weight.copy_(torch.randn(classes, 36, generator=rng))
        layer.bias.copy_(-layer.weight.sum(dim=1) / 2)
    images = 0.5 + 0.1 * (torch.rand(n, 1, 6, 6, generator=rng) - 0.5)
    model = nn.Sequential(nn.Flatten(), layer)
    with torch.no_grad():
        return model, images, model(images).argmax(dim=1)


@pytest.mark.parametrize("classes", [2, 3, 10])
@pytest.mark.parametrize("norm", NORMS)
def test_distances_to_a_linear_classifier_are_the_known_ones(classes: int, norm: str) -> None:
    model, images, labels = linear_case(classes)
    found, reached = fab_minimal(model, images, labels, norm=norm, steps=10, generator=generator())
    weight = model[1].weight.detach()
    with torch.no_grad():
        logits = model(images)
    slope = weight[labels][:, None] - weight[None]
    size = slope.abs().sum(dim=2) if norm == "Linf" else slope.norm(dim=2)
    known = (logits.gather(1, labels[:, None]) - logits) / size
    known[torch.arange(len(labels)), labels] = torch.inf
    known = known.amin(dim=1)
    assert (reached >= known - 1e-6).all()
    assert (reached <= known * 1.01 + 1e-6).all()
    assert torch.allclose(distance(found, images, norm), reached, atol=1e-6)
    with torch.no_grad():
        assert (model(found).argmax(dim=1) != labels).all()


@settings(max_examples=15, deadline=None)
@given(
    eps=st.floats(0.001, 1.0),
    norm=st.sampled_from(NORMS),
    restarts=st.integers(1, 2),
    seed=st.integers(0, 10**6),
    channels=st.integers(1, 4),
)
def test_images_stay_in_ball_and_box(eps: float, norm: str, restarts: int, seed: int, channels: int) -> None:
    model, images, labels = case(3, channels, 3)
    found = fab_attack(model, images, labels, eps=eps, norm=norm, steps=5, restarts=restarts, generator=generator(seed))
    assert found.dtype == torch.float32
    assert (distance(found, images, norm) <= eps + TOLERANCE).all()
    assert found.min() >= 0
    assert found.max() <= 1
    with torch.no_grad():
        moved = (found != images).flatten(1).any(dim=1)
        assert (model(found).argmax(dim=1) != labels)[moved].all()


@pytest.mark.parametrize("classes", [2, 3, 4, 9, 10, 1000])
@pytest.mark.parametrize("norm", NORMS)
def test_any_number_of_classes(classes: int, norm: str) -> None:
    model, images, labels = case(classes)
    found, reached = fab_minimal(model, images, labels, norm=norm, steps=10, generator=generator())
    assert torch.isfinite(reached).all()
    eps = float(reached.median()) * 1.001
    attacked = fab_attack(model, images, labels, eps=eps, norm=norm, steps=10, generator=generator())
    with torch.no_grad():
        assert (model(found).argmax(dim=1) != labels).all()
        assert int((model(attacked).argmax(dim=1) != labels).sum()) >= len(images) // 2


def test_one_pass_a_step_and_near_images_leave() -> None:
    model, images, labels = case(4)
    counted = Counting(model)
    fab_minimal(counted, images, labels, steps=7, target_classes=2, generator=generator())
    # The clean check, then the start and each step of two targets, then the search on the line.
    assert len(counted.batches) == 1 + 2 * (7 + 1) + 5
    reached = fab_minimal(model, images, labels, steps=7, generator=generator())[1]
    counted = Counting(model)
    fab_attack(counted, images, labels, eps=float(reached.max()) * 1.5, steps=7, generator=generator())
    assert len(counted.batches) < 1 + 3 * 8
    assert counted.batches == sorted(counted.batches, reverse=True)
    counted = Counting(model)
    wrong = (labels + 1) % 4
    assert torch.equal(fab_attack(counted, images, wrong, eps=0.1, steps=7, generator=generator()), images)
    assert counted.batches == [6]


def test_more_restarts_never_end_farther() -> None:
    model, images, labels = case(4)
    once = fab_minimal(model, images, labels, steps=5, generator=generator())[1]
    thrice = fab_minimal(model, images, labels, steps=5, restarts=3, generator=generator())[1]
    assert (thrice <= once * 1.02 + 1e-6).all()
    assert torch.equal(thrice, fab_minimal(model, images, labels, steps=5, restarts=3, generator=generator())[1])


def test_the_search_on_the_line_ends_nearer_and_still_fools() -> None:
    model, images, labels = case()
    away = (images + 0.5 * torch.randn(images.shape, generator=generator()).sign()).clamp(0, 1)
    with torch.no_grad():
        fooled = model(away).argmax(dim=1) != labels
        assert fooled.any()
        moved = nearest_on_line(model, images, labels, away)
        still = model(moved).argmax(dim=1) != labels
    assert torch.equal(still, fooled)
    assert (distance(moved, images, "L2") <= distance(away, images, "L2") + 1e-6).all()
    assert (distance(moved, images, "L2") < distance(away, images, "L2"))[fooled].all()
    assert torch.equal(moved[~fooled], away[~fooled])


def test_neither_global_random_state_nor_mode_are_touched() -> None:
    model, images, labels = case()
    model.train()
    model[1].eval()
    model[0].weight.requires_grad_(False)
    state, statistics = torch.get_rng_state(), model[1].running_mean.clone()
    fab_attack(model, images, labels, eps=0.01, steps=3, restarts=2, generator=generator())
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(model[1].running_mean, statistics)
    assert model.training
    assert not model[1].training
    assert not model[0].weight.requires_grad
    assert model[4].weight.requires_grad
    assert model[4].weight.grad is None


def test_a_half_precision_network_stays_in_the_ball() -> None:
    model, images, _ = case()

    class Half(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = model.bfloat16()

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x.bfloat16())

    half = Half()
    labels = half(images).argmax(dim=1)
    found = fab_attack(half, images.bfloat16(), labels, eps=8 / 255, steps=10, generator=generator())
    assert found.dtype == torch.float32
    assert (distance(found, images.bfloat16().float(), "Linf") <= 8 / 255 + TOLERANCE).all()


def test_a_classifier_without_gradients_is_not_fooled_and_not_an_error() -> None:
    _, images, _ = case()
    constant = nn.Sequential(nn.Flatten(), nn.Linear(36, 3))
    with torch.no_grad():
        constant[1].weight.zero_()
        constant[1].bias.copy_(torch.tensor([1.0, 0.0, 0.0]))
    found, reached = fab_minimal(constant, images, torch.zeros(6, dtype=torch.long), steps=3, generator=generator())
    assert torch.equal(found, images)
    assert torch.isinf(reached).all()


def test_what_cannot_be_attacked_is_one_sentence() -> None:
    model, images, labels = case()
    with pytest.raises(MetricError, match="at least 1 step"):
        fab_attack(model, images, labels, eps=0.1, steps=0, generator=generator())
    with pytest.raises(MetricError, match="eps is 2"):
        fab_attack(model, images, labels, eps=2.0, generator=generator())
    with pytest.raises(MetricError, match="Labels run"):
        fab_attack(model, images, labels + 3, eps=0.1, generator=generator())

    class Rooted(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return model(x) + (x - x).sum(dim=(1, 2, 3))[:, None].abs().sqrt()

    with pytest.raises(ClassifierError, match="gradient"):
        fab_attack(Rooted(), images, labels, eps=0.001, steps=3, generator=generator())


def test_an_empty_batch_stays_empty() -> None:
    model, images, labels = case()
    found, reached = fab_minimal(model, images[:0], labels[:0], generator=generator())
    assert found.shape == (0, 1, 6, 6)
    assert reached.shape == (0,)
