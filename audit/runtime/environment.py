"""What an audit was run with: versions, device, peak memory, and the wall time of every stage."""

import platform
import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version

import torch

from audit.errors import ConfigError
from audit.results import Environment

PACKAGES = ("spruce-audit", "torch", "torchvision", "timm", "numpy", "scipy", "scikit-learn", "safetensors")


def choose_device(name: str) -> torch.device:
    """Return the device called `name`; 'auto' is a GPU where there is one. Raises ConfigError if it cannot be used."""
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError):
        raise ConfigError(f'Device \'{name}\' cannot be used here: set device = "auto" or "cpu".') from None
    return device


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide the numbers; 'source' for one that is not installed."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "source"
    return found


def peak_memory_mb() -> float:
    """Largest resident memory of this process so far, in MiB (Linux counts kibibytes, macOS bytes)."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


class Stopwatch:
    """Wall time by stage."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Add the time of the block to stage `name`."""
        began = time.monotonic()
        try:
            yield
        finally:
            self.seconds[name] = round(self.seconds.get(name, 0.0) + time.monotonic() - began, 3)

    def environment(self, device: torch.device) -> Environment:
        """Everything a reader needs to know where the numbers come from."""
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
        return Environment(
            versions=versions(),
            device=name,
            platform=platform.platform(),
            seconds=dict(self.seconds),
            peak_memory_mb=round(peak_memory_mb(), 1),
        )
