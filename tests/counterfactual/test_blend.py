"""Blends of drawn images into others."""

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from audit.counterfactual.blend import around_visible, blended, drawing, with_blend
from audit.generator.held import Held


class Bright:
    """Draws one colour: the code's number, and what its weights add."""

    num_ws = 1

    def images(self, ws: Tensor, deltas: Held) -> Tensor:
        assert set(deltas) == {"bias"}
        colour = ws[:, 0, 0] + deltas.once("twice", lambda: 2 * deltas["bias"])
        return colour.view(-1, 1, 1, 1).expand(-1, 1, 8, 8)


@given(st.integers(0, 10_000))
def test_a_blend_lies_between_and_is_either_at_the_ends(seed: int) -> None:
    rng = torch.Generator().manual_seed(seed)
    one, other = torch.rand(2, 3, 2, 8, 8, generator=rng)
    masks = torch.rand(3, 1, 8, 8, generator=rng)
    found = blended(one, other, masks)
    assert (found >= one.minimum(other) - 1e-6).all()
    assert (found <= one.maximum(other) + 1e-6).all()
    torch.testing.assert_close(blended(one, other, torch.ones_like(masks)), other)
    assert torch.equal(blended(one, other, torch.zeros_like(masks)), one)


def test_a_mask_is_what_is_seen_and_what_lies_close_by() -> None:
    edits = torch.full((3, 2, 64, 64), 3 / 255)
    edits[0, 1, 20, 30] = -5 / 255  # in one channel, and darker
    edits[2] = 0
    masks = around_visible(edits)
    assert masks.shape == (3, 1, 64, 64)
    assert (masks[0, 0, 19:22, 29:32] == 1).all()
    rows, columns = (masks[0, 0] > 0).nonzero(as_tuple=True)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (17, 23, 27, 33)  # two pixels and one that is soft
    assert 0 < masks[0, 0, 17, 27] < masks[0, 0, 17, 30] < 1
    assert (masks[1:] == 1).all()  # where nothing is seen there is nothing to choose


def test_a_mask_reaches_as_far_in_a_larger_picture() -> None:
    edits = torch.zeros(1, 1, 64, 64)
    edits[..., 24:32, 24:32] = 0.1
    small, large = around_visible(edits), around_visible(edits.repeat_interleave(4, 2).repeat_interleave(4, 3))
    assert abs(float(small.mean() - large.mean())) < 0.005


def test_blends_are_drawn_by_image_where_the_additions_say_so() -> None:
    generator, bias = Bright(), {"bias": torch.tensor([0.0, 0.1, 0.2])}
    assert drawing(generator, bias) is generator  # type: ignore[arg-type]
    base = torch.zeros(3, 1, 8, 8)
    masks = torch.tensor([0.0, 0.5, 1.0]).view(3, 1, 1, 1).expand_as(base)
    additions = Held(with_blend(bias, base, masks))
    blends = drawing(generator, additions)  # type: ignore[arg-type]
    assert blends.num_ws == 1
    codes = torch.ones(3, 1, 1)
    torch.testing.assert_close(blends.images(codes, additions)[:, 0, 0, 0], torch.tensor([0.0, 0.6, 1.4]))
    last = torch.tensor([2, 1])
    torch.testing.assert_close(blends.images(codes[last], additions.select(last))[:, 0, 7, 7], torch.tensor([1.4, 0.6]))
