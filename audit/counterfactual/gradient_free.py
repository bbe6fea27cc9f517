"""The method `gradient-free`: a search in the generator's codes by answers alone, for classifiers without gradients.

Natural evolution strategies with antithetic pairs (Wierstra et al. 2014; Salimans et al. 2017, arXiv 1703.03864): from
the losses at w + s z and w - s z, z normal, the gradient of the loss smoothed by s is estimated, and Adam follows it.
The loss is that of `latent-gradient`. An estimate from a few dozen directions out of thousands is a weak one: edits are
larger than those of methods that follow gradients, and fewer flip. `counterfactual.queries` bounds the answers
asked for of each image.
"""

import torch
from torch import Tensor

from audit.config import CounterfactualConfig
from audit.counterfactual.answers import chosen
from audit.counterfactual.batches import Batch
from audit.counterfactual.descent import ADAM_EPS, clip_per_image, code_unit
from audit.counterfactual.latent_gradient import edit_loss
from audit.counterfactual.protocol import CalibratedClassifier, Counterfactuals, SearchNetworks
from audit.inversion.adam import RowAdam, cosine
from audit.runtime.progress import Advance
from audit.runtime.seeds import stage_generator

PAIRS = 10
"""Antithetic pairs for one estimate of the gradient."""
SMOOTHING = 0.1
"""s, in units of the standard deviation of the generator's codes."""


def steps_of(queries: int) -> int:
    """How many steps `queries` answers an image are enough for: each takes its pairs and one look at the iterate."""
    return max(1, (queries - 1) // (2 * PAIRS + 1))


@torch.no_grad()
def edit(
    settings: CounterfactualConfig,
    subject: CalibratedClassifier,
    networks: SearchNetworks,
    batch: Batch,
    advance: Advance,
    *,
    seed: int,
) -> Counterfactuals:
    """Draw the counterfactuals of one batch; all images look in the same directions, which follow from `seed` alone."""
    generator, unit, n = networks.generator, code_unit(networks.generator), len(batch.goals)
    steps, smoothing = min(settings.steps, steps_of(settings.queries)), SMOOTHING * unit
    rng = stage_generator(seed, "counterfactual/gradient-free")

    def drawn(codes: Tensor) -> tuple[Tensor, Tensor]:
        images = generator.images(codes, deltas=batch.deltas)
        return images, subject.classifier(images)

    def loss(codes: Tensor) -> Tensor:
        return edit_loss(*drawn(codes), batch)

    latents, iterates = batch.pivots.clone(), batch.iterates()
    adam = RowAdam(latents, eps=ADAM_EPS)
    for step in range(steps + 1):
        images, logits = drawn(latents)
        iterates.observe(images, latents, logits)
        advance(n / (steps + 1))
        if step == steps:
            break
        gradient = torch.zeros_like(latents)
        for _ in range(PAIRS):
            direction = torch.randn(1, *latents.shape[1:], generator=rng).to(latents)
            slope = loss(latents + smoothing * direction) - loss(latents - smoothing * direction)
            gradient += slope[:, None, None] * direction / (2 * smoothing * PAIRS)
        step_size = settings.lr * unit * cosine(step, steps)
        adam.update(latents, clip_per_image(gradient, settings.gradient_clip), step_size)
    return chosen(iterates)
