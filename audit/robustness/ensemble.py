"""The cascade of attacks called `ensemble`: each attacks only what the ones before it left standing.

Stages and their order after AutoAttack (Croce & Hein 2020, arXiv 2003.01690, section 6): APGD on the cross-entropy,
targeted APGD, targeted FAB, Square. Each stage draws from its own generator, and a success counts only if a fresh
forward pass on the stored image confirms it. With a store, every finished stage is kept, so that a run that was killed
goes on after it and comes to the same result.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from audit.classifiers.classifier import weights_hash
from audit.results import CascadeStage
from audit.robustness.attacks.ball import Norm
from audit.robustness.attacks.checks import checked_logits
from audit.robustness.attacks.guard import AttackFault, run_attack
from audit.robustness.attacks.registry import ChosenAttack
from audit.robustness.attacks.sight import Sight
from audit.robustness.attacks.target import Target
from audit.runtime.seeds import stage_generator
from audit.storage.cache import Entry, Store


@dataclass(frozen=True)
class StageCache:
    """Where finished stages are kept, and what the classifier depends on besides its weights and buffers."""

    store: Store
    key: Mapping[str, Any]


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


def _state_hash(classifier: nn.Module) -> str:
    """Hash of all parameters and buffers, those that are not saved (a classifier's mean, std and order) included."""
    return weights_hash(dict(classifier.named_parameters()) | dict(classifier.named_buffers()))


def _check_classes(chosen: ChosenAttack, logits: Tensor) -> None:
    if len(logits) and logits.shape[1] < chosen.spec.fewest_classes:
        raise AttackFault(
            f"Attack '{chosen.name}' needs at least {chosen.spec.fewest_classes} classes where the classifier has "
            f"{logits.shape[1]}: leave it out."
        )


def _run_stage(target: Target, chosen: ChosenAttack, eps: float, generator: torch.Generator, batch_size: int) -> Entry:
    """Attack the images of `target`, which the classifier decides rightly; a full batch has `batch_size` rows.

    Returns which were `fooled`, their `adversarial`, and the account of gradients: how many were `taken` of each image
    and how many were `useful`.
    """
    sight = Sight.of(len(target.images), target.images.device)
    found = run_attack(chosen, replace(target, sight=sight), eps, generator, batch_size=batch_size)
    # An attack saw each success in a batch of other rows, where sums may round otherwise.
    fooled = _is_wrong(target.classifier, found, target.labels)
    account = {"taken": sight.taken, "useful": sight.useful}
    return Entry({"fooled": fooled, "adversarial": found[fooled], **account})


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
    cache: StageCache | None = None,
) -> Cascade:
    """Attack one batch of `images` `[N, C, H, W]` in [0, 1] with `labels` `[N]` by one of `attacks` after the other.

    `eps` is in pixel units. Each stage's draws depend on `seed`, `seed_stage` and its name alone, not on what the other
    stages drew. With `cache` a finished stage is read back instead of run again, if the classifier's parameters and
    buffers, its logits (which stand for its code), the images it attacks, labels, eps, norm, seeds, the attack's
    options and the cache's key are the same; attacks of other packages, whose code is in no key, are always run. The
    classifier keeps its mode. Raises as the attacks do: MetricError on input that is not valid, ClassifierError on
    logits or gradients that are not finite, AttackFault for an attack of another package that fails.
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
        state_hash = None if cache is None else _state_hash(classifier)
        for chosen in attacks:
            _check_classes(chosen, logits)
            left = standing.nonzero().flatten()
            if len(left):
                attacked = replace(target, images=images[left], labels=labels[left])
                generator = stage_generator(seed, f"{seed_stage}/{chosen.name}")
                compute = partial(_run_stage, attacked, chosen, eps, generator, len(images))
                if cache is None or chosen.source is not None:
                    entry = compute()
                else:
                    name = cache.store.key(
                        "ensemble/stage and account",
                        classifier=state_hash,
                        logits=logits,
                        images=attacked.images,
                        labels=attacked.labels,
                        attack=chosen.name,
                        settings=dict(chosen.options),
                        eps=eps,
                        norm=norm,
                        seed=seed,
                        seed_stage=seed_stage,
                        batch_size=len(images),
                        key=dict(cache.key),
                    )
                    entry = cache.store.get_or_compute(name, compute)
                hit = left[entry.tensors["fooled"].to(left.device)]
                result[hit] = entry.tensors["adversarial"].to(result)
                standing[hit] = False
                fell[hit] = len(stages)
                sight.taken[left] += entry.tensors["taken"].to(left)
                sight.useful[left] += entry.tensors["useful"].to(left)
            stages.append(CascadeStage(attack=chosen.name, attacked=len(left), standing=int(standing.sum())))
    return Cascade(target.within(result, eps), standing, stages, fell, sight)
