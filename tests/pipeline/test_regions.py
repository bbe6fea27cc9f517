"""Masks from data.masks reach the results as those of a manifest do."""

from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from audit.config import AuditConfig, parse_config
from audit.pipeline.runner import run_audit

NET = """
from torch import nn

def net():
    return nn.Sequential(nn.Conv2d(1, 2, 1, bias=False), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 2))
"""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Bright and dark images, masks of one half of every image, a manifest over both, and a network."""
    rng = np.random.default_rng(0)
    lines = ["image,label,split,mask"]
    for split, name, number in product(("val", "test"), ("bright", "dark"), range(8)):
        file = f"{split}/{name}/{number}.png"
        for kind in ("images", "masks"):
            (tmp_path / kind / file).parent.mkdir(parents=True, exist_ok=True)
        pixels = rng.normal(150 if name == "bright" else 80, 12, (32, 32))
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(tmp_path / "images" / file)
        mask = np.zeros((32, 32), dtype=np.uint8)
        mask[:16] = 255
        Image.fromarray(mask).save(tmp_path / "masks" / file)
        lines.append(f"images/{file},{name},{split},masks/{file}")
    (tmp_path / "set.csv").write_text("\n".join(lines))
    (tmp_path / "nets.py").write_text(NET)
    torch.save({"0.weight": torch.ones(2, 1, 1, 1), "3.weight": torch.tensor([[20.0, 20.0], [-20.0, -20.0]]),
                "3.bias": torch.tensor([-18.0, 18.0])}, tmp_path / "net.pt")  # fmt: skip
    return tmp_path


def test_a_folder_of_masks_gives_the_numbers_of_a_manifest(root: Path) -> None:
    def regions(data: dict[str, Any]) -> list[dict[str, Any]]:
        values = {
            "data": data,
            "reliance": {"n": 4},
            "robustness": {
                "n": 16, "eps": ["0.3"], "steps": 3, "trust": False,
                "vulnerability": {"eps": "0.3", "steps": 2, "batch_size": 8, "n": 16},
            },
            "classifiers": [{"name": "m", "factory": f"{root / 'nets.py'}:net", "checkpoint": str(root / "net.pt")}],
        }  # fmt: skip
        (model,) = run_audit(parse_config(AuditConfig, values, "the test"), root / "out", overwrite=True).models
        assert model.robust.vulnerability is not None
        return [region.model_dump() for region in model.robust.vulnerability.regions]

    expected = regions({"path": str(root / "set.csv")})
    assert [(region["region"], region["area"]) for region in expected] == [("region", 0.5)]
    assert regions({"path": str(root / "images"), "masks": str(root / "masks")}) == expected
