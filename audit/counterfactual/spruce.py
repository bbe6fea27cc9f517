"""SPRUCE latent optimisation: edit w+ until the model sees the target class, a whole batch at once.

Source: Litsos 2025 §5.6; docs/design.md, "Latent optimisation". Per image, with its own tuned generator G and the query
image I:

    L = mean_i ((C(G(w))_i - x'_i) / sigma_i)^2
        + (lambda_perc perceptual(G(w), I) + lambda_latent mean|w - w_p| + lambda_image mean|G(w) - I|) / push

where x' and `push` follow the image's own balance (`balance.py`; push = 1 with `balance = "fixed"`). `loss = "raw"`
takes the thesis' literal sums, as they are at 256 pixels, for all terms but the perceptual one. Images never see each
other: losses are summed, gradients clipped image by image, and AdamW works element by element. Its weight decay is 0,
for decay would pull w+ to the origin and not to the pivot.
"""

from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from audit.config import CounterfactualConfig
from audit.counterfactual.answers import chosen
from audit.counterfactual.balance import Push
from audit.counterfactual.batches import Batch, InBatches
from audit.counterfactual.exceptional import expected_features
from audit.counterfactual.iterates import Iterates
from audit.counterfactual.protocol import CalibratedClassifier, Counterfactuals, InvertedQueries, SearchNetworks
from audit.counterfactual.shrink import Edits, Shrunk, shrink
from audit.generator.protocol import Generator
from audit.inversion.adam import RowAdam, cosine
from audit.inversion.codes import spread
from audit.metrics.perceptual import distance_of_maps, unit_channels
from audit.runtime.progress import Advance
from audit.runtime.seeds import stage_generator

REFERENCE_PIXELS = 3 * 256 * 256
"""Image values behind the thesis' lambda_image."""
REFERENCE_LATENTS = 14 * 512
"""Latent values behind the thesis' lambda_latent: the layers of a generator of 256 pixels."""
IMAGE_WEIGHT = {"standardised": 30.0, "raw": 1e-6}
"""Default lambda_image: of the mean absolute change, and the thesis' of the sum."""
LATENT_WEIGHT = {"standardised": 0.9216, "raw": 1e-4}
"""Default lambda_latent: of the mean absolute change of the code, and the thesis' of the sum."""
ADAM_EPS = 1e-5
"""Gradients of an image have norm <= 1: components below this are rounding, and must not be blown up to whole steps."""
UNIT_CODES = 512
"""Random codes that the unit of steps is measured on."""


@dataclass(frozen=True)
class Spruce:
    """The method `spruce`; at most `settings.batch_size` images at a time, and no more than fit in `max_memory`."""

    settings: CounterfactualConfig

    def explain(
        self,
        subject: CalibratedClassifier,
        networks: SearchNetworks,
        queries: InvertedQueries,
        targets: Tensor,
        advance: Advance,
    ) -> Counterfactuals:
        """Draw the counterfactual of every query image towards its class of `targets [N]`.

        Raises ClassifierError where a target class has no operating point.
        """
        once = self.settings.model_copy(update={"steps": 1, "shrink_steps": 1})
        batches = InBatches(
            partial(_explain_batch, self.settings), self.settings.batch_size, partial(_explain_batch, once)
        )
        return batches.explain(subject, networks, queries, targets, advance)


@dataclass(frozen=True)
class _Batch:
    """Images explained together; `features` are theirs and `expected` those of the target class, both `[N, d]`."""

    queries: Tensor
    sources: Tensor
    edits: Edits
    features: Tensor
    expected: Tensor
    maps: list[Tensor] | None

    def select(self, rows: Tensor) -> "_Batch":
        return _Batch(
            self.queries[rows],
            self.sources[rows],
            self.edits.select(rows),
            self.features[rows],
            self.expected[rows],
            None if self.maps is None else [one[rows] for one in self.maps],
        )


@torch.no_grad()
def _seen(subject: CalibratedClassifier, networks: SearchNetworks, batch: Batch) -> tuple[_Batch, Tensor]:
    """Add what classifier and perceptual network see in a batch, and what they are to see.

    Also returns which images the head alone assigns to their target class by the features that they are to have.
    """
    classifier, perceptual = subject.classifier, networks.perceptual
    features = classifier.features(batch.queries)
    head = classifier.head_at(batch.queries)
    expected, _ = expected_features(subject.calibration, head, features, batch.sources, batch.targets)
    maps = None if perceptual is None else unit_channels(perceptual.maps(batch.queries))
    edits = Edits(batch.inversions, batch.pivots, batch.deltas, batch.targets, batch.goals)
    flips = head(expected).argmax(dim=1) == batch.targets
    return _Batch(batch.queries, batch.sources, edits, features, expected, maps), flips


def _explain_batch(
    config: CounterfactualConfig,
    subject: CalibratedClassifier,
    networks: SearchNetworks,
    images: Batch,
    advance: Advance,
) -> Counterfactuals:
    batch, feature_flips = _seen(subject, networks, images)
    iterates = _align(subject, networks, batch, config, advance)
    aligned = replace(chosen(iterates), feature_target_flips=feature_flips.cpu(), steps=iterates.last.cpu())
    if not config.shrink:
        return aligned
    total = config.steps + config.shrink_steps + 2
    left = len(images.targets) * (config.shrink_steps + 1)

    def shrunk(stepped: int) -> None:
        nonlocal left
        left -= stepped
        advance(stepped / total)

    smaller = shrink(networks.generator, subject.classifier, batch.edits, iterates.latents, config.shrink_steps, shrunk)
    advance(left / total)
    smaller = Shrunk(**{name: value.cpu() for name, value in vars(smaller).items()})
    return _both_phases(aligned, smaller, images.inversions.cpu(), total)


def _both_phases(aligned: Counterfactuals, smaller: Shrunk, inversions: Tensor, longest: int) -> Counterfactuals:
    """Put both phases together: the smaller edits where they are valid, and traces `[N, longest]` of all iterates."""
    assert aligned.latents is not None
    assert aligned.steps is not None
    valid, before = smaller.valid, aligned.steps + 1
    wide = valid.view(-1, 1, 1, 1)
    place = torch.arange(longest, device=valid.device)[None]
    first = aligned.trace.gather(1, place.clamp(max=aligned.trace.shape[1] - 1).expand(len(valid), -1))
    second = smaller.trace.gather(1, (place - before[:, None]).clamp(0, smaller.trace.shape[1] - 1))
    late = torch.where(smaller.flip_step >= 0, before + smaller.flip_step, -1)
    return replace(
        aligned,
        images=torch.where(wide, smaller.images, aligned.images),
        latents=torch.where(wide[..., 0], smaller.latents, aligned.latents),
        flipped=aligned.flipped | valid,
        reached=valid,
        confidence=torch.where(valid, smaller.confidence, aligned.confidence),
        step=torch.where(valid, before + smaller.step, aligned.step),
        flip_step=torch.where(aligned.flip_step >= 0, aligned.flip_step, late),
        trace=torch.where(place < before[:, None], first, second),
        steps=before + smaller.steps,
        converged=smaller.converged,
        aligned_l1=(aligned.images - inversions).abs().flatten(1).mean(dim=1),
        aligned_confidence=aligned.confidence,
        aligned_steps=aligned.steps,
    )


def _align(
    subject: CalibratedClassifier,
    networks: SearchNetworks,
    batch: _Batch,
    config: CounterfactualConfig,
    advance: Advance,
) -> Iterates:
    """Align the features with those of the target class: the first phase of the search.

    Where the second phase follows, an image is done with the first as soon as it has reached the operating point.
    """
    classifier, generator, perceptual = subject.classifier, networks.generator, networks.perceptual
    edits, unit = batch.edits, config.lr * code_unit(generator)
    push, iterates = Push(edits.goals), Iterates(edits.inversions, batch.sources, edits.targets, edits.goals)
    latents, rows = edits.pivots.clone(), torch.arange(len(edits.goals), device=edits.goals.device)
    adam, sigma = RowAdam(latents, eps=ADAM_EPS), subject.calibration.sigma.to(batch.features)
    share = 1 / (config.steps + 1 + (config.shrink_steps + 1 if config.shrink else 0))
    left = len(rows) * (config.steps + 1)
    for step in range(config.steps + 1):
        codes = latents.clone().requires_grad_()
        with torch.set_grad_enabled(step < config.steps):
            images = generator.images(codes, deltas=batch.edits.deltas)
            features, logits = classifier.features_and_logits(images)
        done = iterates.observe(images.detach(), codes.detach(), logits.detach(), rows)
        if config.balance == "adaptive":
            push.observe(logits.detach(), batch.edits.targets)
        advance(len(rows) * share)
        left -= len(rows)
        if step == config.steps or (config.shrink and done.all()):
            break
        with torch.enable_grad():
            distance = None
            if perceptual is not None and batch.maps is not None:
                distance = distance_of_maps(unit_channels(perceptual.maps(images)), batch.maps)
            objective = Objective(config, sigma, batch.edits.pivots, batch.queries)
            aim = batch.features + push.reach[:, None] * (batch.expected - batch.features)
            loss = objective.features(features, aim) + objective.sparsity(images, codes, distance) / push.value
        (gradient,) = torch.autograd.grad(loss.sum(), codes)
        adam.update(latents, clip_per_image(gradient, config.gradient_clip), unit * cosine(step, config.steps))
        if config.shrink and done.any():
            stay = ~done
            rows, latents, batch = rows[stay], latents[stay], batch.select(stay)
            adam.keep(stay)
            push.keep(stay)
    advance(left * share)
    return iterates


@dataclass(frozen=True)
class Objective:
    """The terms of the loss, one value per image `[N]`, in the units of sigma, the pivots and the query images."""

    config: CounterfactualConfig
    sigma: Tensor
    pivots: Tensor
    queries: Tensor

    def features(self, x: Tensor, aim: Tensor) -> Tensor:
        """Distance of the features `x [N, d]` to the counterfactual features `aim` (Litsos 2025, eq. 5.6.2)."""
        if self.config.loss == "raw":
            return (x - aim).square().sum(dim=1)
        return ((x - aim) / self.sigma).square().mean(dim=1)

    def sparsity(self, images: Tensor, latents: Tensor, perceptual: Tensor | None) -> Tensor:
        """Size of the change, with the distance `perceptual [N]` (Litsos 2025, eqs. 5.6.3 to 5.6.5)."""
        config = self.config
        image_weight = IMAGE_WEIGHT[config.loss] if config.image_weight is None else config.image_weight
        latent_weight = LATENT_WEIGHT[config.loss] if config.latent_weight is None else config.latent_weight
        if config.loss == "raw":
            image_weight, latent_weight = image_weight * REFERENCE_PIXELS, latent_weight * REFERENCE_LATENTS
        loss = image_weight * (images - self.queries).abs().flatten(1).mean(dim=1)
        loss = loss + latent_weight * (latents - self.pivots).abs().flatten(1).mean(dim=1)
        return loss if perceptual is None else loss + config.perceptual_weight * perceptual


def code_unit(generator: Generator) -> float:
    """Spread of random codes, the unit of steps: `config.lr` thereby carries over to other generators."""
    return spread(generator.random_codes(UNIT_CODES, stage_generator(0, "counterfactual/unit")))


def clip_per_image(gradient: Tensor, largest: float) -> Tensor:
    """Scale each image's gradient `[N, ...]` down to a norm of at most `largest`, by itself."""
    norm = gradient.flatten(1).norm(dim=1).clamp_min(torch.finfo(gradient.dtype).tiny)
    factor = (largest / norm).clamp(max=1)
    return gradient * factor.view(-1, *[1] * (gradient.ndim - 1))
