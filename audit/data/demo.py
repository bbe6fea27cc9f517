"""The configuration of the demonstration, shipped in the package."""

from importlib.resources import files
from pathlib import Path


def demo_config() -> Path:
    """Path of the shipped `demo.toml`, which a user may copy and change."""
    return Path(str(files("audit.data") / "demo.toml"))
