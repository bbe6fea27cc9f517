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

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from audit.config import CounterfactualConfig
from audit.counterfactual.balance import Push
from audit.counterfactual.exceptional import expected_features
from audit.counterfactual.iterates import Iterates, goal_of
from audit.counterfactual.protocol import CalibratedClassifier, Counterfactuals, InvertedQueries, SearchNetworks
from audit.generator.protocol import Generator
from audit.inversion.codes import spread
from audit.metrics.perceptual import distance_of_maps, unit_channels
from audit.runtime.memory import allowed, at_once, in_slices
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
        goals = goal_of(subject.operating_point.cpu(), targets.cpu())
        device = networks.generator.mean_code.device
        inversion = queries.inversion

        def batch(rows: slice) -> _Batch:
            places = torch.arange(len(queries.images))[rows]
            return _Batch(
                queries=queries.images[rows].to(device),
                inversions=inversion.images[rows].to(device),
                pivots=inversion.pivots[rows].to(device),
                deltas={name: delta[places].to(device) for name, delta in inversion.deltas.items()},
                sources=queries.labels[rows].to(device),
                targets=targets[rows].to(device),
                goals=goals[rows].to(device),
            )

        def one() -> None:
            once = self.settings.model_copy(update={"steps": 1})
            _explain_batch(subject, networks, batch(slice(1)), once, lambda amount=1: None)

        def work(rows: slice) -> Counterfactuals:
            done = 0.0

            def step(amount: float = 1) -> None:
                nonlocal done
                done += amount
                advance(amount)

            try:
                return _explain_batch(subject, networks, batch(rows), self.settings, step)
            except BaseException:
                advance(-done)  # the batch begins anew where memory ran out
                raise

        wanted = min(self.settings.batch_size, len(queries.images))
        parts = in_slices(len(queries.images), at_once(wanted, one, device, allowed(device)), work)
        names = [one.name for one in fields(Counterfactuals)]
        return Counterfactuals(**{name: torch.cat([getattr(part, name) for part in parts]) for name in names})


@dataclass(frozen=True)
class _Batch:
    queries: Tensor
    inversions: Tensor
    pivots: Tensor
    deltas: dict[str, Tensor]
    sources: Tensor
    targets: Tensor
    goals: Tensor


def _explain_batch(
    subject: CalibratedClassifier,
    networks: SearchNetworks,
    batch: _Batch,
    config: CounterfactualConfig,
    advance: Advance,
) -> Counterfactuals:
    classifier, generator, perceptual = subject.classifier, networks.generator, networks.perceptual
    with torch.no_grad():
        x = classifier.features(batch.queries)
        expected, _ = expected_features(subject.calibration, classifier.head, x, batch.sources, batch.targets)
        feature_flips = classifier.head_logits(expected).argmax(dim=1) == batch.targets
        query_maps = None if perceptual is None else unit_channels(perceptual.maps(batch.queries))
    objective = Objective(config, subject.calibration.sigma.to(x), batch.pivots, batch.queries)
    push = Push(batch.goals)
    iterates = Iterates(batch.inversions, batch.sources, batch.targets, batch.goals)
    latents = batch.pivots.clone().requires_grad_(True)
    optimiser = torch.optim.AdamW([latents], lr=config.lr * code_unit(generator), eps=ADAM_EPS, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, T_max=config.steps)
    for step in range(config.steps + 1):
        with torch.set_grad_enabled(step < config.steps):
            images = generator.images(latents, deltas=batch.deltas)
            features, logits = classifier.features_and_logits(images)
        iterates.observe(images.detach(), latents.detach(), logits.detach())
        if config.balance == "adaptive":
            push.observe(logits.detach(), batch.targets)
        advance(len(images) / (config.steps + 1))
        if step == config.steps:
            break
        with torch.enable_grad():
            distance = None
            if perceptual is not None and query_maps is not None:
                distance = distance_of_maps(unit_channels(perceptual.maps(images)), query_maps)
            aim = x + push.reach[:, None] * (expected - x)
            loss = objective.features(features, aim) + objective.sparsity(images, latents, distance) / push.value
        (gradient,) = torch.autograd.grad(loss.sum(), latents)
        latents.grad = clip_per_image(gradient, config.gradient_clip)
        optimiser.step()
        schedule.step()
    return Counterfactuals(
        images=iterates.images.cpu(),
        semifactuals=iterates.semifactuals.cpu(),
        latents=iterates.latents.cpu(),
        flipped=iterates.flipped.cpu(),
        reached=iterates.reached.cpu(),
        confidence=iterates.confidence.cpu(),
        step=iterates.step.cpu(),
        flip_step=iterates.flip_step.cpu(),
        trace=torch.stack(iterates.trace, dim=1).cpu(),
        feature_target_flips=feature_flips.cpu(),
    )


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
