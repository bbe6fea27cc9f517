"""What is attacked, how far, and from which draws: the same for every model."""

from dataclasses import dataclass

import torch

from audit.config import eps_value
from audit.data.audit_set import AuditSet
from audit.errors import MetricError
from audit.results import attack_path
from audit.robustness.attacks.ball import Norm
from audit.runtime.seeds import stage_generator


@dataclass(frozen=True)
class Ball:
    """One attack at one radius: what it is called in the results, and how large it is in pixel units of `norm`."""

    attack: str
    norm: Norm
    radius: str
    extent: str | None = None
    """What bounds an attack that no norm bounds; it stands in the place of the radius."""

    @property
    def eps(self) -> float:
        return eps_value(self.radius) if self.extent is None else 1.0

    @property
    def metric(self) -> str:
        """Path of the number in the results."""
        return f"{attack_path(self.attack, self.norm)}.{self.radius}"


def attacked_rows(dataset: AuditSet, n: int, seed: int) -> AuditSet:
    """Return the first `n` images of a seeded order: the same ones for every model and radius."""
    order = torch.randperm(len(dataset), generator=stage_generator(seed, "robustness/order"))
    chosen = dataset.select(order[:n])
    if len(chosen) == 0:
        raise MetricError(f"There is no image of {dataset.source} to attack: check data.audit_split.")
    return chosen


def stream(attack: str, norm: Norm, eps: float, first: int) -> str:
    """Return the name of the random draws of an attack on the batch whose first image is `first`.

    A stream a batch: were it shared, a fooled model's fewer draws would shift the next batch's starts.
    """
    return f"robustness/{attack_path(attack, norm).removeprefix('robust.')}/{eps:.8f}/{first}"
