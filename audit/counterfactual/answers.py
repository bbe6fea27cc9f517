"""A method's answer in full, from finished images or from the iterates of a search."""

from functools import partial

import torch
from torch import Tensor

from audit.classifiers.classifier import Classifier
from audit.classifiers.mode import preserve_mode
from audit.classifiers.slices import sparing
from audit.counterfactual.iterates import Iterates, goal_of, log_odds
from audit.counterfactual.protocol import CalibratedClassifier, Counterfactuals, InvertedQueries

AT_ONCE = 64
"""Images that a classifier is given together."""


@torch.no_grad()
def judged(subject: CalibratedClassifier, queries: InvertedQueries, targets: Tensor, images: Tensor) -> Counterfactuals:
    """Return finished counterfactual `images [N, C, H, W]` with what the classifier says of them.

    For methods that know no iterates: the inversion counts as the first one and as the semifactual, the counterfactual
    as the second. Raises ClassifierError where a target class has no operating point.
    """
    images, targets = images.detach().cpu(), targets.cpu()
    goals = goal_of(subject.operating_point.cpu(), targets)
    before, after = (logits_of(subject.classifier, pixels) for pixels in (queries.inversion.images.cpu(), images))
    trace = torch.stack([logits.softmax(1).gather(1, targets[:, None])[:, 0] for logits in (before, after)], dim=1)
    flipped, already = (logits.argmax(1) == targets for logits in (after, before))
    return Counterfactuals(
        images=images,
        semifactuals=queries.inversion.images.cpu(),
        flipped=flipped,
        reached=flipped & (log_odds(after, targets) >= goals),
        confidence=trace[:, 1],
        step=torch.ones_like(targets),
        flip_step=torch.where(already, 0, torch.where(flipped, 1, -1)),
        trace=trace,
    )


def chosen(iterates: Iterates, in_latent_space: bool = True) -> Counterfactuals:
    """Return what was chosen among `iterates`; without latents where the search was not in the generator's codes."""
    return Counterfactuals(
        images=iterates.images.cpu(),
        semifactuals=iterates.semifactuals.cpu(),
        flipped=iterates.flipped.cpu(),
        reached=iterates.reached.cpu(),
        confidence=iterates.confidence.cpu(),
        step=iterates.step.cpu(),
        flip_step=iterates.flip_step.cpu(),
        trace=iterates.trace.cpu(),
        latents=iterates.latents.cpu() if in_latent_space else None,
        masks=None if iterates.masks is None else iterates.masks.cpu(),
    )


@torch.no_grad()
def logits_of(classifier: Classifier, images: Tensor) -> Tensor:
    """Return the logits `[N, K]` of any number of images, on the CPU."""
    device = next(classifier.parameters()).device
    with preserve_mode(classifier):
        parts = [sparing(classifier, partial(classifier, part.to(device))) for part in images.split(AT_ONCE)]
        return torch.cat(parts).cpu()
