"""One seed in the configuration, one independent `torch.Generator` per stage; the global generators are never touched.

Code of others draws from the global ones all the same: it is lent them, and they are put back after it.
"""

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def stage_seed(seed: int, stage: str) -> int:
    """Derive a 63-bit seed for `stage` from the audit's `seed`; equal inputs give equal outputs on every platform."""
    digest = hashlib.sha256(f"{seed}/{stage}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def stage_generator(seed: int, stage: str, device: torch.device | str = "cpu") -> torch.Generator:
    """Return a `torch.Generator` on `device` whose stream depends on `seed` and `stage` only."""
    return torch.Generator(device=device).manual_seed(stage_seed(seed, stage))


@contextmanager
def lent_randomness(device: torch.device, seed: int | None = None) -> Iterator[None]:
    """Put the global generators of torch (on the CPU and on `device`), NumPy and Python back as they were, afterwards.

    Within the block they are seeded with `seed`; None leaves them where they are.
    """
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002 - foreign code draws from this one
    try:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            if seed is not None:
                torch.default_generator.manual_seed(seed)
                if device.type == "cuda":
                    with torch.cuda.device(device):
                        torch.cuda.manual_seed(seed)
                np.random.seed(seed % 2**32)  # noqa: NPY002
                random.seed(seed)
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002
