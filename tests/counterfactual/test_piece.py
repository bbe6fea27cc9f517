"""PIECE: the order of its edits, and what they are drawn as."""

import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from audit.counterfactual.methods import choose_method
from audit.counterfactual.piece import before_the_flip
from audit.counterfactual.protocol import CalibratedClassifier, Counterfactuals, SearchNetworks


@dataclass(frozen=True)
class Known:
    """Features whose probabilities are what they are themselves."""

    expected: Tensor

    def probability(self, x: Tensor) -> Tensor:
        return x

    def is_high(self, x: Tensor, threshold: float) -> Tensor:
        return x < threshold


def subject_of(world, weights: list[float]) -> CalibratedClassifier:
    head = nn.Linear(4, 2)
    with torch.no_grad():
        head.weight.copy_(torch.tensor([[0.0] * 4, weights]))
        head.bias.copy_(torch.tensor([2.5, 0.0]))
    network = nn.Sequential(nn.AvgPool2d(8), nn.Flatten(), head).eval()
    known = Known(torch.zeros(4, dtype=torch.float64))
    calibration = dataclasses.replace(world.calibration, distributions=(known, known))
    return CalibratedClassifier(world.wrap(network), calibration, world.points)


def test_the_least_probable_are_replaced_first_and_the_last_before_the_flip_is_kept(world) -> None:
    subject = subject_of(world, [1.0, 1.0, 1.0, 1.0])
    x = torch.tensor([[0.04, 0.01, 0.03, 0.02]]).repeat(3, 1)
    new = torch.tensor([
        [1.0, 1.0, 1.0, 1.0],  # in the order 1, 3, 2, 0: the third replacement passes 2.5
        [torch.nan, 1.0, torch.nan, 1.0],  # two are not enough: both are kept
        [3.0, torch.nan, torch.nan, torch.nan],  # the only one flips at once: nothing is replaced
    ])  # fmt: skip
    sources = torch.zeros(3, dtype=torch.int64)
    kept = before_the_flip(subject, subject.classifier.head, x, new, sources, 1 - sources)
    expected = torch.tensor([[0.04, 1, 0.03, 1], [0.04, 1, 0.03, 1], [0.04, 0.01, 0.03, 0.02]])
    torch.testing.assert_close(kept, expected)


def test_the_semifactual_has_come_some_of_the_way(world) -> None:
    found = run(world)
    assert found.feature_target_flips is not None
    assert found.feature_target_flips.all()
    with torch.no_grad():
        before, half = (world.classifier(x).softmax(1) for x in (world.inversion.images, found.semifactuals))
    rows = torch.arange(6)
    assert torch.equal(half.argmax(1), world.sources)
    assert (half[rows, world.targets] >= before[rows, world.targets] - 1e-4).all()
    assert (half[rows, world.targets] > before[rows, world.targets] + 0.05).any()


def test_literal_and_standardised_distances_differ(world) -> None:
    assert not torch.equal(run(world, steps=5).images, run(world, steps=5, loss="raw").images)


def run(world, **changes: object) -> Counterfactuals:
    method = choose_method(world.config.model_copy(update={"method": "piece"} | changes), 0)
    networks = SearchNetworks(world.generator, None)
    return method.explain(world.subject, networks, world.asked, world.targets, lambda amount=1: None)
