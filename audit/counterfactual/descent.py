"""Gradient descent on the w+ codes of a batch, for methods that differ only in what they descend on."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from audit.classifiers.classifier import Classifier
from audit.config import CounterfactualConfig
from audit.generator.held import Held
from audit.generator.protocol import Generator
from audit.inversion.adam import RowAdam, cosine
from audit.inversion.codes import spread
from audit.robustness.attacks.losses import whole_log_odds
from audit.runtime.seeds import stage_generator

ADAM_EPS = 1e-5
"""Gradients of an image have norm <= 1: components below this are rounding, and must not be blown up to whole steps."""
UNIT_CODES = 512
"""Random codes that the unit of steps is measured on."""

Start = tuple[Tensor, Held]
"""Where n images begin, on the generator's device: their w+ codes, and the weights of each by name."""


@dataclass(frozen=True)
class Iterate:
    """One step of the n images at `rows [n]` of a batch: their codes, what these draw and what the classifier sees."""

    rows: Tensor
    images: Tensor
    latents: Tensor
    features: Tensor
    logits: Tensor


Loss = Callable[[Iterate], Tensor]
"""What is descended on, `[n]`: one value for each image, so that they do not see each other."""
Watch = Callable[[Iterate], Tensor | None]
"""Told every iterate, without gradients; returns which of its images are done and take no further step (None: none)."""


def descend(
    classifier: Classifier,
    generator: Generator,
    start: Start,
    settings: CounterfactualConfig,
    loss: Loss,
    watch: Watch,
    *,
    schedule: Callable[[int, int], float] = cosine,
) -> None:
    """Take `settings.steps` steps of Adam on a `schedule` of the learning rate; gradients are bounded image by image.

    There is no decay of weights: it would pull w+ to the origin and not to the pivot.
    """
    latents, deltas = start[0].clone(), start[1]
    unit, rows = settings.lr * code_unit(generator), torch.arange(len(latents), device=latents.device)
    adam = RowAdam(latents, eps=ADAM_EPS)
    for step in range(settings.steps + 1):
        last = step == settings.steps
        codes = latents.clone().requires_grad_()
        with torch.set_grad_enabled(not last):
            images = generator.images(codes, deltas=deltas)
            iterate = Iterate(rows, images, codes, *classifier.features_and_logits(images))
        done = watch(Iterate(*(value.detach() for value in vars(iterate).values())))
        if last or (done is not None and bool(done.all())):
            return
        with torch.enable_grad():
            losses = loss(iterate)
        (gradient,) = torch.autograd.grad(losses.sum(), codes)
        adam.update(latents, clip_per_image(gradient, settings.gradient_clip), unit * schedule(step, settings.steps))
        if done is not None and bool(done.any()):
            stay = ~done
            rows, latents, deltas = rows[stay], latents[stay], deltas.select(stay)
            adam.keep(stay)


def shortfall(logits: Tensor, targets: Tensor, goals: Tensor) -> Tensor:
    """How far the log-odds of the classes `targets [N]` are below `goals [N]`; with a gradient however far it is."""
    return goals - whole_log_odds(logits, targets)


def code_unit(generator: Generator) -> float:
    """Spread of random codes, the unit of steps: `config.lr` thereby carries over to other generators."""
    return spread(generator.random_codes(UNIT_CODES, stage_generator(0, "counterfactual/unit")))


def clip_per_image(gradient: Tensor, largest: float) -> Tensor:
    """Scale each image's gradient `[N, ...]` down to a norm of at most `largest`, by itself."""
    norm = gradient.flatten(1).norm(dim=1).clamp_min(torch.finfo(gradient.dtype).tiny)
    factor = (largest / norm).clamp(max=1)
    return gradient * factor.view(-1, *[1] * (gradient.ndim - 1))
