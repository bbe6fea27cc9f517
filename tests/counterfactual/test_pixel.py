"""The pixel-space edit where the smallest one is known: a linear classifier."""

import pytest
import torch
from torch import Tensor, nn

from audit.config import CounterfactualConfig
from audit.counterfactual.methods import choose_method
from audit.counterfactual.pixel import within_l1
from audit.counterfactual.protocol import CalibratedClassifier, InvertedQueries, SearchNetworks


def smallest_change(image: Tensor, weights: Tensor, lacking: float) -> float:
    """Size of the smallest change inside [0, 1] that adds `lacking` to `weights @ image`: the steepest pixels first."""
    room = torch.where(weights > 0, 1 - image, image)
    total = 0.0
    for pixel in weights.abs().argsort(descending=True).tolist():
        step = min(float(room[pixel]), lacking / float(weights[pixel].abs()))
        total, lacking = total + step, lacking - step * float(weights[pixel].abs())
        if lacking <= 1e-9:
            return total
    raise AssertionError("no image of the box is enough")


@pytest.mark.parametrize("confidence", [0.6, 0.95])
def test_of_a_linear_classifier_the_smallest_change_is_found(world, confidence: float) -> None:
    linear = nn.Linear(256, 2)
    with torch.no_grad():
        linear.weight.copy_(torch.randn(2, 256, generator=torch.Generator().manual_seed(1)))
        weights = linear.weight[1] - linear.weight[0]
        linear.bias.copy_(torch.tensor([0.0, -3.0 - float(weights @ world.inversion.images.flatten(1).mean(0))]))
    subject = CalibratedClassifier(
        world.wrap(nn.Sequential(nn.Flatten(), linear).eval()), world.calibration, torch.tensor([0.5, confidence])
    )
    targets = torch.ones(len(world.queries), dtype=torch.int64)
    queries = InvertedQueries(world.queries, 1 - targets, world.inversion)
    method = choose_method(CounterfactualConfig(method="pixel"), 0)
    found = method.explain(subject, SearchNetworks(world.generator, None), queries, targets, lambda amount=1: None)
    assert found.reached.all()
    goal = torch.logit(torch.tensor(confidence)).item()
    for image, edited in zip(world.inversion.images.flatten(1), found.images.flatten(1), strict=True):
        lacking = max(0.0, goal - float((weights @ image + linear.bias[1]).detach()))
        best = smallest_change(image, weights.detach(), lacking)
        assert best * 0.999 <= float((edited - image).abs().sum()) <= best * 1.15


def test_the_projection_is_the_nearest_point_of_the_ball() -> None:
    generator = torch.Generator().manual_seed(0)
    offsets = torch.randn(5, 1, 4, 4, generator=generator)
    sizes = offsets.abs().flatten(1).sum(1)
    radius = torch.tensor([0.0, 1.0, float(sizes[2]) + 1, torch.inf, 3.0])
    inside = within_l1(offsets, radius)
    assert (inside.abs().flatten(1).sum(1) <= radius + 1e-5).all()
    assert torch.equal(inside[2:4], offsets[2:4])
    assert not inside[0].any()
    for row in (1, 4):
        near = (inside[row] - offsets[row]).norm()
        for _ in range(50):
            other = torch.randn(1, 4, 4, generator=generator)
            other *= radius[row] / other.abs().sum()
            between = torch.lerp(inside[row], other, 0.1)
            assert (between - offsets[row]).norm() >= near - 1e-6
