"""Auto-PGD: the schedule of the paper, one pass a step, any number of classes, and nothing lost or left behind."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from audit.errors import ClassifierError, MetricError
from audit.robustness.attacks.apgd import apgd_attack, apgd_targeted_attack, checkpoints
from audit.robustness.attacks.ball import ascent, project, random_offset
from audit.robustness.attacks.losses import LOSSES, margin
from audit.robustness.attacks.pgd import pgd_attack

ATTACKS = (apgd_attack, apgd_targeted_attack)


def small_network(seed: int = 0, classes: int = 3) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, classes)
        )


def case(n: int = 12, seed: int = 0, classes: int = 3) -> tuple[nn.Module, Tensor, Tensor]:
    network = small_network(seed, classes).eval()
    images = torch.rand(n, 1, 6, 6, generator=torch.Generator().manual_seed(seed))
    return network, images, network(images).argmax(dim=1)


def radius(adversarial: Tensor, images: Tensor, norm: str) -> Tensor:
    offset = (adversarial - images).flatten(1)
    return offset.abs().amax(dim=1) if norm == "Linf" else offset.norm(dim=1)


def fooled(network: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    with torch.no_grad():
        return network(images).argmax(dim=1) != labels


def passes(network: nn.Module) -> tuple[list[int], list[int]]:
    """Lists that grow with the batch size of every forward and every backward pass."""
    forward: list[int] = []
    backward: list[int] = []
    network.register_forward_pre_hook(lambda _, inputs: forward.append(len(inputs[0])))
    network.register_full_backward_hook(lambda _, __, outputs: backward.append(len(outputs[0])))
    return forward, backward


def test_checkpoints_are_those_of_the_paper() -> None:
    assert checkpoints(100) == [22, 41, 57, 70, 80, 87, 93, 99]
    assert checkpoints(40) == [8, 15, 21, 26, 30, 33, 35, 37, 39]
    assert checkpoints(1) == []


@settings(max_examples=25, deadline=None)
@given(
    attack=st.sampled_from(ATTACKS),
    eps=st.floats(0.001, 1.0),
    steps=st.integers(1, 8),
    restarts=st.integers(1, 2),
    norm=st.sampled_from(["Linf", "L2"]),
    seed=st.integers(0, 10**6),
)
def test_adversarial_images_stay_in_ball_and_bounds(
    attack, eps: float, steps: int, restarts: int, norm: str, seed: int
) -> None:
    network, images, labels = case(6, seed % 50)
    generator = torch.Generator().manual_seed(seed)
    out = attack(network, images, labels, eps=eps, steps=steps, restarts=restarts, norm=norm, generator=generator)
    assert out.shape == images.shape
    assert (radius(out, images, norm) <= eps + 1e-5).all()
    assert ((out >= 0) & (out <= 1)).all()


@pytest.mark.parametrize("norm", ["Linf", "L2"])
@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("classes", [2, 3, 4, 9, 10, 1000])
def test_any_number_of_classes_is_attacked(attack, classes: int, norm: str) -> None:
    network, images, labels = case(8, seed=classes, classes=classes)
    eps = 0.3 if norm == "Linf" else 2.0
    out = attack(network, images, labels, eps=eps, steps=10, norm=norm, generator=torch.Generator().manual_seed(0))
    assert fooled(network, out, labels).float().mean() > 0.5


@pytest.mark.parametrize("loss", ["ce", "dlr"])
def test_every_loss_fools(loss: str) -> None:
    network, images, labels = case(32, seed=3)
    out = apgd_attack(
        network, images, labels, eps=0.25, steps=10, loss=loss, generator=torch.Generator().manual_seed(0)
    )
    assert fooled(network, out, labels).float().mean() > 0.5


def test_logit_ratio_finds_what_cross_entropy_misses_where_logits_are_large() -> None:
    network, images, labels = case(32, seed=3)
    scaled = nn.Sequential(network, Scale(1e4))
    found = {
        loss: fooled(
            scaled,
            apgd_attack(
                scaled, images, labels, eps=0.1, steps=20, loss=loss, generator=torch.Generator().manual_seed(0)
            ),
            labels,
        ).sum()
        for loss in ("ce", "dlr")
    }
    assert found["dlr"] > found["ce"]


class Scale(nn.Module):
    """Multiplies by a constant."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, values: Tensor) -> Tensor:
        return values * self.factor


class Parabola(nn.Module):
    """Two classes; the second's logit is -|x - peak|^2 below a bar that it never reaches."""

    def __init__(self, peak: Tensor) -> None:
        super().__init__()
        self.register_buffer("peak", peak)

    def forward(self, images: Tensor) -> Tensor:
        height = -((images - self.peak) ** 2).flatten(1).sum(dim=1)
        return torch.stack([torch.ones_like(height), height], dim=1)


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_steps_shrink_towards_an_inner_maximum(norm: str) -> None:
    peak = torch.full((1, 1, 3, 3), 0.5)
    images = peak + torch.linspace(-0.05, 0.05, 9).reshape(1, 1, 3, 3)
    out = apgd_attack(
        Parabola(peak),
        images,
        torch.tensor([0]),
        eps=0.3,
        steps=100,
        norm=norm,
        loss="ce",
        generator=torch.Generator().manual_seed(0),
    )
    # The first step is 2 * eps long; without halving it would jump from wall to wall for ever.
    assert (out - peak).abs().max() < 0.02


class Waves(nn.Module):
    """Two classes; the second's logit is a rugged function of each pixel, far below a bar that it never reaches."""

    def forward(self, images: Tensor) -> Tensor:
        weights = torch.linspace(0.5, 1.5, images[0].numel())
        height = (torch.sin(25 * images.flatten(1)) * weights + torch.cos(7 * images.flatten(1))).sum(dim=1)
        return torch.stack([torch.full_like(height, 100.0), height], dim=1)


def transcribed(image: Tensor, start: Tensor, eps: float, steps: int, norm: str) -> tuple[Tensor, list[str]]:
    """Algorithm 1 word by word for one image; returns the best point and what was found at each checkpoint."""

    def at(point: Tensor) -> tuple[float, Tensor]:
        point = point.clone().requires_grad_()
        value = Waves()(point)[0, 1] - 100
        return value.item(), torch.autograd.grad(value, point)[0]

    previous = current = best = start
    value, gradient = at(current)
    best_value, best_gradient = value, gradient
    step, rises, marked, halved, since, findings = 2 * eps, 0, value, False, 0, []
    for k in range(1, steps + 1):
        moved = project(current + ascent(gradient, step, norm), image, eps, norm)
        if k > 1:
            moved = project(current + 0.75 * (moved - current) + 0.25 * (current - previous), image, eps, norm)
        previous, current, before = current, moved, value
        value, gradient = at(current)
        rises, since = rises + (value > before), since + 1
        if value > best_value:
            best, best_value, best_gradient = current, value, gradient
        if k in checkpoints(steps):
            rare, stuck = rises < 0.75 * since, not halved and marked == best_value
            findings.append("rare" if rare else "stuck" if stuck else "on")
            halved = rare or stuck
            if halved:
                step, current, value, gradient = step / 2, best, best_value, best_gradient
            rises, marked, since = 0, best_value, 0
    return best, findings


@pytest.mark.parametrize(("norm", "eps", "steps"), [("Linf", 0.1, 20), ("L2", 0.2, 50)])
def test_agrees_with_a_transcription_of_the_algorithm_sample_by_sample(
    norm: str, eps: float, steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Cross-entropy would round the rugged heights away in float32.
    monkeypatch.setitem(LOSSES, "margin", margin)
    images = torch.rand(24, 1, 3, 3, generator=torch.Generator().manual_seed(0))
    out = apgd_attack(
        Waves(),
        images,
        torch.zeros(24, dtype=torch.int64),
        eps=eps,
        steps=steps,
        norm=norm,
        loss="margin",
        generator=torch.Generator().manual_seed(1),
    )
    offset = random_offset(images.shape, eps, norm, torch.Generator().manual_seed(1))
    starts = project(images + offset, images, eps, norm)
    findings: list[list[str]] = []
    agree = []
    for i in range(24):
        best, found = transcribed(images[i : i + 1], starts[i : i + 1], eps, steps, norm)
        findings.append(found)
        agree.append(bool((out[i] - best[0]).abs().max() < 2e-3))
    assert {finding for found in findings for finding in found} == {"rare", "stuck", "on"}
    assert all(same for same, found in zip(agree, findings, strict=True) if "stuck" in found)
    # A comparison decided by rounding may lead one sample elsewhere.
    assert sum(agree) >= 23


@pytest.mark.parametrize("attack", ATTACKS)
def test_one_forward_and_one_backward_pass_a_step(attack) -> None:
    network, images, labels = case(4)
    forward, backward = passes(network)
    attack(network, images, labels, eps=1e-4, steps=7, generator=torch.Generator())
    runs = 2 if attack is apgd_targeted_attack else 1
    # One clean pass, and in each run one pass at the start; the last iterate needs no gradient.
    assert forward == [4] * (1 + runs * 8)
    assert backward == [4] * (runs * 7)


@pytest.mark.parametrize("attack", ATTACKS)
def test_fooled_samples_leave_the_batch(attack) -> None:
    network, images, labels = case(64, seed=3, classes=2)
    forward, _ = passes(network)
    out = attack(network, images, labels, eps=0.06, steps=15, generator=torch.Generator().manual_seed(0))
    assert 0 < fooled(network, out, labels).sum() < 64
    sizes = forward[:-1]
    assert all(later <= earlier for earlier, later in itertools.pairwise(sizes))
    assert sizes[-1] < 64


@pytest.mark.parametrize("attack", ATTACKS)
def test_nothing_is_computed_for_images_that_are_misclassified(attack) -> None:
    network, images, labels = case(8)
    wrong = (labels + 1) % 3
    forward, backward = passes(network)
    out = attack(network, images, wrong, eps=0.2, generator=torch.Generator().manual_seed(0))
    assert torch.equal(out, images)
    assert forward == [8]
    assert backward == []


def test_targets_share_a_batch_when_few_images_are_left() -> None:
    network, images, labels = case(4, classes=10)
    labels[1:] = (labels[1:] + 1) % 10
    forward, _ = passes(network)
    for width, sizes in ((4, [4, 4, 1]), (9, [9]), (1, [1] * 9)):
        forward.clear()
        apgd_targeted_attack(network, images, labels, eps=1e-5, steps=1, batch_size=width, generator=torch.Generator())
        assert forward == [4, *itertools.chain.from_iterable((size, size) for size in sizes)]


def test_sharing_a_batch_finds_as_much() -> None:
    network, images, labels = case(40, seed=11, classes=10)
    counts = []
    for width in (1, 40, 400):
        out = apgd_targeted_attack(
            network,
            images,
            labels,
            eps=0.05,
            steps=15,
            batch_size=width,
            generator=torch.Generator().manual_seed(0),
        )
        assert (radius(out, images, "Linf") <= 0.05 + 1e-5).all()
        counts.append(int(fooled(network, out, labels).sum()))
    assert 0 < counts[0] < 40
    assert max(counts) - min(counts) <= 1


def test_all_classes_are_targeted_when_there_are_fewer_than_asked() -> None:
    network, images, labels = case(2, classes=3)
    forward, _ = passes(network)
    apgd_targeted_attack(network, images, labels, eps=1e-5, steps=1, target_classes=9, generator=torch.Generator())
    assert forward == [2] * (1 + 2 * 2)


@pytest.mark.parametrize("attack", ATTACKS)
def test_restarts_never_lose_a_success(attack) -> None:
    network, images, labels = case(64, seed=3)
    found = []
    for restarts in (1, 2, 4):
        out = attack(
            network,
            images,
            labels,
            eps=0.04,
            steps=3,
            restarts=restarts,
            generator=torch.Generator().manual_seed(1),
        )
        found.append((out, fooled(network, out, labels)))
    for (fewer_images, fewer), (more_images, more) in itertools.pairwise(found):
        assert (more | ~fewer).all()
        assert torch.equal(more_images[fewer], fewer_images[fewer]), "a fooled image is not touched again"
    assert found[0][1].any()
    assert not found[-1][1].all()


def test_kept_iterate_has_higher_loss_than_the_image_and_restarts_never_lower_it() -> None:
    network, images, labels = case(32, seed=5)
    losses = [functional.cross_entropy(network(images), labels, reduction="none")]
    for restarts in (1, 3):
        out = apgd_attack(
            network,
            images,
            labels,
            eps=0.01,
            steps=5,
            restarts=restarts,
            generator=torch.Generator().manual_seed(0),
        )
        standing = ~fooled(network, out, labels)
        losses.append(
            torch.where(standing, functional.cross_entropy(network(out), labels, reduction="none"), torch.inf)
        )
    assert (losses[1] > losses[0]).all()
    assert (losses[2] >= losses[1] - 1e-6).all()


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_finds_as_much_as_pgd_at_equal_steps(norm: str) -> None:
    network, images, labels = case(128, seed=8, classes=10)
    eps = 0.05 if norm == "Linf" else 0.3
    arguments = {"eps": eps, "steps": 20, "norm": norm}
    ours = apgd_attack(network, images, labels, generator=torch.Generator().manual_seed(0), **arguments)
    plain = pgd_attack(network, images, labels, generator=torch.Generator().manual_seed(0), **arguments)
    found = [int(fooled(network, out, labels).sum()) for out in (ours, plain)]
    assert 0 < found[1] < 128
    assert found[0] >= found[1] - 1


@pytest.mark.parametrize("attack", ATTACKS)
def test_model_mode_parameters_and_global_rng_are_untouched(attack) -> None:
    network, images, labels = case(8)
    network.train()
    network[1].eval()
    network[0].weight.requires_grad_(False)
    state = {k: v.clone() for k, v in network.state_dict().items()}
    rng = torch.get_rng_state()
    attack(network, images, labels, eps=0.1, steps=3, generator=torch.Generator().manual_seed(0))
    assert torch.equal(torch.get_rng_state(), rng)
    assert network.training
    assert not network[1].training
    assert [p.requires_grad for p in network.parameters()] == [False, True, True, True, True, True]
    assert all(p.grad is None for p in network.parameters())
    assert all(torch.equal(v, state[k]) for k, v in network.state_dict().items())


@pytest.mark.parametrize("attack", ATTACKS)
def test_equal_generators_give_equal_attacks_and_inputs_are_not_changed(attack) -> None:
    network, images, labels = case(8)
    before = images.clone()
    runs = [
        attack(network, images, labels, eps=0.05, steps=4, restarts=2, generator=torch.Generator().manual_seed(7))
        for _ in range(2)
    ]
    assert torch.equal(*runs)
    assert torch.equal(images, before)


class InBfloat16(nn.Module):
    """A network that computes in 16 bits behind the pixel contract."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network.bfloat16()

    def forward(self, images: Tensor) -> Tensor:
        return self.network(images.bfloat16())


@pytest.mark.parametrize("norm", ["Linf", "L2"])
@pytest.mark.parametrize("attack", [*ATTACKS, pgd_attack])
def test_16_bit_models_and_images_stay_in_the_ball_of_float32(attack, norm: str) -> None:
    network, images, _ = case(16, seed=3)
    model, images = InBfloat16(network), images.bfloat16()
    labels = model(images).argmax(dim=1)
    # 1/510 is half of the spacing of bfloat16 near 1.
    out = attack(model, images, labels, eps=1 / 510, steps=5, norm=norm, generator=torch.Generator().manual_seed(0))
    assert out.dtype == torch.float32
    assert (radius(out, images.float(), norm) <= 1 / 510 + 1e-6).all()
    assert (out != images.float()).any()


@pytest.mark.parametrize("attack", ATTACKS)
def test_a_classifier_without_gradient_is_attacked_by_its_random_start_alone(attack) -> None:
    network, images, labels = case(8)

    class Blocked(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            with torch.no_grad():
                return network(images)

    out = attack(Blocked(), images, labels, eps=0.01, steps=4, generator=torch.Generator().manual_seed(0))
    assert (radius(out, images, "Linf") <= 0.01 + 1e-5).all()


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"images": torch.full((4, 1, 6, 6), 1.5)}, r"\[0, 1\]"),
        ({"images": torch.full((4, 1, 6, 6), float("nan"))}, r"\[0, 1\]"),
        ({"images": (torch.rand(4, 1, 6, 6) - 0.5) / 0.25}, r"\[0, 1\]"),
        ({"labels": torch.tensor([0, 1, 2, 3])}, "classes"),
        ({"labels": torch.tensor([0, 1, 2])}, "one per image"),
        ({"eps": 8.0}, "eps"),
        ({"eps": 0.0}, "eps"),
        ({"steps": 0}, "at least 1"),
        ({"restarts": 0}, "at least 1"),
    ],
)
def test_bad_input_is_refused_in_one_sentence(attack, change: dict, words: str) -> None:
    arguments = {"images": torch.rand(4, 1, 6, 6), "labels": torch.tensor([0, 1, 2, 0]), "eps": 0.1, "steps": 2}
    with pytest.raises(MetricError, match=words):
        attack(small_network(), **(arguments | change), generator=torch.Generator())


def test_a_ratio_that_the_classes_do_not_allow_is_refused() -> None:
    network, images, labels = case(4, classes=2)
    with pytest.raises(MetricError, match="at least 3 classes"):
        apgd_attack(network, images, labels, eps=0.1, loss="dlr", generator=torch.Generator())


@pytest.mark.parametrize("attack", ATTACKS)
def test_logits_and_gradients_that_are_not_finite_are_refused(attack) -> None:
    network, images, labels = case(2)
    arguments = {"eps": 0.1, "steps": 2, "generator": torch.Generator()}
    # The square root of 0 has an infinite gradient, times 0 from the rectifier: not a number.
    rooted = nn.Sequential(network, Rooted())
    with pytest.raises(ClassifierError, match="gradient"):
        attack(rooted, images, rooted(images).argmax(dim=1), **arguments)
    network[4].bias.data[0] = float("nan")
    with pytest.raises(ClassifierError, match="NaN"):
        attack(network, images, labels, **arguments)


class Rooted(nn.Module):
    """Adds the square root of zero times each logit: the value stays, the gradient does not."""

    def forward(self, logits: Tensor) -> Tensor:
        return logits + (logits * 0).sqrt()


@pytest.mark.parametrize("attack", ATTACKS)
def test_no_images_give_no_images(attack) -> None:
    out = attack(small_network(), torch.empty(0, 1, 6, 6), torch.empty(0).long(), eps=0.1, generator=torch.Generator())
    assert out.shape == (0, 1, 6, 6)
