"""Heads on the maps of a frozen network: gradients reach the images and the heads, never the network."""

import pytest
import torch

from audit.embeddings.domain import DomainEncoder
from audit.generator.stylegan2.networks import network_range
from audit.metrics.perceptual import unit_channels
from audit.training.generator.frozen import FeatureDiscriminator

CPU = torch.device("cpu")


@pytest.fixture
def network():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield DomainEncoder("chest", (1, 16, 16), (8, 16), 8).eval().requires_grad_(False)


def test_only_the_heads_are_trained_and_kept(network):
    judge = FeatureDiscriminator(network, 1, 16, CPU)
    assert all(name.startswith("heads.") for name in judge.state_dict())
    assert judge.name == "chest"
    before = {name: value.clone() for name, value in network.state_dict().items()}
    images = torch.randn(4, 1, 16, 16).requires_grad_()
    logits = judge(images)
    assert logits.shape == (4, 2)
    logits.sum().backward()
    assert images.grad.abs().sum() > 0
    assert all(p.grad is not None for p in judge.parameters())
    assert all(p.grad is None for p in network.parameters())
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())


def test_heads_see_the_networks_maps_of_unit_variance(network):
    judge, images = FeatureDiscriminator(network, 1, 16, CPU), torch.rand(2, 1, 16, 16)
    seen = []
    for head in judge.heads:
        head.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    judge(network_range(images))
    for shown, unit in zip(seen, unit_channels(network.maps(images)), strict=True):
        torch.testing.assert_close(shown, unit * unit.shape[1] ** 0.5)
        assert shown.square().mean().item() == pytest.approx(1, abs=1e-3)


def test_images_are_enlarged_to_the_side_that_the_network_is_shown(network):
    judge = FeatureDiscriminator(network, 1, 16, CPU)
    small = torch.randn(2, 1, 8, 8)
    large = torch.nn.functional.interpolate(small, (16, 16), mode="bilinear", align_corners=False)
    torch.testing.assert_close(judge(small), judge(large))
