"""Tokens: pasting is exact, every token is seen on every image, and a picture of the user's keeps its own colours."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from audit.errors import ConfigError
from audit.reliance import tokens
from audit.reliance.tokens import CORNERS, Token, paste, paste_in, read_token


def test_pasting_mixes_token_and_image_by_alpha_and_leaves_the_rest():
    images = torch.rand(2, 3, 8, 9, generator=torch.Generator().manual_seed(0))
    token = Token(torch.tensor([[0.0, 0.25], [1.0, 0.5]]), torch.rand(3, 2, 2))
    pasted = paste(images, token, 3, 4)
    expected = (1 - token.alpha) * images[..., 3:5, 4:6] + token.alpha * token.colour
    torch.testing.assert_close(pasted[..., 3:5, 4:6], expected, rtol=0, atol=0)
    pasted[..., 3:5, 4:6] = images[..., 3:5, 4:6]
    assert torch.equal(pasted, images)


@settings(max_examples=30, deadline=None)
@given(top=st.integers(-6, 12), left=st.integers(-6, 12))
def test_what_hangs_over_the_edge_is_cut_off(top: int, left: int):
    pasted = paste(torch.zeros(1, 1, 9, 7), Token(torch.ones(4, 3), torch.ones(3, 4, 3)), top, left)
    wide = torch.zeros(30, 30)
    wide[10 + top : 14 + top, 10 + left : 13 + left] = 1
    assert torch.equal(pasted[0, 0], wide[10:19, 10:17])


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("draw", [tokens.side_marker, tokens.text, tokens.ruler, tokens.device])
@pytest.mark.parametrize("shade", [0.0, 1.0])
def test_a_drawn_token_is_seen_on_dark_and_bright_images_in_its_corner(draw: tokens.Draw, channels: int, shade: float):
    images = torch.full((1, channels, 64, 80), shade)
    for place in CORNERS:
        changed = (paste_in(images, 0.2, place, draw) - images).abs().amax(dim=(0, 1))
        assert float(changed.max()) > 0.5
        rows, columns = changed.nonzero(as_tuple=True)
        assert bool(((rows < 32) == place.startswith("top")).all())
        assert bool(((columns < 40) == place.endswith("left")).all())


@pytest.mark.parametrize("draw", [tokens.side_marker, tokens.text, tokens.ruler, tokens.device])
def test_the_longer_side_of_a_token_is_as_asked(draw: tokens.Draw):
    for size in (3, 8, 20, 50):
        token = draw(size, "top left")
        assert max(token.alpha.shape) == size
        assert 0 <= float(token.alpha.min()) <= float(token.alpha.max()) <= 1


def test_a_border_has_the_width_asked_and_leaves_the_inside():
    images = torch.full((1, 1, 40, 60), 0.5)
    framed = tokens.border(images, 0.1, white=True)
    assert torch.equal(framed[..., 4:-4, 4:-4], images[..., 4:-4, 4:-4])
    assert float(framed.mean()) == pytest.approx((0.5 * 32 * 52 + 40 * 60 - 32 * 52) / 2400)


@pytest.fixture
def stamp(tmp_path: Path) -> Path:
    """A red square on a transparent ground."""
    pixels = np.zeros((16, 8, 4), dtype=np.uint8)
    pixels[4:12, 2:6] = (255, 0, 0, 255)
    Image.fromarray(pixels).save(tmp_path / "stamp.png")
    return tmp_path / "stamp.png"


def test_a_png_keeps_its_colours_and_lets_the_image_show_through(stamp: Path):
    images = torch.full((1, 3, 32, 32), 0.25)
    pasted = paste_in(images, 0.5, "centre", read_token(stamp))
    assert torch.equal(pasted[0, :, 16, 16], torch.tensor([1.0, 0.0, 0.0]))
    assert torch.equal(pasted[0, :, 9, 16], torch.full((3,), 0.25))
    grey = paste_in(images[:, :1], 0.5, "centre", read_token(stamp))
    assert float(grey[0, 0, 16, 16]) == pytest.approx(0.299)


def test_a_png_at_another_size_has_no_dark_rim(stamp: Path):
    for size in (7, 24):
        token = read_token(stamp)(size, "top left")
        assert token.colour is not None
        rim = (token.alpha > 0.1) & (token.alpha < 0.95)
        assert bool((token.colour[0][rim] > 0.9).all())


def test_a_file_that_is_no_picture_is_refused_with_a_sentence(tmp_path: Path):
    (tmp_path / "no.png").write_text("no picture")
    for name, why in (("no.png", "it is no PNG that can be read"), ("none.png", "it does not exist")):
        with pytest.raises(ConfigError, match=why):
            read_token(tmp_path / name)
