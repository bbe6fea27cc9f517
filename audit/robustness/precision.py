"""May a model be run in 16 bits? Tried on clean images: its decisions must be those of float32."""

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from audit.classifiers.classifier import Classifier
from audit.classifiers.mode import preserve_mode
from audit.classifiers.precision import Autocast, LowAnswers, LowGradients
from audit.classifiers.probe import first_line
from audit.classifiers.slices import sparing
from audit.config import LowPrecision
from audit.data.audit_set import AuditSet
from audit.results import Notice
from audit.robustness.accuracy import device_of
from audit.robustness.attacks.checks import checked_logits
from audit.robustness.attacks.losses import cross_entropy, image_gradient
from audit.robustness.trust.case import FOREIGN_ERRORS
from audit.runtime.memory import out_of_memory
from audit.runtime.seeds import lent_randomness
from audit.storage.keys import code_hash
from audit.storage.stages import Stages

IMAGES = 1000
"""Most images that both precisions are compared on."""
MOST_APART = 1e-3
"""Share of decisions that may differ between the two."""
WIDER = 2.0
"""How much larger the error of a logit may be on other images than on those compared."""
GRADED = 16
"""Images whose gradients are looked at."""


@dataclass(frozen=True)
class LowPasses:
    """A model's passes in `precision`: `gradients` for attacks that climb, `answers` to changed images."""

    precision: LowPrecision
    gradients: LowGradients
    answers: LowAnswers

    def stages(self, stages: Stages) -> Stages:
        """Return the `stages` of the classifier for results of these passes."""
        code = code_hash(LowAnswers.__module__)
        return stages.on(precision=self.precision, doubt=self.answers.doubt, precision_code=code)


def precision_refused(name: str, why: str) -> Notice:
    """Return the notice that the model `name` runs in float32 where 16 bits were asked for."""
    return Notice(subject=name, kind="precision-refused", text=f"It runs in float32, not in 16 bits: {why}")


def low_passes(classifier: Classifier, dataset: AuditSet, precision: LowPrecision, batch_size: int) -> LowPasses | str:
    """Return the passes of `classifier` in `precision`, or why all of them have to run in float32.

    Both are compared on all images of `dataset`. The classifier keeps its mode, the global generators their state.
    """
    if not classifier.differentiable or classifier.is_program:
        return "it is a black box or a program, whose precision is its own."
    dtype = getattr(torch, precision)
    low, device = Autocast(classifier, dtype), device_of(classifier)
    apart, error = 0, 0.0

    def both(images: Tensor) -> tuple[Tensor, Tensor]:
        return checked_logits(classifier, images), checked_logits(low, images)

    def graded(images: Tensor, labels: Tensor) -> Tensor:
        leaf = images.clone().requires_grad_()
        return image_gradient(low, cross_entropy(checked_logits(low, leaf), labels), leaf)

    with preserve_mode(classifier), lent_randomness(device):
        try:
            for images, labels, rows in dataset.batches(batch_size):
                images, labels = images.to(device), labels.to(device)
                with torch.no_grad():
                    exact, rough = sparing(classifier, partial(both, images))
                apart += int((exact.argmax(dim=1) != rough.argmax(dim=1)).sum())
                error = max(error, float((exact - rough).abs().max()))
                if int(rows[0]) == 0:
                    with torch.enable_grad():
                        sparing(classifier, partial(graded, images[:GRADED], labels[:GRADED]))
        except FOREIGN_ERRORS as fault:
            if out_of_memory(fault):
                raise
            return f"it fails on images that it takes in float32 ({first_line(fault).rstrip('.')})."
    if apart > MOST_APART * len(dataset):
        return (
            f"{apart} of its {len(dataset)} decisions on clean images differ between the two, and {MOST_APART:.1%} of "
            "them may."
        )
    # Both of two logits may be wrong, in opposite directions.
    return LowPasses(precision, LowGradients(classifier, dtype), LowAnswers(classifier, dtype, 2 * WIDER * error))
