"""Additions that many images are drawn with: the same images and gradients, to the bit, for less work."""

import torch
from torch import Tensor

from audit.generator.held import Held
from audit.generator.stylegan2.networks import Generator


def small() -> tuple[Generator, Tensor, dict[str, Tensor]]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        generator = Generator(z_dim=8, w_dim=8, resolution=16, channel_base=128, channel_max=8).eval()
    generator.requires_grad_(False)
    rng = torch.Generator().manual_seed(1)
    codes = generator.random_codes(3, rng)[:, None].repeat(1, generator.num_ws, 1)
    additions = {name: 0.1 * torch.randn(3, *shape, generator=rng) for name, shape in generator.tunable.items()}
    return generator, codes, additions


def drawn(generator: Generator, codes: Tensor, deltas: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    leaf = codes.clone().requires_grad_()
    images = generator.images(leaf, deltas)
    (gradient,) = torch.autograd.grad(images.square().sum(), leaf)
    return images, gradient


def test_images_and_gradients_are_those_of_the_additions_as_they_are() -> None:
    generator, codes, additions = small()
    held = Held(additions)
    with torch.no_grad():
        first = generator.images(codes, held)  # what is kept without a gradient serves where there is one
    images, gradient = drawn(generator, codes, additions)
    assert torch.equal(first, images)
    for found, expected in zip(drawn(generator, codes, held), (images, gradient), strict=True):
        assert torch.equal(found, expected)


def test_what_follows_from_the_additions_is_computed_once() -> None:
    generator, codes, additions = small()
    held, asked = Held(additions), []
    generator.images(codes, held)
    for name in additions:
        held.once(name, lambda name=name: asked.append(name))
    assert asked == []


def test_those_that_are_selected_keep_what_was_computed() -> None:
    generator, codes, additions = small()
    held, some, asked = Held(additions), torch.tensor([2, 0]), []
    generator.images(codes, held)
    chosen = held.select(some)
    chosen.once("b16.conv1.weight", lambda: asked.append("computed"))
    assert asked == []
    few = {name: value[some] for name, value in additions.items()}
    assert torch.equal(generator.images(codes[some], chosen), generator.images(codes[some], few))
