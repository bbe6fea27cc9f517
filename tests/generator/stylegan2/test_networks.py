"""Shapes, ranges and options of the networks beyond the reference vectors."""

import json

import pytest
import torch
from torch.testing import assert_close

from audit.errors import GeneratorError
from audit.generator.stylegan2.discriminator import Discriminator, minibatch_stddev
from audit.generator.stylegan2.losses import path_lengths
from audit.generator.stylegan2.networks import Generator, network_range, pixels


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
        with pytest.raises(GeneratorError, match="class vector"):
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


def test_ranges_are_inverse():
    images = torch.rand(2, 1, 4, 4, generator=torch.Generator().manual_seed(6))
    assert_close(pixels(network_range(images)), images)


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("resolution", [16, 32, 64, 128, 256, 512, 1024])
def test_every_size_is_drawn_and_judged(resolution, channels):
    c_dim = channels % 2 * 2  # conditional and not, turn about
    g = small(resolution=resolution, channels=channels, channel_base=2 * resolution, channel_max=4, c_dim=c_dim)
    d = Discriminator(resolution, channels, 2 * resolution, 4, c_dim=c_dim)
    c = torch.eye(2)[:1] if c_dim else None
    with torch.no_grad():
        images = g(torch.ones(1, 8), c=c)
        assert images.shape == (1, channels, resolution, resolution)
        assert images.isfinite().all()
        assert d(images, c).shape == (1, 1)
    assert g.num_ws == 2 * resolution.bit_length() - 4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"resolution": 8}, "8x8.*16 to 1024"),
        ({"resolution": 48}, "48x48"),
        ({"resolution": 2048}, "2048x2048"),
        ({"channels": 0}, "0 channels.*1 to 4"),
        ({"channels": 5}, "5 channels"),
        ({"channel_base": 8}, "raise channel_base"),
        ({"channel_widths": {4: 8, 8: 8}}, "each of"),
        ({"channel_widths": {4: 8, 8: 8, 16: 0}}, "at least 1"),
        ({"channel_widths": {4: 8, 8: 8, 16: 4, 32: 4}}, "each of"),
        ({"channel_widths": 8}, "each of"),
    ],
)
def test_sizes_that_no_network_has_are_refused(change, message):
    with pytest.raises(GeneratorError, match=message):
        small(**change)
    with pytest.raises(GeneratorError, match=message):
        Discriminator(**({"resolution": 16, "channel_base": 64, "channel_max": 8} | change))


def test_widths_given_one_by_one_survive_settings_as_json():
    widths = {4: 6, 8: 3, 16: 5}
    for first in (small(channel_widths=widths), Discriminator(16, channel_widths=widths)):
        settings = json.loads(json.dumps(first.settings))
        second = type(first)(**settings)
        assert second.settings == first.settings
        second.load_state_dict(first.state_dict())
    assert small(channel_widths=widths).synthesis.b16.conv0.weight.shape == (5, 3, 3, 3)
    assert "channel_widths" not in small().settings


def test_half_precision_agrees_and_trains():
    g = small(resolution=32, channel_base=512, channel_max=16)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        judge = Discriminator(32, 1, 512, 16)
    ws = g.mapping(torch.randn(4, 8, generator=torch.Generator().manual_seed(1))).detach()
    images = g.synthesis(ws).detach()
    logits = judge(images).detach()
    with torch.autocast("cpu", torch.bfloat16):
        halves, half_logits = g.synthesis(ws), judge(images)
        judge(halves).sum().backward()
    assert halves.dtype == torch.float32
    assert 0 < (images - halves).abs().max() < 0.15 * images.std()
    assert (logits - half_logits).abs().max() < 0.15 * (1 + logits.abs().max())
    for parameter in (*g.synthesis.b32.parameters(), *judge.parameters()):
        assert parameter.dtype == torch.float32
        assert parameter.grad is not None
        assert parameter.grad.isfinite().all()


def test_half_precision_clamps_what_would_overflow():
    g = small()
    with torch.no_grad():
        g.synthesis.b16.conv1.weight.mul_(1e4)
        g.synthesis.b16.conv1.bias.fill_(1e6)
    ws = g.mapping(torch.ones(1, 8))
    assert g.synthesis(ws).abs().max() > 1e4
    with torch.autocast("cpu", torch.float16):
        halves = g.synthesis(ws)
    assert halves.isfinite().all()
    assert halves.abs().max() < 1e4


@pytest.mark.parametrize("noise", ["const", "random"])
def test_path_lengths_and_r1_have_gradients_that_agree_with_differences(noise):
    g, d = small().double(), Discriminator(16, 1, 64, 8).double()
    with torch.no_grad():
        g.synthesis.b16.conv1.noise_strength.fill_(0.3)
    ws = g.mapping(torch.randn(2, 8, generator=torch.Generator().manual_seed(7)).double()).detach().requires_grad_()

    def lengths():
        rng = torch.Generator().manual_seed(8)
        return path_lengths(g.synthesis(ws, noise, generator=rng), ws, rng).sum()

    def penalty():
        images = g.synthesis(ws.detach()).detach().requires_grad_()
        return torch.autograd.grad(d(images).sum(), images, create_graph=True)[0].square().sum()

    for value, weight in ((lengths, g.synthesis.b8.conv0.weight), (penalty, d.b16.conv1.weight)):
        (gradient,) = torch.autograd.grad(value(), weight)
        direction = torch.randn(weight.shape, generator=torch.Generator().manual_seed(9)).double()
        # A leaky ReLU whose input passes 0 within the step changes the gradient: the step is hardly above rounding.
        step, values = 1e-7, []
        for sign in (1, -1):
            with torch.no_grad():
                weight.add_(direction, alpha=sign * step)
            values.append(value().detach())
            with torch.no_grad():
                weight.sub_(direction, alpha=sign * step)
        assert_close((values[0] - values[1]) / (2 * step), (gradient * direction).sum(), rtol=1e-4, atol=1e-7)


def test_maps_lie_channels_last_for_one_channel_too():
    g, d = small(), Discriminator(16, 1, 64, 8)
    seen = []
    for layer in (g.synthesis.b8.conv0, g.synthesis.b16.conv1, d.b16.conv0, d.b16.conv1):
        layer.register_forward_hook(lambda module, inputs, out: seen.append(out))
    d(g(torch.ones(2, 8)))
    assert len(seen) == 4
    assert all(out.is_contiguous(memory_format=torch.channels_last) for out in seen)
