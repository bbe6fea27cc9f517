"""Robust accuracy over radii and attacks, on the same images and from equal starts for all models.

Radii are attacked in rising order. An image that is fooled within a small ball is fooled within every larger one, so it
is not attacked again: the curve falls monotonically and costs less.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from audit.classifiers.mode import preserve_mode
from audit.config import RobustnessConfig, eps_value
from audit.data.audit_set import AuditSet
from audit.errors import MetricError
from audit.metrics.intervals import wilson_interval
from audit.progress import stage_progress
from audit.results import Attack, Robust
from audit.robustness.ball import Norm
from audit.robustness.clean import device_of
from audit.robustness.door import checked_logits
from audit.robustness.pgd import pgd_attack
from audit.seeds import stage_generator

Kind = Literal["pgd", "ensemble"]


@dataclass(frozen=True)
class Attacked:
    """Robust accuracies, and which images stood: bool `[n]` by the number's path, for instance 'robust.pgd.8/255'."""

    robust: Robust
    standing: dict[str, Tensor]


def attacked_rows(dataset: AuditSet, n: int, seed: int) -> AuditSet:
    """Return the first `n` images of a seeded order: the same ones for every model and radius."""
    order = torch.randperm(len(dataset), generator=stage_generator(seed, "robustness/order"))
    return dataset.select(order[:n])


def robust_accuracy(
    classifier: nn.Module, dataset: AuditSet, config: RobustnessConfig, seed: int, stage: str = "PGD"
) -> Robust:
    """Measure accuracy under PGD (L-inf) at every radius of `config.eps` on `config.n` images of `dataset`.

    Images and random starts depend on `seed`, radius and `config.batch_size` only, so models are compared on equal
    terms; `stage` labels the progress bar. Raises MetricError if `dataset` is empty.
    """
    chosen = attacked_rows(dataset, config.n, seed)
    if len(chosen) == 0:
        raise MetricError(f"There is no image of {dataset.source} to attack: check data.audit_split.")
    device = device_of(classifier)
    attacks: dict[str, Attack] = {}
    norm: Norm = "Linf"
    with stage_progress(stage, len(chosen) * len(config.eps)) as advance:
        for text in config.eps:
            eps = eps_value(text)
            standing = 0
            for images, labels, rows in chosen.batches(config.batch_size):
                # A generator a batch: were it shared, a fooled model's fewer draws would shift the next batch's starts.
                generator = stage_generator(seed, f"robustness/pgd/{eps:.8f}/{int(rows[0])}")
                images, labels = images.to(device), labels.to(device)
                adversarial = pgd_attack(
                    classifier,
                    images,
                    labels,
                    eps=eps,
                    steps=config.steps,
                    step_size=config.step_size,
                    restarts=config.restarts,
                    norm=norm,
                    generator=generator,
                )
                with preserve_mode(classifier), torch.no_grad():
                    standing += int((checked_logits(classifier, adversarial).argmax(dim=1) == labels).sum())
                advance(len(images))
            attacks[text] = Attack(
                robust_accuracy=wilson_interval(standing, len(chosen)),
                eps=eps,
                steps=config.steps,
                restarts=config.restarts,
            )
    return Robust(pgd=attacks)
