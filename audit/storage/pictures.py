"""The images beside `results.json`: queries, inversions, masks, counterfactuals and edit maps as PNG files."""

import re
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor


def _safe_name(name: str) -> str:
    """Turn an id or a name into a file name that every file system takes."""
    return re.sub(r"[^A-Za-z0-9._-]+", "_", name)[-60:]


def file_names(ids: tuple[str, ...]) -> list[str]:
    """Turn ids into file names that every file system takes; a position keeps them apart."""
    return [f"{i:04d}-{_safe_name(name)}" for i, name in enumerate(ids)]


def folder_name(model: str, position: int) -> str:
    """Folder of a model's pictures."""
    return f"{position:02d}-{_safe_name(model[:60])}"


def save_image(image: Tensor, path: Path) -> None:
    """Write `[C, H, W]` in [0, 1] with 1 or 3 channels as an 8-bit PNG, rounded to the nearest level."""
    levels = (image.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(levels[..., 0] if levels.shape[2] == 1 else levels).save(path)


def save_mask(mask: Tensor, path: Path) -> None:
    """Write a boolean mask `[H, W]` as PNG, white inside."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(mask.numpy().astype(np.uint8) * 255).save(path)


def save_edit(edit: Tensor, white: float, path: Path) -> None:
    """Write an edit map `[H, W]` as PNG whose white is a change of `white`."""
    save_image((edit / white)[None], path)
