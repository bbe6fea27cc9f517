"""The cascade of attacks called `ensemble`: each attacks only what the ones before it left standing.

Stages and their order after AutoAttack (Croce & Hein 2020, arXiv 2003.01690, section 6): APGD on the cross-entropy,
targeted APGD, targeted FAB, Square. Each stage draws from its own generator, and a success counts only if a fresh
forward pass on the stored image confirms it. With a store, every finished stage is kept, so that a run that was killed
goes on after it and comes to the same result.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from audit.classifiers.classifier import weights_hash
from audit.config import EnsembleConfig
from audit.results import CascadeStage
from audit.robustness.attacks.apgd import apgd_attack, apgd_targeted_attack
from audit.robustness.attacks.ball import Norm
from audit.robustness.attacks.checks import checked_logits
from audit.robustness.attacks.fab import fab_attack
from audit.robustness.attacks.sight import Sight
from audit.robustness.attacks.square import square_attack
from audit.robustness.attacks.target import Target
from audit.runtime.seeds import stage_generator
from audit.storage.cache import Entry, Store


@dataclass(frozen=True)
class StageCache:
    """Where finished stages are kept, and what the classifier depends on besides its weights and buffers."""

    store: Store
    key: Mapping[str, Any]


StageName = Literal["apgd-ce", "apgd-t", "fab-t", "square"]


@dataclass(frozen=True)
class Cascade:
    """What the cascade did to one batch.

    `images` are float32 `[N, C, H, W]`, the original where no attack succeeded; `standing` `[N]` says which images the
    classifier still decides rightly; `stages` begin with `before`, whose standing images are those it decides rightly.
    `fell` int64 `[N]` is the place in `stages` of the one at which each image fell, -1 where it stands; `blind` `[N]`
    marks those whose gradient was zero at every step of all the attacks that take one.
    """

    images: Tensor
    standing: Tensor
    stages: list[CascadeStage]
    fell: Tensor
    blind: Tensor


def stage_settings(stage: StageName, config: EnsembleConfig) -> dict[str, int]:
    """Return the numbers that `stage` is run with: the names and values its attack is called with."""
    if stage == "apgd-ce":
        return {"steps": config.apgd_steps, "restarts": config.apgd_restarts}
    if stage == "apgd-t":
        return {
            "steps": config.apgd_steps,
            "restarts": config.apgd_restarts,
            "target_classes": config.target_classes,
        }
    if stage == "fab-t":
        return {"steps": config.fab_steps, "target_classes": config.target_classes}
    return {"queries": config.square_queries}


def _is_wrong(classifier: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    with torch.no_grad():
        logits = checked_logits(classifier, images)
    return logits.argmax(dim=1) != labels


def _state_hash(classifier: nn.Module) -> str:
    """Hash of all parameters and buffers, those that are not saved (a classifier's mean, std and order) included."""
    return weights_hash(dict(classifier.named_parameters()) | dict(classifier.named_buffers()))


@dataclass(frozen=True)
class _Stage:
    """One attack of the cascade: its name and numbers, the radius in pixel units, the rows of a full batch."""

    name: StageName
    settings: dict[str, int]
    eps: float
    batch_size: int


def _run_stage(target: Target, stage: _Stage, generator: torch.Generator) -> Entry:
    """Attack the images of `target`, which the classifier decides rightly.

    Returns which were `fooled`, their `adversarial`, and the account of gradients: how many were `taken` of each image
    and how many were `useful`.
    """
    classifier, images, labels = target.classifier, target.images, target.labels
    common: dict[str, Any] = {"eps": stage.eps, "norm": target.norm, "generator": generator, **stage.settings}
    sight = Sight.of(len(images), images.device)
    if stage.name == "apgd-ce":
        found = apgd_attack(classifier, images, labels, loss="ce", sight=sight, **common)
    elif stage.name == "apgd-t":
        found = apgd_targeted_attack(classifier, images, labels, batch_size=stage.batch_size, sight=sight, **common)
    elif stage.name == "fab-t":
        found = fab_attack(classifier, images, labels, sight=sight, **common)
    else:
        found = square_attack(classifier, images, labels, **common)
    # An attack saw each success in a batch of other rows, where sums may round otherwise.
    fooled = _is_wrong(classifier, found, labels)
    account = {"taken": sight.taken, "useful": sight.useful}
    return Entry({"fooled": fooled, "adversarial": found[fooled], **account})


def run_cascade(
    classifier: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    eps: float,
    norm: Norm,
    config: EnsembleConfig,
    seed_stage: str,
    seed: int,
    cache: StageCache | None = None,
) -> Cascade:
    """Attack one batch of `images` `[N, C, H, W]` in [0, 1] with `labels` `[N]` by the stages of `config`, in order.

    `eps` is in pixel units. Each stage's draws depend on `seed`, `seed_stage` and its name alone, not on what the other
    stages drew. With `cache` a finished stage is read back instead of run again, if the classifier's parameters and
    buffers, its logits (which stand for its code), the images it attacks, labels, eps, norm, seeds, the stage's
    settings and the cache's key are the same. The classifier keeps its mode. Raises as the attacks do: MetricError on
    input that is not valid, ClassifierError on logits or gradients that are not finite.
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
        for stage in config.stages:
            left = standing.nonzero().flatten()
            if len(left):
                settings = stage_settings(stage, config)
                attacked = replace(target, images=images[left], labels=labels[left])
                generator = stage_generator(seed, f"{seed_stage}/{stage}")
                compute = partial(_run_stage, attacked, _Stage(stage, settings, eps, len(images)), generator)
                if cache is None:
                    entry = compute()
                else:
                    name = cache.store.key(
                        "ensemble/stage and account",
                        classifier=state_hash,
                        logits=logits,
                        images=attacked.images,
                        labels=attacked.labels,
                        attack=stage,
                        settings=settings,
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
            stages.append(CascadeStage(attack=stage, attacked=len(left), standing=int(standing.sum())))
    return Cascade(target.within(result, eps), standing, stages, fell, sight.blind)
