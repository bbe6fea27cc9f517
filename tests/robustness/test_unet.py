"""The U-Net: any size and number of channels, no image depends on its neighbours, neutral before training."""

import pytest
import torch
from torch import nn

from audit.errors import MetricError
from audit.robustness.unet import UNet


def network(channels: int) -> UNet:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = UNet(channels)
        nn.init.normal_(made.score.weight)
    return made


@pytest.mark.parametrize(("channels", "height", "width"), [(1, 16, 16), (2, 17, 31), (3, 28, 28), (4, 40, 19)])
def test_any_size_and_channels(channels: int, height: int, width: int) -> None:
    images = torch.rand(3, channels, height, width, generator=torch.Generator().manual_seed(1))
    made = network(channels)
    scores = made(images)
    assert scores.shape == (3, height, width)
    assert scores.std() > 0
    assert torch.allclose(made(images[1:2]), scores[1:2], atol=1e-5)


def test_a_fresh_network_has_no_preference_but_learns() -> None:
    made = UNet(1)
    scores = made(torch.rand(2, 1, 16, 16))
    assert (scores == 0).all()
    (scores * torch.rand(2, 16, 16)).sum().backward()
    assert made.score.weight.grad.abs().sum() > 0


def test_refuses_small_images() -> None:
    with pytest.raises(MetricError, match="at least 16x16"):
        UNet(1)(torch.rand(1, 1, 15, 20))
