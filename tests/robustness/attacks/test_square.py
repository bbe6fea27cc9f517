"""Square: windows inside the image, patterns of the paper, images inside ball and box, one search an image."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from audit.errors import ClassifierError, MetricError
from audit.robustness.attacks.ball import TOLERANCE, distance
from audit.robustness.attacks.square import HALVINGS, pattern, square_attack, window_sides


def network(classes: int = 3, channels: int = 1, size: int = 8, seed: int = 0) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(channels, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(),
            nn.Linear(8 * size * size, classes),
        ).eval()  # fmt: skip


def case(classes: int = 3, channels: int = 1, size: int = 8, n: int = 8) -> tuple[nn.Module, Tensor, Tensor]:
    model = network(classes, channels, size)
    images = torch.rand(n, channels, size, size, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return model, images, model(images).argmax(dim=1)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Counting(nn.Module):
    """Counts the images that pass through a network."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.batches: list[int] = []
        self.asked_for_gradient = False

    def forward(self, images: Tensor) -> Tensor:
        self.batches.append(len(images))
        logits: Tensor = self.inner(images)
        self.asked_for_gradient |= logits.requires_grad
        return logits


@settings(max_examples=25, deadline=None)
@given(
    eps=st.floats(0.001, 1.0),
    queries=st.integers(1, 80),
    channels=st.integers(1, 4),
    size=st.integers(1, 9),
    norm=st.sampled_from(["Linf", "L2"]),
    seed=st.integers(0, 10**6),
)
def test_images_stay_in_ball_and_box(eps: float, queries: int, channels: int, size: int, norm: str, seed: int) -> None:
    model, images, labels = case(3, channels, size, 4)
    found = square_attack(model, images, labels, eps=eps, norm=norm, queries=queries, generator=generator(seed))
    assert found.dtype == torch.float32
    assert found.shape == images.shape
    assert (distance(found, images, norm) <= eps + TOLERANCE).all()
    assert found.min() >= 0
    assert found.max() <= 1


@pytest.mark.parametrize("classes", [2, 3, 4, 9, 10, 1000])
@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_any_number_of_classes(classes: int, norm: str) -> None:
    model, images, labels = case(classes)
    eps = 0.3 if norm == "Linf" else 2.5
    found = square_attack(model, images, labels, eps=eps, norm=norm, queries=200, generator=generator())
    with torch.no_grad():
        fooled = model(found).argmax(dim=1) != labels
    assert fooled.float().mean() > 0.5


@settings(max_examples=25, deadline=None)
@given(queries=st.integers(1, 400), height=st.integers(1, 40), width=st.integers(1, 40), p=st.floats(0.01, 1.0))
def test_sides_fall_and_fit_the_image(queries: int, height: int, width: int, p: float) -> None:
    for norm in ("Linf", "L2"):
        sides = window_sides(queries, p, height, width, norm)
        assert len(sides) == queries
        assert all(1 <= side <= min(height, width) for side in sides)
        assert sides == sorted(sides, reverse=True)


def test_schedule_is_that_of_the_paper_at_its_own_number_of_queries() -> None:
    sides = window_sides(10_000, 0.8, 224, 224, "Linf")
    for power, (first, last) in enumerate(zip((0, *(h + 1 for h in HALVINGS)), (*HALVINGS, 9_999), strict=True)):
        expected = max(round(math.sqrt(0.8 / 2**power) * 224), 1)
        assert sides[first] == sides[last] == expected


@settings(max_examples=25, deadline=None)
@given(side=st.integers(1, 30))
def test_pattern_has_one_hill_up_and_one_down(side: int) -> None:
    weights = pattern(side)
    assert weights.norm() == pytest.approx(1, abs=1e-5)
    assert (weights[:, : side // 2] > 0).all()
    assert (weights[:, side // 2 :] < 0).all()


def test_pattern_by_hand() -> None:
    # Eq. 2 for a 3 x 1 hill, half = 1: 1/4 at the ends and 1/4 + 1 in the middle; for 3 x 2 the second column is it.
    weights = pattern(3)
    expected = torch.tensor([[0.25, -0.25, -0.25], [1.25, -0.25, -1.25], [0.25, -0.25, -0.25]])
    assert torch.allclose(weights, expected / expected.norm(), atol=1e-6)


def test_neither_global_random_state_nor_gradients_nor_mode_are_touched() -> None:
    model, images, labels = case()
    counted = Counting(model)
    counted.train()
    model[1].eval()
    state, statistics = torch.get_rng_state(), model[1].running_mean.clone()
    square_attack(counted, images, labels, eps=0.05, queries=20, generator=generator())
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(model[1].running_mean, statistics)
    assert counted.training
    assert model[0].training
    assert not model[1].training
    assert not counted.asked_for_gradient


def test_queries_are_counted_and_fooled_images_leave() -> None:
    model, images, labels = case(n=16)
    counted = Counting(model)
    square_attack(counted, images, labels, eps=0.1, queries=60, generator=generator())
    assert len(counted.batches) <= 1 + 60
    assert counted.batches[0] == counted.batches[1] == 16
    assert counted.batches[-1] < 16
    assert counted.batches == sorted(counted.batches, reverse=True)
    stubborn = Counting(network(seed=3))
    with torch.no_grad():
        predicted = stubborn.inner(images).argmax(dim=1)
    square_attack(stubborn, images, predicted, eps=1e-6, queries=60, generator=generator())
    assert len(stubborn.batches) == 1 + 60


def test_misclassified_images_are_returned_as_they_are_and_cost_nothing() -> None:
    model, images, labels = case()
    counted = Counting(model)
    found = square_attack(counted, images, (labels + 1) % 3, eps=0.3, generator=generator())
    assert torch.equal(found, images)
    assert counted.batches == [8]


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_an_image_does_not_depend_on_when_its_neighbours_leave(norm: str) -> None:
    model, images, labels = case(n=6)
    eps = 0.08 if norm == "Linf" else 0.6
    whole = square_attack(model, images, labels, eps=eps, norm=norm, queries=150, generator=generator(4))
    again = square_attack(model, images, labels, eps=eps, norm=norm, queries=150, generator=generator(4))
    assert torch.equal(whole, again)
    wrong = labels.clone()
    wrong[1:] = (labels[1:] + 1) % 3
    alone = square_attack(model, images, wrong, eps=eps, norm=norm, queries=150, generator=generator(4))
    assert torch.allclose(alone[0], whole[0], atol=1e-5)


def test_more_queries_never_leave_a_smaller_margin() -> None:
    model, images, labels = case(n=8)
    margins = []
    for queries in (1, 30, 300):
        # The schedule depends on the number of queries, so means are compared and not images.
        found = square_attack(model, images, labels, eps=0.03, queries=queries, generator=generator())
        with torch.no_grad():
            logits = model(found)
        other = logits.scatter(1, labels[:, None], -torch.inf).amax(dim=1)
        margins.append(float((other - logits.gather(1, labels[:, None])[:, 0]).mean()))
    assert margins == sorted(margins)
    assert margins[-1] > margins[0]


def test_a_half_precision_network_stays_in_the_ball() -> None:
    model, images, labels = case()

    class Half(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = model.bfloat16()

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x.bfloat16())

    half = Half()
    labels = half(images).argmax(dim=1)
    found = square_attack(half, images.bfloat16(), labels, eps=4 / 255, queries=40, generator=generator())
    assert found.dtype == torch.float32
    assert (distance(found, images.bfloat16().float(), "Linf") <= 4 / 255 + TOLERANCE).all()


def test_what_cannot_be_attacked_is_one_sentence() -> None:
    model, images, labels = case()
    with pytest.raises(MetricError, match="at least 1 query"):
        square_attack(model, images, labels, eps=0.1, queries=0, generator=generator())
    with pytest.raises(MetricError, match="p_init"):
        square_attack(model, images, labels, eps=0.1, p_init=0.0, generator=generator())
    with pytest.raises(MetricError, match="eps is 2"):
        square_attack(model, images, labels, eps=2.0, generator=generator())
    with torch.no_grad():
        model[-1].weight[0, 0] = torch.nan
    with pytest.raises(ClassifierError, match="NaN"):
        square_attack(model, images, labels, eps=0.1, generator=generator())


def test_an_empty_batch_stays_empty() -> None:
    model, images, labels = case()
    assert square_attack(model, images[:0], labels[:0], eps=0.1, generator=generator()).shape == (0, 1, 8, 8)
