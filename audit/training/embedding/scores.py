"""What an embedding tells apart, for its card: classes, and on the phantom real changes from adversarial noise.

Classes are predicted from it as an audit's judges of transfer do it (`audit.metrics.transfer`). On the phantom, an
image with a finding and its healthy twin show whether realism may rest on the embedding: the distance to real healthy
images should fall where the finding is really removed, and stay where adversarial noise only makes a classifier believe
so. The same is measured for other embeddings, to compare with. Nothing is tuned on it.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from audit.classifiers.load import load_classifier
from audit.classifiers.mode import preserve_mode
from audit.config import ClassifierConfig, eps_value
from audit.data import phantom
from audit.data.audit_set import AuditSet
from audit.embeddings.embedding import Embedder, Pixels, embed_all
from audit.embeddings.phantom_factors import IMAGE_SHAPE
from audit.embeddings.resolve import Request, resolve
from audit.generator.features import DiscriminatorFeatures
from audit.generator.files.load import load_generator
from audit.generator.protocol import check_fits
from audit.metrics.cmmd import mmd, unit_norm
from audit.metrics.distribution import real_floor
from audit.metrics.intervals import bootstrap_mean, wilson_interval
from audit.metrics.transfer import EmbeddingJudge, fit_judge
from audit.robustness.attacks.pgd import pgd_attack
from audit.runtime.seeds import stage_generator, stage_seed
from audit.training.embedding.config import EmbeddingTrainConfig

PIXEL_SIDE = 32
"""Raw pixels as a yardstick are averaged to at most this side, so that a probe on large images stays affordable."""
VICTIM = "plain"
"""The shipped classifier whose adversarial examples towards healthy are embedded."""
CHANGED = ("twin", "adversarial", "noise")
"""What is done to an image with a finding; random signs of the same size tell what of an attack is mere noise."""
HEALTHY_PER_TWIN = 3
BATCH = 128


class TowardsHealthy(nn.Module):
    """A classifier of the phantom as a question of two answers: healthy, or some finding."""

    def __init__(self, classifier: nn.Module) -> None:
        super().__init__()
        self.classifier = classifier

    def forward(self, images: Tensor) -> Tensor:
        """Return logits `[N, 2]` whose softmax is the probability of healthy and of all findings together."""
        logits: Tensor = self.classifier(images)
        findings = [k for k in range(logits.shape[1]) if k != phantom.HEALTHY]
        return torch.stack([logits[:, phantom.HEALTHY], logits[:, findings].logsumexp(dim=1)], dim=1)


def yardsticks(config: EmbeddingTrainConfig, image_shape: tuple[int, int, int], device: torch.device) -> list[Embedder]:
    """Load what the embedding is compared with: the discriminator of the generator that is named, raw pixels, and on
    the phantom the factor network. Raises GeneratorError if the generator does not fit the images.
    """
    out: list[Embedder] = []
    if config.generator is not None:
        loaded = load_generator(config.generator, device)
        check_fits(loaded.generator, image_shape)
        if loaded.discriminator is not None:
            out.append(DiscriminatorFeatures(loaded.discriminator))
    if config.data.is_phantom and image_shape == IMAGE_SHAPE:
        out.append(resolve("phantom-factors", Request("yardsticks", device), "vectors"))
    return [*out, Pixels(PIXEL_SIDE)]


def _accuracy(judge: EmbeddingJudge, embedded: Tensor, labels: Tensor) -> dict[str, Any]:
    return wilson_interval(int((judge.predict(embedded) == labels).sum()), len(labels)).model_dump()


def _subset(images: AuditSet, n: int, seed: int, stage: str) -> AuditSet:
    return images.select(torch.randperm(len(images), generator=stage_generator(seed, stage))[:n])


def probes(network: Embedder, fitted: AuditSet, held_out: AuditSet, device: torch.device) -> dict[str, Any]:
    """Accuracy on `held_out` of a logistic regression and of 15 cosine neighbours, both fitted on `fitted`."""
    known = embed_all(network, fitted, BATCH, device)
    unknown = embed_all(network, held_out, BATCH, device)
    linear = fit_judge(network.name, known, fitted.row_labels, "logistic")
    neighbours = fit_judge(network.name, known, fitted.row_labels, "knn")
    return {
        "linear_probe": _accuracy(linear, unknown, held_out.row_labels),
        "k_nn": _accuracy(neighbours, unknown, held_out.row_labels),
    }


def _change(before: Tensor, after: Tensor, seed: int) -> dict[str, Any]:
    """How the distance `[N]` changed: share that fell, and the mean change in deviations of the change (Cohen's d_z).

    The interval is a bootstrap over images with that deviation held.
    """
    change = after - before
    unit = change.std().clamp_min(1e-12)
    return {
        "share_nearer": wilson_interval(int((change < 0).sum()), len(change)).model_dump(),
        "effect": bootstrap_mean(change / unit, stage_generator(seed, "embedding/effect")).model_dump(),
    }


def sensitivity(network: Embedder, images: dict[str, Tensor], seed: int, device: torch.device) -> dict[str, Any]:
    """How far images with a finding, their twins and their adversarial examples are from real healthy images.

    `images` holds `[N, 1, 64, 64]` under "finding" and each of CHANGED row by row, and under "healthy" the real ones.
    An image's own distance is the squared one from the mean of the healthy embeddings, all of unit length: its part of
    the discrepancy. `gap_closed` is the share of the way from the finding to the floor, as in the index.
    """
    unit = {name: unit_norm(embed_all(network, x, BATCH, device)) for name, x in images.items()}
    centre = unit["healthy"].mean(dim=0)
    own = {name: (x - centre).square().sum(dim=1) for name, x in unit.items()}

    def distance(a: Tensor, b: Tensor) -> float:
        return mmd(a, b, estimator="unbiased")

    floor = real_floor(unit["healthy"], len(unit["finding"]), distance, stage_generator(seed, "embedding/floor"))
    apart = {name: distance(unit[name], unit["healthy"]) for name in ("finding", *CHANGED)}
    way = apart["finding"] - floor
    return {
        **{name: _change(own["finding"], own[name], seed) for name in CHANGED},
        "mmd": apart | {"floor": floor},
        "gap_closed": {k: (apart["finding"] - apart[k]) / way if way > 0 else None for k in CHANGED},
    }


def twin_images(n: int, seed: int, eps: float, steps: int, device: torch.device) -> dict[str, Tensor]:
    """Draw `n` phantoms with a finding, their twins, adversarial examples towards healthy, noise of the same size, and
    real healthy images.

    None was trained on: their seeds are derived under names of their own.
    """
    finding, twin = phantom.twins(n, stage_seed(seed, "embedding/twins"))
    healthy = phantom.sample(
        HEALTHY_PER_TWIN * n, stage_seed(seed, "embedding/healthy"), labels=torch.zeros(HEALTHY_PER_TWIN * n).long()
    )
    source = ClassifierConfig(name=VICTIM, checkpoint=f"shipped:{VICTIM}")
    victim = TowardsHealthy(load_classifier(source, IMAGE_SHAPE, phantom.CLASS_NAMES).to(device))
    made = []
    with preserve_mode(victim):
        for i, part in enumerate(finding.images.split(BATCH)):
            labels = torch.ones(len(part), dtype=torch.int64, device=device)
            generator = stage_generator(seed, f"embedding/adversarial/{i}")
            made.append(pgd_attack(victim, part.to(device), labels, eps=eps, steps=steps, generator=generator).cpu())
    signs = torch.randint(0, 2, finding.images.shape, generator=stage_generator(seed, "embedding/noise")) * 2.0 - 1
    return {
        "finding": finding.images,
        "twin": twin.images,
        "adversarial": torch.cat(made),
        "noise": (finding.images + eps * signs).clamp(0, 1),
        "healthy": healthy.images,
    }


def scores(
    config: EmbeddingTrainConfig, networks: list[Embedder], data: AuditSet, learnt: AuditSet, device: torch.device
) -> dict[str, Any]:
    """Measure the embedding and its yardsticks: probes where labels exist, sensitivity to twins on the phantom.

    The probes are fitted on labelled images of `learnt` and measured on the audit split, which has to be another one.
    If they cannot be measured, the card says why in their place.
    """
    wanted, seed, split = config.evaluation, config.seed, config.data.audit_split
    rows: dict[str, dict[str, Any]] = {n.name: {"weights_sha256": n.weights_sha256 or None} for n in networks}
    content: dict[str, Any] = {"seed": seed, "embeddings": rows}
    fitted = _subset(learnt, wanted.fitted, seed, "embedding/probe")
    held_out = _subset(data.select(np.flatnonzero(data.splits == split)), wanted.n, seed, "embedding/held out")
    if len(fitted.row_labels.unique()) < 2 or len(held_out) == 0 or set(fitted.row_ids) & set(held_out.row_ids):
        why = f"labels of two classes are needed, and a split '{split}' that was not learnt from"
        content["probes"] = {"not_computed": why}
    else:
        content["probes"] = {"fitted_on": len(fitted), "split": split, "n": len(held_out)}
        for network in networks:
            rows[network.name] |= probes(network, fitted, held_out, device)
    if config.data.is_phantom and data.image_shape == IMAGE_SHAPE:
        images = twin_images(wanted.twins, seed, eps_value(wanted.eps), wanted.steps, device)
        content["twins"] = {"n": wanted.twins, "eps": wanted.eps, "steps": wanted.steps, "attacked": VICTIM}
        for network in networks:
            rows[network.name]["sensitivity"] = sensitivity(network, images, seed, device)
    return content
