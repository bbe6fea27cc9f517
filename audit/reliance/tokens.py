"""Tokens: things that stand on an image and say nothing about its class, drawn at a size and pasted in a corner.

DeGrave et al. 2021 (Nature Machine Intelligence 3, pp. 610-619) and Zech et al. 2018 found classifiers of radiographs
that decide by side markers and text; rulers do the same on photographs of skin (Narla et al. 2018). A drawn token has
one colour: white on a dark place and black on a bright one, so that it is seen on every image.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from audit.data.colour import luma
from audit.data.images import DECODING_ERRORS
from audit.errors import ConfigError

CORNERS = ("top left", "top right", "bottom left", "bottom right")
MARGIN = 0.03
"""Distance of a token from the image's edges, as a share of the shorter side."""
FINE = 8
"""Tokens are drawn this many times as large and then reduced, so that their edges are smooth."""


@dataclass(frozen=True)
class Token:
    """A small picture: how much of the image it hides, `alpha` `[h, w]`, and its `colour` `[3, h, w]`, both in [0, 1].

    Without a colour it is white on a dark place and black on a bright one.
    """

    alpha: Tensor
    colour: Tensor | None = None


Draw = Callable[[int, str], Token]
"""Draws a token of a longer side of so many pixels for a place."""


def paste(images: Tensor, token: Token, top: int, left: int) -> Tensor:
    """Return `images` `[N, C, H, W]` with the token's upper left pixel at row `top` and column `left`.

    Every pixel becomes `(1 - alpha) * image + alpha * colour`; what hangs over the image's edge is cut off.
    """
    height, width = images.shape[-2:]
    rows, columns = _within(top, token.alpha.shape[0], height), _within(left, token.alpha.shape[1], width)
    inside = slice(rows.start - top, rows.stop - top), slice(columns.start - left, columns.stop - left)
    under, alpha = images[..., rows, columns], token.alpha[inside].to(images)
    if token.colour is None:
        bright = under.mean(dim=(1, 2, 3), keepdim=True) > 0.5
        colour = torch.where(bright, 0.0, 1.0).to(images)
    else:
        colour = _in_channels(token.colour[:, *inside].to(images), images.shape[1])
    pasted = images.clone()
    pasted[..., rows, columns] = (1 - alpha) * under + alpha * colour
    return pasted


def _within(start: int, length: int, side: int) -> slice:
    """Return what a token that reaches `length` pixels from `start` covers of a `side`."""
    return slice(min(max(start, 0), side), min(max(start + length, 0), side))


def _in_channels(colour: Tensor, channels: int) -> Tensor:
    return colour if channels == 3 else luma(colour[None])[0].expand(channels, -1, -1)


def paste_in(images: Tensor, size: float, place: str, draw: Draw, margin: float = MARGIN) -> Tensor:
    """Return `images` with a token in the corner `place` ("top left"), or in the "centre".

    Its longer side is the share `size` of the image's shorter side, and it lies `margin` of that away from the edges.
    """
    height, width = images.shape[-2:]
    side = min(height, width)
    token = draw(max(round(size * side), 1), place)
    h, w = token.alpha.shape
    away = round(margin * side)
    if place == "centre":
        return paste(images, token, (height - h) // 2, (width - w) // 2)
    top = away if place.startswith("top") else height - away - h
    return paste(images, token, top, away if place.endswith("left") else width - away - w)


def _reduced(canvas: Image.Image) -> Token:
    """Return what is drawn on a canvas `FINE` times too large, as a token without a colour."""
    size = max(canvas.width // FINE, 1), max(canvas.height // FINE, 1)
    small = canvas.resize(size, Image.Resampling.BOX)
    return Token(torch.from_numpy(np.asarray(small, dtype=np.float32) / 255))


def _canvas(width: int, height: int) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    canvas = Image.new("L", (width * FINE, height * FINE), 0)
    return canvas, ImageDraw.Draw(canvas)


def _written(words: str, size: int, weight: float) -> Token:
    """Write `words` so that the longer side of their box is `size` pixels; `weight` thickens the strokes."""
    height = 100
    font = ImageFont.load_default(height)
    stroke = round(weight * height)
    left, top, right, bottom = font.getbbox(words, stroke_width=stroke)
    canvas = Image.new("L", (round(right - left), round(bottom - top)), 0)
    ImageDraw.Draw(canvas).text((-left, -top), words, fill=255, font=font, stroke_width=stroke)
    scale = size / max(canvas.size)
    fitted = canvas.resize([max(round(side * scale), 1) for side in canvas.size], Image.Resampling.BOX)
    return Token(torch.from_numpy(np.asarray(fitted, dtype=np.float32) / 255))


def side_marker(size: int, place: str) -> Token:
    """A lead letter: R on the image's left, L on its right, as the patient's sides lie on a radiograph."""
    return _written("R" if place.endswith("left") else "L", size, 0.06)


def text(size: int, place: str) -> Token:
    """A line as devices burn it into their images."""
    return _written("ID 20417", size, 0.03)


def ruler(size: int, place: str) -> Token:
    """Ten divisions along the side; every fifth tick is longer."""
    width = max(round(0.15 * size), 2)
    canvas, draw = _canvas(width, size)
    left = place.endswith("left")
    for tick in range(11):
        reach = width * FINE * (1.0 if tick % 5 == 0 else 0.55)
        y = tick / 10 * (size * FINE - 1)
        thick = max(0.02 * size * FINE, FINE / 2)
        ends = (0, reach) if left else (width * FINE - reach, width * FINE)
        draw.rectangle((ends[0], y - thick / 2, ends[1], y + thick / 2), fill=255)
    return _reduced(canvas)


def device(size: int, place: str) -> Token:
    """A pacemaker as it looks on a radiograph: a rounded case, and a lead that leaves it downwards."""
    canvas, draw = _canvas(size, size)
    whole = size * FINE
    draw.rounded_rectangle((0.1 * whole, 0, 0.9 * whole, 0.6 * whole), radius=0.25 * whole, fill=255)
    thick = max(round(0.06 * whole), FINE // 2)
    draw.arc((0.2 * whole, 0.1 * whole, 0.9 * whole, 0.98 * whole), start=20, end=160, fill=255, width=thick)
    return _reduced(canvas)


def border(images: Tensor, size: float, white: bool) -> Tensor:
    """Return `images` with a frame whose width is the share `size` of the shorter side."""
    width = max(round(size * min(images.shape[-2:])), 1)
    framed = torch.full_like(images, float(white))
    framed[..., width:-width, width:-width] = images[..., width:-width, width:-width]
    return framed


def read_token(path: Path) -> Draw:
    """Return what draws the picture of a PNG at any size, with its own colours and transparency; raises ConfigError."""
    try:
        with Image.open(path, formats=("PNG",)) as file:
            picture = file.convert("RGBA")
    except DECODING_ERRORS as error:
        reason = "it does not exist" if isinstance(error, FileNotFoundError) else "it is no PNG that can be read"
        raise ConfigError(f"Token file '{path}' cannot be read ({reason}): check reliance.tokens.") from None

    def draw(size: int, place: str) -> Token:
        scale = size / max(picture.size)
        # Premultiplied, so that the colour of what is invisible does not bleed into the edges.
        fitted = picture.convert("RGBa").resize(
            [max(round(side * scale), 1) for side in picture.size],
            Image.Resampling.BOX if scale < 1 else Image.Resampling.BILINEAR,
        )
        values = torch.from_numpy(np.asarray(fitted.convert("RGBA"), dtype=np.float32) / 255).permute(2, 0, 1)
        return Token(values[3], values[:3])

    return draw
