"""Networks that grow wider draw what they drew, and use what they gained."""

import pytest
import torch
from torch.testing import assert_close

from audit.errors import GeneratorError
from audit.generator.stylegan2.discriminator import Discriminator
from audit.generator.stylegan2.losses import logistic
from audit.generator.stylegan2.networks import Generator
from audit.training.generator.widen import widened


def pair(**changes):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Generator(8, 8, 32, 1, 256, 8, **changes), Discriminator(32, 1, 256, 8, **changes)


def test_a_wider_generator_draws_the_same_images():
    g, _ = pair()
    with torch.random.fork_rng():
        torch.manual_seed(1)
        wide = widened(g, None, 32)
    z = torch.randn(3, 8, generator=torch.Generator().manual_seed(2))
    assert wide.synthesis.b8.conv1.weight.shape == (32, 32, 3, 3)
    assert wide.synthesis.b32.conv1.weight.shape == g.synthesis.b32.conv1.weight.shape  # base / 32 is 8
    for noise in ("none", "const"):
        assert_close(wide(z, noise=noise), g(z, noise=noise), atol=1e-4, rtol=1e-4)


def test_a_wider_discriminator_agrees_where_images_do_not_deviate():
    _, d = pair()
    with torch.random.fork_rng():
        torch.manual_seed(1)
        wide = widened(d, 512, 32)
    one = torch.randn(1, 1, 32, 32, generator=torch.Generator().manual_seed(2))
    images = one.expand(4, -1, -1, -1)  # equal images: the minibatch deviation is that of rounding in both
    assert_close(wide(images), d(images), atol=1e-4, rtol=1e-4)


def test_both_rules_of_width_can_grow():
    g, _ = pair()
    with torch.random.fork_rng():
        torch.manual_seed(1)
        wide = widened(g, 512, 16)
    z = torch.randn(3, 8, generator=torch.Generator().manual_seed(2))
    assert [getattr(wide.synthesis, f"b{side}").conv1.weight.shape[0] for side in (4, 8, 16, 32)] == [16, 16, 16, 16]
    assert_close(wide(z), g(z), atol=1e-4, rtol=1e-4)
    assert widened(g, 256, 8) is widened(g, None, None) is g


def test_new_maps_learn():
    g, d = pair()
    with torch.random.fork_rng():
        torch.manual_seed(1)
        wide = widened(g, 256, 16)
    logistic(d(wide(torch.randn(4, 8, generator=torch.Generator().manual_seed(2))))).backward()
    unheard = wide.synthesis.b8.conv1.weight
    assert (unheard[:8, 8:] == 0).all()
    assert (unheard.grad[:8, 8:] != 0).any()


@pytest.mark.parametrize(
    ("changes", "to", "said"),
    [
        ({}, 4, "less than the 8"),
        ({"c_dim": 2}, 16, "Conditional"),
        ({"channel_widths": {4: 8, 8: 8, 16: 8, 32: 8}}, 16, "one by one"),
    ],
)
def test_what_cannot_be_widened_is_said(changes, to, said):
    for network in pair(**changes):
        with pytest.raises(GeneratorError, match=said):
            widened(network, None, to)
