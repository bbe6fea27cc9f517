"""The cascade of attacks called `ensemble`: each attacks only what the ones before it left standing.

Stages and their order after AutoAttack (Croce & Hein 2020, arXiv 2003.01690, section 6): APGD on the cross-entropy,
targeted APGD, targeted FAB, Square. Each stage draws from its own generator, and a success counts only if a fresh
forward pass on the stored image confirms it. With a store, every finished stage is kept, so that a run that was killed
goes on after it and comes to the same result.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from audit.classifiers.classifier import weights_hash
from audit.classifiers.mode import preserve_mode
from audit.config import EnsembleConfig
from audit.results import CascadeStage
from audit.robustness.attacks.apgd import apgd_attack, apgd_targeted_attack
from audit.robustness.attacks.ball import Norm, assert_in_ball
from audit.robustness.attacks.checks import check_eps, check_labels, checked_logits, float_images
from audit.robustness.attacks.fab import fab_attack
from audit.robustness.attacks.sight import Sight
from audit.robustness.attacks.square import square_attack
from audit.runtime.seeds import stage_generator
from audit.storage.cache import Entry, Store

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
    check_labels(labels, len(images), logits.shape[1])
    return logits.argmax(dim=1) != labels


def _state_hash(classifier: nn.Module) -> str:
    """Hash of all parameters and buffers, those that are not saved (a classifier's mean, std and order) included."""
    return weights_hash(dict(classifier.named_parameters()) | dict(classifier.named_buffers()))


def _run_stage(
    classifier: nn.Module,
    images: Tensor,
    labels: Tensor,
    stage: StageName,
    settings: dict[str, int],
    eps: float,
    norm: Norm,
    generator: torch.Generator,
    batch_size: int,
) -> Entry:
    """Attack `images`, which the classifier decides rightly.

    Returns which were `fooled`, their `adversarial`, and the account of gradients: how many were `taken` of each image
    and how many were `useful`.
    """
    common: dict[str, Any] = {"eps": eps, "norm": norm, "generator": generator, **settings}
    sight = Sight.of(len(images), images.device)
    if stage == "apgd-ce":
        found = apgd_attack(classifier, images, labels, loss="ce", sight=sight, **common)
    elif stage == "apgd-t":
        found = apgd_targeted_attack(classifier, images, labels, batch_size=batch_size, sight=sight, **common)
    elif stage == "fab-t":
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
    store: Store | None = None,
    key: Mapping[str, Any] | None = None,
) -> Cascade:
    """Attack one batch of `images` `[N, C, H, W]` in [0, 1] with `labels` `[N]` by the stages of `config`, in order.

    `eps` is in pixel units. Each stage's draws depend on `seed`, `seed_stage` and its name alone, not on what the other
    stages drew. With `store` a finished stage is read back instead of run again, if the classifier's parameters and
    buffers, its logits (which stand for its code), the images it attacks, labels, eps, norm, seeds, the stage's
    settings and `key` (what else the classifier depends on, such as its architecture) are the same. The classifier
    keeps its mode. Raises as the attacks do: MetricError on input that is not valid, ClassifierError on logits or
    gradients that are not finite.
    """
    images = float_images(images, "images given to the ensemble")
    check_eps(eps, norm, images.shape[1:])
    labels = labels.to(images.device)
    result, standing = images.clone(), torch.zeros(len(images), dtype=torch.bool, device=images.device)
    sight = Sight.of(len(images), images.device)
    fell = torch.zeros(len(images), dtype=torch.int64, device=images.device)
    with preserve_mode(classifier):
        logits = torch.zeros(0)
        if len(images):
            with torch.no_grad():
                logits = checked_logits(classifier, images)
            check_labels(labels, len(images), logits.shape[1])
            standing = logits.argmax(dim=1) == labels
        fell[standing] = -1
        stages = [CascadeStage(attack="before", attacked=len(images), standing=int(standing.sum()))]
        state_hash = None if store is None else _state_hash(classifier)
        for stage in config.stages:
            left = standing.nonzero().flatten()
            if len(left):
                settings = stage_settings(stage, config)
                attacked, of_them, width = images[left], labels[left], len(images)
                generator = stage_generator(seed, f"{seed_stage}/{stage}")
                compute = partial(
                    _run_stage, classifier, attacked, of_them, stage, settings, eps, norm, generator, width
                )
                if store is None:
                    entry = compute()
                else:
                    name = store.key(
                        "ensemble/stage and account",
                        classifier=state_hash,
                        logits=logits,
                        images=attacked,
                        labels=of_them,
                        attack=stage,
                        settings=settings,
                        eps=eps,
                        norm=norm,
                        seed=seed,
                        seed_stage=seed_stage,
                        batch_size=width,
                        key=dict(key or {}),
                    )
                    entry = store.get_or_compute(name, compute)
                hit = left[entry.tensors["fooled"].to(left.device)]
                result[hit] = entry.tensors["adversarial"].to(result)
                standing[hit] = False
                fell[hit] = len(stages)
                sight.taken[left] += entry.tensors["taken"].to(left)
                sight.useful[left] += entry.tensors["useful"].to(left)
            stages.append(CascadeStage(attack=stage, attacked=len(left), standing=int(standing.sum())))
    assert_in_ball(result, images, eps, norm, "the ensemble")
    return Cascade(result, standing, stages, fell, sight.blind)
