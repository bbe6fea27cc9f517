"""The cascade of attacks called `ensemble`: each attacks only what the ones before it left standing.

Stages and their order after AutoAttack (Croce & Hein 2020, arXiv 2003.01690, section 6): APGD on the cross-entropy,
targeted APGD, targeted FAB, Square. Each stage draws from its own generator, and a success counts only if a fresh
forward pass on the stored image confirms it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from audit.results import CascadeStage
from audit.robustness.attacks.ball import Norm
from audit.robustness.attacks.checks import checked_logits
from audit.robustness.attacks.guard import AttackFault, run_attack
from audit.robustness.attacks.registry import ChosenAttack
from audit.robustness.attacks.sight import Sight
from audit.robustness.attacks.target import Target
from audit.runtime.seeds import stage_generator


@dataclass(frozen=True)
class Cascade:
    """What the cascade did to one batch.

    `images` are float32 `[N, C, H, W]`, the original where no attack succeeded; `standing` `[N]` says which images the
    classifier still decides rightly; `stages` begin with `before`, whose standing images are those it decides rightly.
    `fell` int64 `[N]` is the place in `stages` of the one at which each image fell, -1 where it stands; `sight` is the
    account of all gradients taken.
    """

    images: Tensor
    standing: Tensor
    stages: list[CascadeStage]
    fell: Tensor
    sight: Sight


def _is_wrong(classifier: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    with torch.no_grad():
        logits = checked_logits(classifier, images)
    return logits.argmax(dim=1) != labels


def _check_classes(chosen: ChosenAttack, logits: Tensor) -> None:
    if len(logits) and logits.shape[1] < chosen.spec.fewest_classes:
        raise AttackFault(
            f"Attack '{chosen.name}' needs at least {chosen.spec.fewest_classes} classes where the classifier has "
            f"{logits.shape[1]}: leave it out."
        )


def run_cascade(
    classifier: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    eps: float,
    norm: Norm,
    attacks: Sequence[ChosenAttack],
    seed_stage: str,
    seed: int,
) -> Cascade:
    """Attack one batch of `images` `[N, C, H, W]` in [0, 1] with `labels` `[N]` by one of `attacks` after the other.

    `eps` is in pixel units. Each stage's draws depend on `seed`, `seed_stage` and its name alone, not on what the other
    stages drew. The classifier keeps its mode. Raises as the attacks do: MetricError on input that is not valid,
    ClassifierError on logits or gradients that are not finite, AttackFault for an attack of another package that fails.
    """
    target = Target("the ensemble", classifier, images, labels, norm)
    target.check_eps(eps)
    images, labels = target.images, target.labels
    result = images.clone()
    sight = Sight.of(len(images), images.device)
    with target.attacked() as logits:
        standing = logits.argmax(dim=1) == labels
        fell = torch.where(standing, -1, 0)
        stages = [CascadeStage(attack="before", attacked=len(images), standing=int(standing.sum()))]
        for chosen in attacks:
            _check_classes(chosen, logits)
            left = standing.nonzero().flatten()
            if len(left):
                account = Sight.of(len(left), images.device)
                attacked = replace(target, images=images[left], labels=labels[left], sight=account)
                generator = stage_generator(seed, f"{seed_stage}/{chosen.name}")
                found = run_attack(chosen, attacked, eps, generator, batch_size=len(images))
                # An attack saw each success in a batch of other rows, where sums may round otherwise.
                fooled = _is_wrong(classifier, found, attacked.labels)
                hit = left[fooled]
                result[hit], standing[hit], fell[hit] = found[fooled].to(result), False, len(stages)
                sight.taken[left] += account.taken
                sight.useful[left] += account.useful
            stages.append(CascadeStage(attack=chosen.name, attacked=len(left), standing=int(standing.sum())))
    return Cascade(target.within(result, eps), standing, stages, fell, sight)
