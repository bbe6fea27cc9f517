"""Shapes, ranges and options of the networks beyond the reference vectors."""

import pytest
import torch
from torch.testing import assert_close

from audit.generator.networks import (
    Discriminator,
    Generator,
    average_parameters,
    minibatch_stddev,
    network_range,
    path_lengths,
    pixels,
)


def small(**changes):
    settings = {"z_dim": 8, "w_dim": 8, "resolution": 16, "channel_base": 64, "channel_max": 8} | changes
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Generator(**settings)


@pytest.mark.parametrize(("resolution", "channels"), [(16, 1), (32, 3), (64, 2)])
def test_shapes_follow_resolution_and_channels(resolution, channels):
    g = small(resolution=resolution, channels=channels)
    d = Discriminator(resolution, channels, channel_base=64, channel_max=8)
    z = torch.randn(3, 8, generator=torch.Generator().manual_seed(1))
    images = g(z)
    assert images.shape == (3, channels, resolution, resolution)
    assert d(images).shape == (3, 1)
    assert g.num_ws == 2 * resolution.bit_length() - 4


def test_conditional_networks_use_the_class():
    g, d = small(c_dim=3), Discriminator(16, 1, 64, 8, c_dim=3)
    z, c = torch.ones(2, 8), torch.eye(3)[:2]
    images = g(z, c=c)
    assert not torch.allclose(images[0], images[1])
    assert d(images, c).shape == (2, 1)
    for network, argument in ((g, z), (d, images)):
        with pytest.raises(ValueError, match="class vector"):
            network(argument)


def test_images_keep_the_pixel_contract_and_gradients():
    g = small()
    ws = g.mapping(torch.randn(2, 8, generator=torch.Generator().manual_seed(2))).detach() * 3
    ws.requires_grad_()
    images = g.images(ws)
    assert images.dtype == torch.float32
    assert images.min() >= 0
    assert images.max() <= 1
    images.mean().backward()
    assert ws.grad.abs().sum() > 0


def test_noise_modes():
    g = small()
    with torch.no_grad():
        for block in (g.synthesis.b8, g.synthesis.b16):
            block.conv1.noise_strength.fill_(0.5)
    ws = g.mapping(torch.ones(1, 8))
    rng = torch.Generator().manual_seed(0)
    first = g.synthesis(ws, "random", generator=rng)
    second = g.synthesis(ws, "random", generator=rng)
    assert not torch.allclose(first, second)
    assert_close(g.synthesis(ws), g.synthesis(ws))
    with pytest.raises(ValueError, match="noise"):
        g.synthesis(ws, "loud")


def test_deltas_change_one_image_only():
    g = small()
    ws = g.mapping(torch.randn(3, 8, generator=torch.Generator().manual_seed(3)))
    delta = torch.zeros(3, *g.synthesis.b8.conv1.weight.shape)
    delta[1] = 0.3
    plain, tuned = g.images(ws), g.images(ws, deltas={"b8.conv1.weight": delta})
    assert_close(tuned[[0, 2]], plain[[0, 2]], atol=1e-5, rtol=0)
    assert not torch.allclose(tuned[1], plain[1], atol=1e-3)


def test_minibatch_stddev_of_identical_images_is_zero():
    x = torch.randn(1, 4, 4, 4, generator=torch.Generator().manual_seed(4)).expand(6, -1, -1, -1)
    out = minibatch_stddev(x, 4)  # 6 images: the largest group is 3
    assert out.shape == (6, 5, 4, 4)
    assert out[:, 4].abs().max() < 1e-3


def test_path_length_of_a_linear_map_is_its_scale():
    rng = torch.Generator().manual_seed(5)
    ws = torch.randn(4, 1, 256, generator=rng, requires_grad=True)
    images = 3 * ws.reshape(4, 1, 16, 16)
    lengths = path_lengths(images, ws, rng)
    # The noise has variance 1 / (H W), so the expected length is 3 sqrt(256) / 16 = 3.
    assert_close(lengths, torch.full((4,), 3.0), atol=0.6, rtol=0)


def test_ranges_are_inverse_and_average_moves():
    images = torch.rand(2, 1, 4, 4, generator=torch.Generator().manual_seed(6))
    assert_close(pixels(network_range(images)), images)
    a, b = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
    expected = a.weight.detach() * 0.75 + b.weight.detach() * 0.25
    average_parameters(a, b, 0.75)
    assert_close(a.weight.detach(), expected)
