"""PGD: stays in the ball and in [0, 1], keeps every success, leaves model and global RNG as they were."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from audit.errors import ClassifierError, MetricError
from audit.robustness.attacks.ball import ascent, project, random_offset
from audit.robustness.attacks.pgd import pgd_attack


def small_network(seed: int = 0, classes: int = 3) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, classes)
        )


def case(n: int = 12, seed: int = 0) -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    network = small_network(seed).eval()
    images = torch.rand(n, 1, 6, 6, generator=torch.Generator().manual_seed(seed))
    return network, images, network(images).argmax(dim=1)


def radius(adversarial: torch.Tensor, images: torch.Tensor, norm: str) -> torch.Tensor:
    offset = (adversarial - images).flatten(1)
    return offset.abs().amax(dim=1) if norm == "Linf" else offset.norm(dim=1)


@settings(max_examples=25, deadline=None)
@given(
    eps=st.floats(0.001, 1.0),
    steps=st.integers(1, 5),
    restarts=st.integers(1, 2),
    norm=st.sampled_from(["Linf", "L2"]),
    seed=st.integers(0, 10**6),
)
def test_adversarial_images_stay_in_ball_and_bounds(
    eps: float, steps: int, restarts: int, norm: str, seed: int
) -> None:
    network, images, labels = case(6, seed % 50)
    generator = torch.Generator().manual_seed(seed)
    out = pgd_attack(
        network, images, labels, eps=eps, steps=steps, restarts=restarts, norm=norm, generator=generator, step_size=0.5
    )
    assert out.shape == images.shape
    assert (radius(out, images, norm) <= eps + 1e-5).all()
    assert ((out >= 0) & (out <= 1)).all()


@settings(max_examples=25, deadline=None)
@given(eps=st.floats(0.01, 3.0), seed=st.integers(0, 10**6), norm=st.sampled_from(["Linf", "L2"]))
def test_projection_is_idempotent_and_keeps_inner_points(eps: float, seed: int, norm: str) -> None:
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(4, 1, 5, 5, generator=generator)
    once = project(torch.randn(images.shape, generator=generator), images, eps, norm)
    assert torch.allclose(project(once, images, eps, norm), once, atol=1e-6)
    assert torch.allclose(project(images, images, eps, norm), images, atol=1e-6)


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_random_start_fills_the_ball(norm: str) -> None:
    offsets = random_offset(torch.Size((500, 1, 2, 1)), 0.5, norm, torch.Generator().manual_seed(0))
    length = radius(offsets, torch.zeros_like(offsets), norm)
    assert (length <= 0.5 + 1e-6).all()
    # In two dimensions the radius of a uniform point has mean 2/3 of the ball's in either norm.
    assert length.mean() == pytest.approx(0.5 * 2 / 3, abs=0.02)


def test_step_without_gradient_is_zero() -> None:
    for norm in ("Linf", "L2"):
        assert torch.equal(ascent(torch.zeros(2, 1, 3, 3), 0.1, norm), torch.zeros(2, 1, 3, 3))


def test_success_is_never_lost_with_more_steps_or_restarts() -> None:
    network, images, labels = case(64, seed=3)
    fooled = []
    for steps, restarts in ((1, 1), (4, 1), (16, 1), (16, 3)):
        out = pgd_attack(
            network,
            images,
            labels,
            eps=0.12,
            steps=steps,
            restarts=restarts,
            step_size=0.03,
            generator=torch.Generator().manual_seed(1),
        )
        fooled.append(network(out).argmax(dim=1) != labels)
    for fewer, more in itertools.pairwise(fooled):
        assert (more | ~fewer).all(), (
            "an image fooled by the shorter attack from the same start is fooled by the longer"
        )
    assert fooled[-1].any()
    assert not fooled[0].all()


PLAIN_STEPS = 6


def plain_loop(
    network: nn.Module, images: torch.Tensor, labels: torch.Tensor, *, eps: float, norm: str, momentum: float
) -> list[torch.Tensor]:
    """All iterates of the textbook loop: nobody leaves, nothing is kept."""
    offset = random_offset(images.shape, eps, norm, torch.Generator().manual_seed(2))
    iterates, velocity = [project(images + offset, images, eps, norm)], torch.zeros_like(images)
    for _ in range(PLAIN_STEPS):
        current = iterates[-1].clone().requires_grad_()
        (gradient,) = torch.autograd.grad(functional.cross_entropy(network(current), labels, reduction="sum"), current)
        if momentum:
            velocity = momentum * velocity + gradient / gradient.abs().sum(dim=(1, 2, 3), keepdim=True)
        step = ascent(velocity if momentum else gradient, 2.5 * eps / PLAIN_STEPS, norm)
        iterates.append(project(current.detach() + step, images, eps, norm))
    return iterates


@pytest.mark.parametrize("norm", ["Linf", "L2"])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_result_is_the_first_that_fools_or_the_best_iterate_of_the_plain_loop(norm: str, momentum: float) -> None:
    network, images, labels = case(48, seed=3)
    eps = 0.08 if norm == "Linf" else 0.3
    out = pgd_attack(
        network,
        images,
        labels,
        eps=eps,
        steps=PLAIN_STEPS,
        norm=norm,
        momentum=momentum,
        generator=torch.Generator().manual_seed(2),
    )
    iterates = torch.stack(plain_loop(network, images, labels, eps=eps, norm=norm, momentum=momentum))
    logits = network(iterates.flatten(0, 1)).detach()
    losses = functional.cross_entropy(logits, labels.repeat(7), reduction="none").reshape(7, -1)
    wrong = (logits.argmax(dim=1) != labels.repeat(7)).reshape(7, -1)
    chosen = torch.where(wrong.any(dim=0), wrong.int().argmax(dim=0), losses.argmax(dim=0))
    assert 0 < int(wrong.any(dim=0).sum()) < 48
    # Packing rounds sums otherwise, so that a gradient near 0 may turn its sign.
    same = (out - iterates[chosen, torch.arange(48)]).abs().amax(dim=(1, 2, 3)) < 1e-5
    assert same.float().mean() > 0.95


def test_momentum_carries_a_sample_over_a_flat_stretch() -> None:
    class Ledge(nn.Module):
        """Two classes; the second's logit rises with the mean up to 0.5, is flat to 0.6, and rises again."""

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            mean = images.flatten(1).mean(dim=1)
            height = mean.clamp_max(0.5) + 10 * (mean - 0.6).clamp_min(0)
            return torch.stack([torch.full_like(height, 1.0), height], dim=1)

    images, labels = torch.full((8, 1, 4, 4), 0.4), torch.zeros(8, dtype=torch.int64)
    fooled = []
    for momentum in (0.0, 1.0):
        out = pgd_attack(
            Ledge(),
            images,
            labels,
            eps=0.4,
            steps=12,
            step_size=0.04,
            momentum=momentum,
            generator=torch.Generator().manual_seed(0),
        )
        fooled.append(int(Ledge()(out).argmax(dim=1).sum()))
    assert fooled == [0, 8]


def test_a_later_restart_never_touches_a_fooled_sample() -> None:
    network, images, labels = case(64, seed=3)
    outs = [
        pgd_attack(
            network,
            images,
            labels,
            eps=0.05,
            steps=3,
            restarts=restarts,
            momentum=0.5,
            generator=torch.Generator().manual_seed(1),
        )
        for restarts in (1, 5)
    ]
    fooled = [network(out).argmax(dim=1) != labels for out in outs]
    assert 0 < int(fooled[0].sum()) < 64
    assert torch.equal(outs[1][fooled[0]], outs[0][fooled[0]])
    losses = [functional.cross_entropy(network(out), labels, reduction="none") for out in outs]
    assert (losses[1] >= losses[0] - 1e-6)[~fooled[1]].all()


def test_a_gradient_that_is_not_finite_is_refused() -> None:
    class Rooted(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return images.flatten(1)[:, :3] + (images.flatten(1)[:, :3] * 0).sqrt()

    images = torch.rand(4, 1, 6, 6)
    with pytest.raises(ClassifierError, match="gradient"):
        pgd_attack(Rooted(), images, Rooted()(images).argmax(dim=1), eps=1e-3, steps=2, generator=torch.Generator())


def test_kept_iterate_has_higher_loss_than_the_image() -> None:
    network, images, labels = case(32, seed=5)
    out = pgd_attack(network, images, labels, eps=0.01, steps=5, generator=torch.Generator().manual_seed(0))
    before = functional.cross_entropy(network(images), labels, reduction="none")
    after = functional.cross_entropy(network(out), labels, reduction="none")
    assert (after > before).all()


def test_misclassified_image_is_returned_as_it_is() -> None:
    network, images, labels = case(8)
    labels[:3] = (labels[:3] + 1) % 3
    out = pgd_attack(network, images, labels, eps=0.2, steps=3, generator=torch.Generator().manual_seed(0))
    assert torch.equal(out[:3], images[:3])


def test_fooled_samples_leave_the_batch() -> None:
    network, images, labels = case(64, seed=3)
    sizes: list[int] = []
    network.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    pgd_attack(network, images, labels, eps=0.15, steps=15, step_size=0.03, generator=torch.Generator().manual_seed(0))
    assert sizes[-1] < sizes[0]
    assert all(later <= earlier for earlier, later in itertools.pairwise(sizes))


def test_model_mode_parameters_and_global_rng_are_untouched() -> None:
    network, images, labels = case(8)
    network.train()
    network[1].eval()
    network[0].weight.requires_grad_(False)
    state = {k: v.clone() for k, v in network.state_dict().items()}
    rng = torch.get_rng_state()
    pgd_attack(network, images, labels, eps=0.1, steps=3, generator=torch.Generator().manual_seed(0))
    assert torch.equal(torch.get_rng_state(), rng)
    assert network.training
    assert not network[1].training
    assert [p.requires_grad for p in network.parameters()] == [False, True, True, True, True, True]
    assert all(p.grad is None for p in network.parameters())
    assert all(torch.equal(v, state[k]) for k, v in network.state_dict().items())


def test_equal_generators_give_equal_attacks() -> None:
    network, images, labels = case(8)
    runs = [
        pgd_attack(network, images, labels, eps=0.05, steps=4, restarts=2, generator=torch.Generator().manual_seed(7))
        for _ in range(2)
    ]
    assert torch.equal(*runs)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"images": torch.full((4, 1, 6, 6), 1.5)}, r"\[0, 1\]"),
        ({"images": torch.full((4, 1, 6, 6), float("nan"))}, r"\[0, 1\]"),
        ({"labels": torch.tensor([0, 1, 2, 3])}, "classes"),
        ({"labels": torch.tensor([0, 1, 2])}, "one per image"),
        ({"eps": 8.0}, "eps"),
        ({"eps": 0.0}, "eps"),
        ({"steps": 0}, "at least 1 step"),
        ({"momentum": -0.5}, "momentum"),
        ({"momentum": float("nan")}, "momentum"),
    ],
)
def test_bad_input_is_refused_in_one_sentence(change: dict, words: str) -> None:
    arguments = {"images": torch.rand(4, 1, 6, 6), "labels": torch.tensor([0, 1, 2, 0]), "eps": 0.1, "steps": 2}
    with pytest.raises(MetricError, match=words):
        pgd_attack(small_network(), **(arguments | change), generator=torch.Generator())


def test_logits_that_are_not_finite_are_refused() -> None:
    network = small_network()
    network[4].bias.data[0] = float("nan")
    with pytest.raises(ClassifierError, match="NaN"):
        pgd_attack(network, torch.rand(2, 1, 6, 6), torch.tensor([0, 1]), eps=0.1, steps=1, generator=torch.Generator())
