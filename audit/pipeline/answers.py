"""What classifiers answer: to whole sets of images and to images made in an audit, asked once and kept."""

from functools import partial

import torch
from torch import Tensor

from audit.classifiers.classifier import Classifier
from audit.classifiers.mode import preserve_mode
from audit.classifiers.slices import sparing
from audit.data.audit_set import AuditSet
from audit.pipeline.context import Context
from audit.robustness.accuracy import predict

TOGETHER = 128
"""Made images that are shown to a classifier at once."""


def answers_of(context: Context, classifier: Classifier, images: AuditSet) -> Tensor:
    """Logits `[N, K]` that a classifier gives to `images`, `robustness.batch_size` at a time."""
    size = context.config.robustness.batch_size
    ask = partial(predict, classifier, images, size, context.device)
    return context.of(classifier).kept("answers", ask, (predict.__module__,), images=images.content, batch_size=size)


def confidences_of(context: Context, classifier: Classifier, images: Tensor) -> Tensor:
    """Probabilities `[N, K]` of float64 that a classifier gives to `images` `[N, C, H, W]`, in batches."""
    ask = partial(_confidences, classifier, images, context.device)
    return context.of(classifier).kept("confidences", ask, (__name__,), images=images)


@torch.no_grad()
def _confidences(classifier: Classifier, images: Tensor, device: torch.device) -> Tensor:
    with preserve_mode(classifier):
        parts = [sparing(classifier, partial(classifier, part.to(device))) for part in images.split(TOGETHER)]
        return torch.cat([logits.cpu().double().softmax(1) for logits in parts])


def of_targets(confidences: Tensor, targets: Tensor) -> Tensor:
    """Return the probabilities `[N]` of the classes `targets` `[N]` among `confidences` `[N, K]`."""
    return confidences.gather(1, targets[:, None])[:, 0]


def decisions(context: Context, classifier: Classifier, images: Tensor) -> Tensor:
    """Labels `[N]` that a classifier gives to `images` `[N, C, H, W]`, in batches."""
    return confidences_of(context, classifier, images).argmax(1)
