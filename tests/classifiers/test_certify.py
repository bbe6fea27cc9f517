"""The certificate's own checks: gradients that lie are found, sound ones pass, and what cannot be tried says why."""

import pytest
import torch
from torch import Tensor, nn

from audit.classifiers.certify import compiled_check, gradient_check
from audit.classifiers.classifier import Classifier
from audit.classifiers.gradients import Exact, compare_slopes
from audit.results import Notice


class Network(nn.Module):
    """A small network whose pixels pass through `before`."""

    def __init__(self, before: nn.Module | None = None) -> None:
        super().__init__()
        self.before = before or nn.Identity()
        self.body = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(4 * 9, 3))

    def forward(self, images: Tensor) -> Tensor:
        return self.body(self.before(images))


class StraightThrough(nn.Module):
    """Rounds pixels and passes gradients as if it did not."""

    def forward(self, images: Tensor) -> Tensor:
        return images + (torch.round(images * 4) / 4 - images).detach()


class CutOff(nn.Module):
    """Adds a part of the image through which no gradient leads back."""

    def forward(self, images: Tensor) -> Tensor:
        return images + 3 * images.detach()


class Float32Only(nn.Module):
    """Insists on float32, as networks with tables of their own do."""

    def forward(self, images: Tensor) -> Tensor:
        if images.dtype != torch.float32:
            raise TypeError("float32 only")
        return images.sin()


def classifier(before: nn.Module | None = None) -> Classifier:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = Network(before).eval()
    return Classifier(network, name="it", class_names=("a", "b", "c"), input_shape=(1, 8, 8), mean=(0.5,), std=(0.25,))


def images(n: int = 3) -> Tensor:
    return torch.rand(n, 1, 8, 8, generator=torch.Generator().manual_seed(1))


def test_a_sound_gradient_passes_and_leaves_the_classifier_as_it_was() -> None:
    it = classifier().train()
    state = torch.get_rng_state()
    found = gradient_check(it, images())
    assert found.passed
    assert found.value is not None
    assert found.value < 1e-4
    assert "float64" in found.finding
    assert it.training
    assert next(it.parameters()).dtype == torch.float32
    assert torch.equal(torch.get_rng_state(), state)


def test_a_network_that_takes_float32_alone_is_compared_in_it() -> None:
    found = gradient_check(classifier(Float32Only()), images())
    assert found.passed
    assert found.limit == 0.05
    assert "in float32" in found.finding


@pytest.mark.parametrize("before", [StraightThrough(), CutOff()])
def test_gradients_that_lead_elsewhere_are_found(before: nn.Module) -> None:
    found = gradient_check(classifier(before), images())
    assert found.passed is False
    assert "does not lead where it says" in found.finding


def test_a_missing_part_of_the_gradient_is_as_large_as_it_is() -> None:
    weight = torch.linspace(-1, 1, 64).reshape(1, 8, 8)

    def whole(x: Tensor) -> Tensor:
        return (x * weight.to(x)).flatten(1).sum(1)

    def part(x: Tensor) -> Tensor:
        return whole(x) * 0.25 + whole(x.detach()) * 0.75

    def asked(score: object) -> float:
        rng = torch.Generator().manual_seed(0)
        return compare_slopes(score, Exact(whole, torch.float64), images(), rng).error  # type: ignore[arg-type]

    assert asked(whole) < 1e-6
    assert asked(part) == pytest.approx(0.75, abs=1e-3)


def test_a_network_that_draws_is_not_tried() -> None:
    it = classifier()
    it.notices = (Notice(subject="it", kind="random-forward", text="It draws."),)
    for found in (gradient_check(it, images()), compiled_check(it, images(), "on")):
        assert found.passed is None
        assert "draws at random" in found.finding


def test_compiling_is_left_out_where_nobody_asks_or_nothing_compiles(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "on a GPU only" in compiled_check(classifier(), images(), "auto").finding
    assert compiled_check(classifier(), images(), "off").passed is None
    monkeypatch.setattr("shutil.which", lambda _: None)
    assert "no C++ compiler" in compiled_check(classifier(), images(), "on").finding


@pytest.mark.slow
def test_a_compiled_network_answers_alike() -> None:
    found = compiled_check(classifier(), images(), "on")
    if found.passed is None:
        pytest.skip(found.finding)
    assert found.passed
