"""SPRUCE latent optimisation: edit w+ until the model sees the target class, a whole batch at once.

Source: Litsos 2025 §5.6; docs/design.md, "Latent optimisation". Per image, with its own tuned generator G and the query
image I:

    L = mean_i ((C(G(w))_i - x'_i) / sigma_i)^2
        + (lambda_perc perceptual(G(w), I) + lambda_latent mean|w - w_p| + lambda_image mean|G(w) - I|) / push

where x' and `push` follow the image's own balance (`balance.py`; push = 1 with `balance = "fixed"`). `loss = "raw"`
takes the thesis' literal sums, as they are at 256 pixels, for all terms but the perceptual one. Images never see each
other: losses are summed, gradients clipped image by image, and Adam works element by element. The thesis' AdamW would
also decay w+ to the origin and not to the pivot.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from audit.classifiers.classifier import Head
from audit.config import CounterfactualConfig
from audit.counterfactual.answers import chosen
from audit.counterfactual.balance import Push, reach_of
from audit.counterfactual.batches import Batch, InBatches
from audit.counterfactual.descent import Iterate, descend
from audit.counterfactual.exceptional import expected_features
from audit.counterfactual.iterates import Iterates
from audit.counterfactual.protocol import CalibratedClassifier, Counterfactuals, InvertedQueries, SearchNetworks
from audit.counterfactual.shrink import shrink
from audit.metrics.perceptual import comparable, distance_of_maps
from audit.runtime.progress import Advance

REFERENCE_PIXELS = 3 * 256 * 256
"""Image values behind the thesis' lambda_image."""
REFERENCE_LATENTS = 14 * 512
"""Latent values behind the thesis' lambda_latent: the layers of a generator of 256 pixels."""
IMAGE_WEIGHT = {"standardised": 30.0, "raw": 1e-6}
"""Default lambda_image: of the mean absolute change, and the thesis' of the sum."""
LATENT_WEIGHT = {"standardised": 0.9216, "raw": 1e-4}
"""Default lambda_latent: of the mean absolute change of the code, and the thesis' of the sum."""


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
class _Aims:
    """Features of the query images and those of their target classes, `[N, d]`, and the head that they lead to.

    `maps` are the perceptual maps of the query images.
    """

    head: Head
    features: Tensor
    expected: Tensor
    maps: list[Tensor] | None

    def carried(self, reach: Tensor, rows: Tensor | slice = slice(None)) -> Tensor:
        """Features `[n, d]` to aim at for the images at `rows`: `reach [n]` times as far as x'."""
        return self.features[rows] + reach[:, None] * (self.expected[rows] - self.features[rows])


@dataclass(frozen=True)
class Aligned:
    """Where the first phase ended, what it aimed at, and the push `[N]` that led to the iterates chosen."""

    iterates: Iterates
    aims: _Aims
    push: Tensor


def _explain_batch(
    config: CounterfactualConfig,
    subject: CalibratedClassifier,
    networks: SearchNetworks,
    batch: Batch,
    advance: Advance,
) -> Counterfactuals:
    if not config.steering_weight:
        networks = replace(networks, perceptual=None)
    images, most = len(batch.goals), config.steps + 1 + (config.shrink_steps + 1 if config.shrink else 0)
    done = 0.0

    def advance_to(share: float) -> None:
        nonlocal done
        advance(images * (share - done))
        done = share

    def stepped(some: int) -> None:
        advance_to(min(done + some / images / most, 1.0))  # edits that descend again take more

    aligned = align(config, subject, networks, batch, stepped)
    advance_to((config.steps + 1) / most)
    iterates, said = aligned.iterates, _said_of(config, batch, aligned)
    if config.shrink:
        said |= {
            "aligned_l1": iterates.change.clone(),
            "aligned_confidence": iterates.confidence.clone(),
            "aligned_steps": iterates.last.clone(),
        }
        classifier, generator = subject.classifier, networks.generator
        said["converged"] = shrink(
            generator, classifier, batch, iterates, config.shrink_steps, stepped, local=config.shrink_local
        )
        advance_to(1)
    said["steps"] = iterates.last
    return replace(chosen(iterates), **{name: value.cpu() for name, value in said.items()})


@torch.no_grad()
def _said_of(config: CounterfactualConfig, batch: Batch, aligned: Aligned) -> dict[str, Tensor]:
    """Say how far the features were carried, and whether the head alone assigns them to the target classes."""
    reach = reach_of(aligned.push)

    def flips(reach: Tensor) -> Tensor:
        return aligned.aims.head(aligned.aims.carried(reach)).argmax(dim=1) == batch.targets

    said = {"feature_target_flips": flips(torch.ones_like(reach))}
    if config.balance == "adaptive":
        said |= {"push": aligned.push, "reach": reach, "carried_target_flips": flips(reach)}
    return said


def align(
    config: CounterfactualConfig,
    subject: CalibratedClassifier,
    networks: SearchNetworks,
    batch: Batch,
    stepped: Callable[[int], None],
) -> Aligned:
    """Align the features with those of the target class: the first phase of the search.

    Where the second phase follows, an image is done with the first as soon as it has reached the operating point.
    """
    classifier, perceptual = subject.classifier, networks.perceptual
    with torch.no_grad():
        features, head = classifier.features(batch.queries), classifier.head_at(batch.queries)
        expected, _ = expected_features(subject.calibration, head, features, batch.sources, batch.targets)
        maps = None if perceptual is None else comparable(perceptual, batch.queries)
    aims, sigma = _Aims(head, features, expected, maps), subject.calibration.sigma.to(features)
    push, iterates = Push(batch.goals), batch.iterates(config.choose)
    led = push.value.clone()

    def watch(iterate: Iterate) -> Tensor | None:
        rows = iterate.rows
        reached = iterates.observe(iterate.images, iterate.latents, iterate.logits, rows)
        now = rows[iterates.step[rows] == iterates.last[rows]]
        led[now] = push.value[now]
        if config.balance == "adaptive":
            push.observe(iterate.logits, batch.targets[rows], rows)
        stepped(len(rows))
        return reached if config.shrink else None

    def loss(iterate: Iterate) -> Tensor:
        rows, distance = iterate.rows, None
        if perceptual is not None and aims.maps is not None:
            seen = comparable(perceptual, iterate.images)
            distance = distance_of_maps(seen, [one[rows] for one in aims.maps])
        objective = Objective(config, sigma, batch.pivots[rows], batch.queries[rows])
        away = objective.features(iterate.features, aims.carried(reach_of(push.value[rows]), rows))
        return away + objective.sparsity(iterate.images, iterate.latents, distance) / push.value[rows]

    descend(classifier, networks.generator, (batch.pivots, batch.deltas), config, loss, watch)
    return Aligned(iterates, aims, led)


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
        return loss if perceptual is None else loss + config.steering_weight * perceptual
