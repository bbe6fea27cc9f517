"""Gradient descent on the w+ codes of a batch, for methods that differ only in what they descend on."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from audit.classifiers.classifier import Classifier
from audit.config import CounterfactualConfig
from audit.counterfactual.batches import Batch
from audit.counterfactual.iterates import whole_log_odds
from audit.counterfactual.spruce import ADAM_EPS, clip_per_image, code_unit
from audit.generator.protocol import Generator


@dataclass(frozen=True)
class Iterate:
    """The codes `latents [N, L, w]` of one step, the images they draw and what the classifier sees in them."""

    images: Tensor
    latents: Tensor
    features: Tensor
    logits: Tensor


Loss = Callable[[Iterate], Tensor]
"""What is descended on, `[N]`: one value for each image, so that they do not see each other."""


def descend(
    classifier: Classifier, generator: Generator, batch: Batch, settings: CounterfactualConfig, loss: Loss
) -> Iterator[Iterate]:
    """Yield the pivots and what each of `settings.steps` steps of Adam makes of them, without gradients.

    Step sizes, their cosine schedule and the bound on an image's gradient are those of SPRUCE.
    """
    latents = batch.pivots.clone().requires_grad_()
    optimiser = torch.optim.Adam([latents], lr=settings.lr * code_unit(generator), eps=ADAM_EPS)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, T_max=settings.steps)
    for step in range(settings.steps + 1):
        last = step == settings.steps
        with torch.set_grad_enabled(not last):
            images = generator.images(latents, deltas=batch.deltas)
            iterate = Iterate(images, latents, *classifier.features_and_logits(images))
            losses = loss(iterate)
        yield Iterate(*(value.detach() for value in vars(iterate).values()))
        if last:
            return
        (gradient,) = torch.autograd.grad(losses.sum(), latents)
        latents.grad = clip_per_image(gradient, settings.gradient_clip)
        optimiser.step()
        schedule.step()


def shortfall(logits: Tensor, targets: Tensor, goals: Tensor) -> Tensor:
    """How far the log-odds of the classes `targets [N]` are below `goals [N]`; with a gradient however far it is."""
    return goals - whole_log_odds(logits, targets)
