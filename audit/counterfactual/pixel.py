"""The method `pixel`: the smallest change of pixels that convinces the classifier, with no generator at all.

An adversarial example at the operating point that all methods are asked for: what a flip looks like when nothing asks
for realism. Source: the fast minimum-norm attack (Pintor et al. 2021, arXiv 2102.12827, algorithm 1) for the L1 norm,
in which the size of an edit is measured. Every image has a radius: it shrinks while the iterate is convincing and grows
while it is not; a step follows the gradient and is projected back onto the ball of that radius. The smallest edit found
is at last drawn straight back to the image for as long as it convinces.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from audit.classifiers.classifier import Classifier
from audit.config import CounterfactualConfig
from audit.counterfactual.answers import chosen
from audit.counterfactual.batches import Batch
from audit.counterfactual.descent import shortfall
from audit.counterfactual.protocol import CalibratedClassifier, Counterfactuals, SearchNetworks
from audit.inversion.adam import cosine
from audit.robustness.attacks.ball import ascent, per_image
from audit.robustness.attacks.losses import image_gradient
from audit.runtime.progress import Advance

STEP, STEP_FLOOR = 0.01, 0.01
"""First step, in units of the distance from black to white (L2), and the share of it that the last one has."""
RADIUS, RADIUS_FLOOR = 0.05, 0.01
"""gamma: relative change of the radius at the first step, and the share of it at the last one."""
LINE_STEPS = 6
"""Halvings of the line from the smallest edit to the image."""
SMALL = 1e-12


def edit(
    settings: CounterfactualConfig,
    subject: CalibratedClassifier,
    networks: SearchNetworks,
    batch: Batch,
    advance: Advance,
) -> Counterfactuals:
    """Draw the counterfactuals of one batch; the generator of `networks` has no part in them."""
    iterates = batch.iterates()

    def watched(images: Tensor, logits: Tensor) -> Tensor:
        advance(len(images) / (settings.steps + 1 + LINE_STEPS))
        return iterates.observe(images, images, logits)  # an image is its own code

    _minimum_norm(subject.classifier, batch, settings.steps, watched)
    _draw_back(subject.classifier, batch, iterates.images.clone(), watched)
    return chosen(iterates, in_latent_space=False)


Watch = Callable[[Tensor, Tensor], Tensor]
"""Takes an iterate's images and logits and returns which of them reached the goal."""


def _minimum_norm(classifier: Classifier, batch: Batch, steps: int, watched: Watch) -> None:
    start, goals = batch.inversions, batch.goals
    longest = STEP * start[0].numel() ** 0.5
    images, radius, smallest = start, torch.full_like(goals, torch.inf), torch.full_like(goals, torch.inf)
    for step in range(steps + 1):
        last = step == steps
        with torch.set_grad_enabled(not last):
            leaf = images.detach().requires_grad_(not last)
            logits = classifier(leaf)
            lacking = shortfall(logits, batch.targets, goals)
        images = leaf.detach()
        reached = watched(images, logits.detach())
        if last:
            return
        gradient = image_gradient(classifier, lacking, leaf)
        size = (images - start).abs().flatten(1).sum(dim=1)
        smallest = torch.where(reached, torch.minimum(smallest, size), smallest)
        gamma = RADIUS * cosine(step, steps, RADIUS_FLOOR)
        steepest = gradient.flatten(1).abs().amax(dim=1).clamp_min(SMALL)
        outwards = torch.where(smallest.isfinite(), radius * (1 + gamma), size + lacking.detach() / steepest)
        radius = torch.where(reached, torch.minimum(radius * (1 - gamma), smallest), outwards)
        moved = images - ascent(gradient, longest * cosine(step, steps, STEP_FLOOR), "L2")
        images = (start + within_l1(moved - start, radius)).clamp(0, 1)


@torch.no_grad()
def _draw_back(classifier: Classifier, batch: Batch, found: Tensor, watched: Watch) -> None:
    short, enough = torch.zeros_like(batch.goals), torch.ones_like(batch.goals)
    for _ in range(LINE_STEPS):
        middle = (short + enough) / 2
        images = torch.lerp(batch.inversions, found, per_image(middle, found))
        reached = watched(images, classifier(images))
        short, enough = torch.where(reached, short, middle), torch.where(reached, middle, enough)


def within_l1(offsets: Tensor, radius: Tensor) -> Tensor:
    """Return the nearest points to `offsets [N, ...]` whose L1 norms are at most `radius [N]` (Duchi et al. 2008).

    All entries lose the same amount, but none beyond 0.
    """
    sizes = offsets.flatten(1).abs()
    falling = sizes.sort(dim=1, descending=True).values
    ranks = torch.arange(1, falling.shape[1] + 1, device=falling.device)
    losses = (falling.cumsum(dim=1) - radius[:, None].clamp_max(sizes.sum(dim=1, keepdim=True))) / ranks
    kept = (falling > losses).sum(dim=1, keepdim=True).clamp_min(1)
    loss = losses.gather(1, kept - 1).clamp_min(0)
    return offsets.sign() * (offsets.abs() - per_image(loss[:, 0], offsets)).clamp_min(0)
