"""What every stage of one audit is given."""

from dataclasses import dataclass, field
from pathlib import Path
from uuid import uuid4

import torch

from audit.classifiers.classifier import Classifier
from audit.classifiers.identity import stages_of
from audit.config import AuditConfig
from audit.runtime.engine import Engine
from audit.runtime.environment import Stopwatch
from audit.runtime.seeds import stage_generator
from audit.storage.cache import Store
from audit.storage.stages import Stages


@dataclass(frozen=True, eq=False)
class Context:
    """The configuration and its folder, where the audit runs, what it keeps its results in, and the clock.

    `store` is None where nothing is cached, and `engine` where nothing is computed elsewhere. `run`
    tells audits apart.
    """

    config: AuditConfig
    base: Path
    device: torch.device
    store: Store | None
    watch: Stopwatch
    engine: Engine | None = None
    run: str = field(default_factory=lambda: uuid4().hex)

    def rng(self, stage: str) -> torch.Generator:
        """Return random numbers that depend on the audit's seed and `stage` only."""
        return stage_generator(self.config.seed, stage)

    @property
    def stages(self) -> Stages:
        """Where results are kept, for work that no classifier has a part in."""
        return Stages(self.store, {"torch": torch.__version__, "device": self.device.type})

    def of(self, classifier: Classifier) -> Stages:
        """Where results are kept that are of `classifier`."""
        return stages_of(self.stages, classifier)
