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
    g: Generator, rows: int, columns: int, seed: int, truncation: float = 1.0, label: int | None = None,
    n: int | None = None,
) -> Tensor:  # fmt: skip
    """Draw images and tile them: `[C, rows * R, columns * R]` in [0, 1] on the generator's device.

    The first `n` places (default: all) are filled, the rest is white. A conditional generator draws the class `label`,
    or its classes in turn. The same seed gives the same z. One row is drawn at a time.
    """
    n = rows * columns if n is None else n
    device = g.mean_code.device
    z = torch.randn(n, g.z_dim, generator=stage_generator(seed, "grid")).to(device)
    classes = torch.arange(n, device=device) % max(g.c_dim, 1) if label is None else torch.full((n,), label).to(device)
    grid = torch.ones(g.channels, rows * g.resolution, columns * g.resolution, device=device)
    for row, (codes, kinds) in enumerate(zip(z.split(columns), classes.split(columns), strict=True)):
        c = torch.eye(g.c_dim, device=device)[kinds] if g.c_dim else None
        line = torch.cat(list(g.images(g.mapping(codes, truncation, c))), dim=2)
        grid[:, row * g.resolution : (row + 1) * g.resolution, : line.shape[2]] = line
    return grid


def grid_size(n: int) -> tuple[int, int]:
    """Rows and columns of the squarest grid of `n` places."""
    columns = math.isqrt(n - 1) + 1
    return -(-n // columns), columns


def save_grid(grid: Tensor, path: Path) -> None:
    """Write `[C, H, W]` in [0, 1] as an 8-bit PNG, whole or not at all; 2 and 4 channels end with transparency."""
    buffer = io.BytesIO()
    maker = PngInfo()
    maker.add_text("Software", PNG_MARK)
    to_pil_image((grid * 255).round().byte().cpu()).save(buffer, "PNG", pnginfo=maker)
    atomic_write_bytes(path, buffer.getvalue())
