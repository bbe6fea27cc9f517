"""Pictures are written rounded, under names that every file system takes."""

import numpy as np
import torch
from PIL import Image

from audit.storage.pictures import file_names, folder_name, save_edit, save_image, save_mask


def test_names_are_safe_and_differ():
    names = file_names(("a/b c.png", "a/b_c.png", "ü" * 100))
    assert len(set(names)) == 3
    assert all(n.isascii() and "/" not in n and " " not in n for n in names)
    assert folder_name("my model: v2", 3) == "03-my_model_v2"


def test_levels_are_rounded_not_truncated(tmp_path):
    image = torch.tensor([[[0.0, 1.0, 0.999, 0.5 / 255 + 1e-4]]])
    save_image(image, tmp_path / "a" / "i.png")
    assert np.asarray(Image.open(tmp_path / "a" / "i.png")).tolist() == [[0, 255, 255, 1]]
    save_image(torch.zeros(3, 2, 2), tmp_path / "rgb.png")
    assert Image.open(tmp_path / "rgb.png").mode == "RGB"


def test_mask_and_edit(tmp_path):
    save_mask(torch.tensor([[True, False]]), tmp_path / "m.png")
    assert np.asarray(Image.open(tmp_path / "m.png")).tolist() == [[255, 0]]
    save_edit(torch.tensor([[0.25, 0.05, 1.0]]), 0.25, tmp_path / "e.png")
    assert np.asarray(Image.open(tmp_path / "e.png")).tolist() == [[255, 51, 255]]
