"""A grid of images that a generator draws, and its PNG file."""

import io
import math
from pathlib import Path

import torch
from PIL.PngImagePlugin import PngInfo
from torch import Tensor
from torchvision.transforms.functional import to_pil_image

from audit.generator.stylegan2.networks import Generator
from audit.runtime.seeds import stage_generator
from audit.storage.files import atomic_write_bytes

PNG_MARK = "spruce-audit generator"
"""By which our pictures are known: no other file is written over."""


@torch.no_grad()
def sample_grid(
    g: Generator, n: int, columns: int, seed: int, truncation: float = 1.0, label: int | None = None
) -> Tensor:
    """Draw `n` images and tile them in rows: `[C, rows * R, columns * R]` in [0, 1] on the generator's device.

    Places that the last row has left are white. A conditional generator draws the class `label`, or its classes in
    turn. The same seed gives the same z. One row is drawn at a time.
    """
    device = g.mean_code.device
    z = torch.randn(n, g.z_dim, generator=stage_generator(seed, "grid")).to(device)
    classes = torch.arange(n, device=device) % max(g.c_dim, 1) if label is None else torch.full((n,), label).to(device)
    grid = torch.ones(g.channels, -(-n // columns) * g.resolution, columns * g.resolution, device=device)
    for row, (codes, kinds) in enumerate(zip(z.split(columns), classes.split(columns), strict=True)):
        c = torch.eye(g.c_dim, device=device)[kinds] if g.c_dim else None
        line = torch.cat(list(g.images(g.mapping(codes, truncation, c))), dim=2)
        grid[:, row * g.resolution : (row + 1) * g.resolution, : line.shape[2]] = line
    return grid


def square_columns(n: int) -> int:
    """Columns of the squarest grid of `n` places."""
    return math.isqrt(n - 1) + 1


def save_grid(grid: Tensor, path: Path) -> None:
    """Write `[C, H, W]` in [0, 1] as an 8-bit PNG, whole or not at all; 2 and 4 channels end with transparency."""
    buffer = io.BytesIO()
    maker = PngInfo()
    maker.add_text("Software", PNG_MARK)
    to_pil_image((grid * 255).round().byte().cpu()).save(buffer, "PNG", pnginfo=maker)
    atomic_write_bytes(path, buffer.getvalue())
