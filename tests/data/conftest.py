"""Small real files to load: images whose brightness tells their class, and manifests over them."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

SaveImage = Callable[..., Path]


@pytest.fixture
def save_image(tmp_path: Path) -> SaveImage:
    """Return `save(name, value=0, size=(8, 8), mode="L")`, which writes a flat image below tmp_path."""

    def save(name: str, value: int = 0, size: tuple[int, int] = (8, 8), mode: str = "L") -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        shape = size if mode == "L" else (*size, 3)
        Image.fromarray(np.full(shape, value, dtype=np.uint8)).save(path)
        return path

    return save


@pytest.fixture
def manifest(tmp_path: Path, save_image: SaveImage) -> Callable[[str], Path]:
    """Return a function that writes manifest.csv beside the images a.png, b.png, c.png, d.png and a mask m.png."""
    for index, name in enumerate("abcd"):
        save_image(f"images/{name}.png", value=10 * index)
    mask = np.zeros((8, 8), dtype=np.uint8)
    mask[2:4, 3:6] = 128
    mask[3, 3] = 255
    Image.fromarray(mask).save(tmp_path / "images" / "m.png")

    def write(text: str) -> Path:
        path = tmp_path / "manifest.csv"
        path.write_text(text, encoding="utf-8")
        return path

    return write
