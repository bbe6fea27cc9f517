"""A tiny generator and images that it can nearly draw."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from audit.generator.stylegan2.discriminator import Discriminator
from audit.generator.stylegan2.networks import Generator


@pytest.fixture(scope="session")
def generator() -> Generator:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = Generator(z_dim=8, w_dim=8, resolution=16, channels=1, channel_base=128, channel_max=8)
    for name, parameter in network.synthesis.named_parameters():
        if name.endswith("torgb.weight"):  # keeps the images of random weights inside [0, 1], where there is a gradient
            parameter.data.mul_(0.2)
    return network.eval().requires_grad_(False)


@pytest.fixture(scope="session")
def discriminator() -> Discriminator:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        network = Discriminator(resolution=16, channels=1, channel_base=128, channel_max=8)
    return network.eval().requires_grad_(False)


@pytest.fixture(scope="session")
def draw_images(generator: Generator) -> Callable[[int, int], Tensor]:
    """`draw_images(n, seed)`: images of random codes with a little smooth change that no code can draw."""

    def draw(n: int, seed: int) -> Tensor:
        rng = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            images = generator.images(generator.mapping(torch.randn(n, generator.z_dim, generator=rng)))
            coarse = torch.randn(n, 1, 4, 4, generator=rng) * 0.02
            change = torch.nn.functional.interpolate(coarse, size=16, mode="bilinear", align_corners=False)
        return (images + change).clamp(0, 1)

    return draw
