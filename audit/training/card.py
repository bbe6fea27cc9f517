"""The card beside shipped or trained weights: data, seed, steps, scores, time and versions, as JSON."""

import hashlib
import importlib.metadata
import json
import os
import platform
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

PACKAGES = ("spruce-audit", "torch", "timm", "numpy")


def versions() -> dict[str, str]:
    """Return the versions of the packages that decide the numbers; a package run from its source tree is 'source'."""
    out = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            out[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            out[package] = "source"
    return out


def save_weights(tensors: dict[str, Tensor], metadata: dict[str, str], path: Path) -> str:
    """Write a safetensors file in one move, so that a kill leaves the old one or the new one; returns its SHA-256."""
    partial = path.with_name(path.name + ".partial")
    save_file({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, str(partial), metadata=metadata)
    digest = hashlib.sha256(partial.read_bytes()).hexdigest()
    os.replace(partial, path)
    return digest


def write_card(weights: Path, content: dict[str, Any]) -> Path:
    """Write `content` with the versions as the JSON card beside `weights`; returns the card's path."""
    path = weights.with_suffix(".json")
    partial = path.with_name(path.name + ".partial")
    text = json.dumps({**content, "versions": versions()}, indent=2, allow_nan=False)
    partial.write_text(text + "\n", encoding="utf-8")
    os.replace(partial, path)
    return path
