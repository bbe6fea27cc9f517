"""Minimal distances against linear classifiers, where they are known, and against PGD; the median's interval."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from audit.data import phantom
from audit.errors import MetricError
from audit.robustness.attacks.ball import ascent, project
from audit.robustness.attacks.pgd import pgd_attack
from audit.robustness.distance import median_distance, minimal_distances

NORMS = ["Linf", "L2"]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def linear_case(classes: int, centre: float = 0.5) -> tuple[nn.Module, Tensor, Tensor]:
    rng = generator(5)
    layer = nn.Linear(36, classes)
    with torch.no_grad():
        layer.weight.copy_(torch.randn(classes, 36, generator=rng))
        layer.bias.copy_(-layer.weight.sum(dim=1) * centre)
    images = centre + 0.1 * (torch.rand(10, 1, 6, 6, generator=rng) - 0.5)
    model = nn.Sequential(nn.Flatten(), layer)
    with torch.no_grad():
        return model, images, model(images).argmax(dim=1)


def known_distances(model: nn.Module, images: Tensor, labels: Tensor, norm: str) -> Tensor:
    """The margin over the dual norm of the slope, smallest over the wrong classes."""
    weight = model[1].weight.detach()
    with torch.no_grad():
        logits = model(images)
    slope = weight[labels][:, None] - weight[None]
    size = slope.abs().sum(dim=2) if norm == "Linf" else slope.norm(dim=2)
    known = (logits.gather(1, labels[:, None]) - logits) / size
    return known.scatter(1, labels[:, None], torch.inf).amin(dim=1)


@pytest.mark.parametrize("classes", [2, 3, 10])
@pytest.mark.parametrize("norm", NORMS)
def test_distances_to_a_linear_classifier_are_the_known_ones(classes: int, norm: str) -> None:
    model, images, labels = linear_case(classes)
    known = known_distances(model, images, labels, norm)
    found, _ = minimal_distances(
        model, images, labels, norm=norm, largest=1.0, bisections=8, steps=10, generator=generator()
    )
    assert (found >= known * 0.999 - 1e-6).all()
    assert (found <= known * 1.02 + 1e-6).all()


@pytest.mark.parametrize("norm", NORMS)
def test_bisection_alone_finds_the_known_distances(norm: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing(classifier: nn.Module, images: Tensor, labels: Tensor, **_: object) -> tuple[Tensor, Tensor]:
        return images.clone(), torch.full((len(images),), torch.inf)

    monkeypatch.setattr("audit.robustness.distance.fab_minimal", nothing)
    # Two classes: with more, an ascent that is told no target may climb to one that is not the nearest.
    model, images, labels = linear_case(2)
    known = known_distances(model, images, labels, norm)
    found, _ = minimal_distances(
        model, images, labels, norm=norm, largest=0.4, bisections=9, steps=20, generator=generator()
    )
    assert (found >= known * 0.999 - 1e-6).all()
    assert (found <= known * 1.02 + 1e-6).all()


def test_misclassified_is_0_and_what_stands_is_infinite() -> None:
    model, images, labels = linear_case(3)
    known = known_distances(model, images, labels, "Linf")
    largest = float(known.sort().values[4:6].mean())
    given = labels.clone()
    given[0] = (labels[0] + 1) % 3
    found, _ = minimal_distances(
        model, images, given, norm="Linf", largest=largest, bisections=4, steps=10, generator=generator()
    )
    assert found[0] == 0
    assert torch.equal(torch.isinf(found)[1:], (known > largest)[1:])
    assert (found[torch.isfinite(found)] <= largest).all()


def test_a_classifier_with_no_gradient_is_an_answer_and_not_an_error() -> None:
    model, images, labels = linear_case(3)
    with torch.no_grad():
        model[1].weight.zero_()
        model[1].bias.copy_(torch.tensor([1.0, 0.0, 0.0]))
    found, _ = minimal_distances(
        model, images, torch.zeros_like(labels), norm="Linf", largest=0.5, bisections=2, steps=3, generator=generator()
    )
    assert torch.isinf(found).all()


@pytest.fixture(scope="module")
def fitted() -> tuple[nn.Module, Tensor, Tensor]:
    """A small network fitted for a second to phantoms of 16x16 pixels, and images it has not seen."""
    drawn = phantom.sample(150, 0)
    images = functional.interpolate(drawn.images, size=16, mode="area")
    labels = torch.as_tensor(drawn.labels)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Conv2d(1, 8, 3, 2, 1), nn.GELU(), nn.Conv2d(8, 16, 3, 2, 1), nn.GELU(), nn.Flatten(), nn.Linear(256, 3)
        )
        optimiser = torch.optim.Adam(model.parameters(), 5e-3)
        for _ in range(40):
            optimiser.zero_grad()
            functional.cross_entropy(model(images[:120]), labels[:120]).backward()
            optimiser.step()
    return model.eval(), images[120:], labels[120:]


@pytest.mark.parametrize("norm", NORMS)
def test_accuracy_from_distances_is_not_above_robust_accuracy_under_pgd(
    fitted: tuple[nn.Module, Tensor, Tensor], norm: str
) -> None:
    model, images, labels = fitted
    largest = 0.3 if norm == "Linf" else 3.0
    found, _ = minimal_distances(
        model, images, labels, norm=norm, largest=largest, bisections=6, steps=15, generator=generator()
    )
    assert 0 < float(found[found > 0].median()) < largest
    for eps in (largest / 60, largest / 20, largest / 10, largest / 3):
        attacked = pgd_attack(model, images, labels, eps=eps, norm=norm, steps=40, generator=generator())
        with torch.no_grad():
            standing = int((model(attacked).argmax(dim=1) == labels).sum())
        assert int((found > eps).sum()) <= standing + 1


def test_repeats_itself_and_touches_nothing(fitted: tuple[nn.Module, Tensor, Tensor]) -> None:
    model, images, labels = fitted
    model.train()
    state = torch.get_rng_state()
    first, second = (
        minimal_distances(
            model, images[:6], labels[:6], norm="Linf", largest=0.2, bisections=3, steps=4, generator=generator(3)
        )
        for _ in range(2)
    )
    assert all(map(torch.equal, first, second))
    assert torch.equal(torch.get_rng_state(), state)
    assert model.training
    assert all(parameter.requires_grad for parameter in model.parameters())
    model.eval()


def test_what_cannot_be_measured_is_one_sentence() -> None:
    model, images, labels = linear_case(3)
    with pytest.raises(MetricError, match="at least 1 bisection"):
        minimal_distances(model, images, labels, norm="L2", largest=1.0, bisections=0, steps=3, generator=generator())
    with pytest.raises(MetricError, match="eps is 2"):
        minimal_distances(model, images, labels, norm="Linf", largest=2.0, bisections=1, steps=3, generator=generator())


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), norm=st.sampled_from(NORMS))
def test_a_radius_for_each_image_is_as_one_after_the_other(seed: int, norm: str) -> None:
    rng = generator(seed)
    images, candidates = torch.rand(4, 2, 3, 3, generator=rng), torch.randn(4, 2, 3, 3, generator=rng)
    radii = torch.rand(4, generator=rng) + 0.01
    projected, risen = project(candidates, images, radii, norm), ascent(candidates, radii, norm)
    for i, radius in enumerate(radii.tolist()):
        one = slice(i, i + 1)
        assert torch.allclose(projected[one], project(candidates[one], images[one], radius, norm), atol=1e-6)
        assert torch.allclose(risen[one], ascent(candidates[one], radius, norm), atol=1e-6)


def test_median_by_hand() -> None:
    # Ranks of the table in Conover 1999: 2 and 9 of 10, 40 and 61 of 100.
    ten = median_distance(torch.arange(1, 11) / 10, 2.0)
    assert (ten.value, ten.low, ten.high, ten.n) == pytest.approx((0.5, 0.2, 0.9, 10))
    hundred = median_distance(torch.arange(100, 0, -1) / 100, 2.0)
    assert (hundred.value, hundred.low, hundred.high) == pytest.approx((0.5, 0.4, 0.61))


def test_median_of_censored_and_of_few_distances() -> None:
    inf = math.inf
    half = median_distance(torch.tensor([0.1] * 5 + [inf] * 5), 0.3)
    assert (half.value, half.low, half.high) == (pytest.approx(0.1), pytest.approx(0.1), None)
    most = median_distance(torch.tensor([0.1] * 4 + [inf] * 6), 0.3)
    assert (most.value, most.low, most.high) == (None, pytest.approx(0.1), None)
    everything = median_distance(torch.full((50,), inf), 0.3)
    assert (everything.value, everything.low, everything.high) == (None, 0.3, None)
    beyond = median_distance(torch.full((50,), 0.31), 0.3)
    assert beyond == everything
    few = median_distance(torch.tensor([0.1, 0.2, 0.25]), 0.3)
    assert (few.value, few.low, few.high, few.n) == (pytest.approx(0.2), 0.0, None, 3)
    assert median_distance(torch.empty(0), 0.3).value is None
    with pytest.raises(MetricError, match="not a number"):
        median_distance(torch.tensor([0.1, torch.nan]), 0.3)


@pytest.mark.parametrize("n", [8, 25])
def test_interval_of_the_median_covers_as_promised(n: int) -> None:
    draws = np.random.default_rng(0).exponential(size=(800, n))
    intervals = [median_distance(torch.from_numpy(row), 100.0) for row in draws]
    covered = np.mean([interval.low <= math.log(2) <= interval.high for interval in intervals])
    # 800 draws: four standard errors are 0.03.
    assert 0.95 - 0.03 <= covered <= 1
