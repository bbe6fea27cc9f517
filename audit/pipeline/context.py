"""What every stage of one audit is given."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from audit.config import AuditConfig
from audit.runtime.environment import Stopwatch
from audit.runtime.seeds import stage_generator
from audit.storage.cache import Entry, Store


@dataclass(frozen=True)
class Context:
    """The configuration and its folder, where the audit runs, what it keeps its results in, and the clock.

    `store` is None where nothing is cached.
    """

    config: AuditConfig
    base: Path
    device: torch.device
    store: Store | None
    watch: Stopwatch

    def rng(self, stage: str) -> torch.Generator:
        """Return random numbers that depend on the audit's seed and `stage` only."""
        return stage_generator(self.config.seed, stage)

    def cached(self, stage: str, compute: Callable[[], Entry], **inputs: object) -> Entry:
        """Return what `compute` does, read from the cache where it holds the stage's result for these `inputs`."""
        if self.store is None:
            return compute()
        return self.store.get_or_compute(self.store.key(stage, **inputs), compute)
