"""One seed in the configuration, one independent `torch.Generator` per stage; the global RNG is never touched."""

import hashlib

import torch


def stage_seed(seed: int, stage: str) -> int:
    """Derive a 63-bit seed for `stage` from the audit's `seed`; equal inputs give equal outputs on every platform."""
    digest = hashlib.sha256(f"{seed}/{stage}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def stage_generator(seed: int, stage: str, device: torch.device | str = "cpu") -> torch.Generator:
    """Return a `torch.Generator` on `device` whose stream depends on `seed` and `stage` only."""
    return torch.Generator(device=device).manual_seed(stage_seed(seed, stage))
