"""Blends of drawn images into others."""

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from audit.counterfactual.blend import blended, drawing, with_blend
from audit.generator.held import Held


class Bright:
    """Draws one colour: the code's number, and what its weights add."""

    num_ws = 1

    def images(self, ws: Tensor, deltas: Held) -> Tensor:
        assert set(deltas) == {"bias"}
        colour = ws[:, 0, 0] + deltas.once("twice", lambda: 2 * deltas["bias"])
        return colour.view(-1, 1, 1, 1).expand(-1, 1, 8, 8)


@given(st.integers(0, 10_000), st.integers(1, 9))
def test_a_blend_lies_between_and_is_either_at_the_ends(seed: int, cells: int) -> None:
    rng = torch.Generator().manual_seed(seed)
    one, other = torch.rand(2, 3, 2, 8, 8, generator=rng)
    shares = torch.rand(3, 1, cells, cells, generator=rng)
    found = blended(one, other, shares)
    assert (found >= one.minimum(other) - 1e-6).all()
    assert (found <= one.maximum(other) + 1e-6).all()
    torch.testing.assert_close(blended(one, other, torch.ones_like(shares)), other)
    assert torch.equal(blended(one, other, torch.zeros_like(shares)), one)


def test_a_cell_reaches_no_farther_than_its_neighbours() -> None:
    shares = torch.zeros(1, 1, 4, 4)
    shares[..., 0, 0] = 1
    found = blended(torch.zeros(1, 1, 16, 16), torch.ones(1, 1, 16, 16), shares)[0, 0]
    assert (found[:2, :2] == 1).all()
    assert (found[:6, :6] > 0).all()
    assert (found[6:] == 0).all()
    assert (found[:, 6:] == 0).all()


def test_blends_are_drawn_by_image_where_the_additions_say_so() -> None:
    generator, bias = Bright(), {"bias": torch.tensor([0.0, 0.1, 0.2])}
    assert drawing(generator, bias) is generator  # type: ignore[arg-type]
    base, shares = torch.zeros(3, 1, 8, 8), torch.tensor([0.0, 0.5, 1.0]).view(3, 1, 1, 1)
    additions = Held(with_blend(bias, base, shares))
    blends = drawing(generator, additions)  # type: ignore[arg-type]
    assert blends.num_ws == 1
    codes = torch.ones(3, 1, 1)
    torch.testing.assert_close(blends.images(codes, additions)[:, 0, 0, 0], torch.tensor([0.0, 0.6, 1.4]))
    last = torch.tensor([2, 1])
    torch.testing.assert_close(blends.images(codes[last], additions.select(last))[:, 0, 7, 7], torch.tensor([1.4, 0.6]))
