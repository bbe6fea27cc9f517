"""What a classifier is like on the calibration images: its usual features, and how confident it usually is."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from audit.classifiers.classifier import Classifier
from audit.classifiers.mode import preserve_mode
from audit.classifiers.slices import sparing
from audit.counterfactual.exceptional import fit_calibration
from audit.counterfactual.iterates import operating_points
from audit.counterfactual.protocol import CalibratedClassifier
from audit.data.audit_set import AuditSet
from audit.errors import ClassifierError
from audit.pipeline.context import Context
from audit.pipeline.queries import asked_classes, sure_targets
from audit.results import Failure
from audit.robustness.attacks.checks import where_not_finite
from audit.runtime.faults import tried
from audit.runtime.progress import stage_progress
from audit.storage.keys import hash_tensor

PROBED = 4
"""Calibration images on which it is tried whether the logits have a gradient."""
USUAL = {"features", "mixture_components", "exceptional_threshold", "sign_filter", "min_calibration"}
"""Settings that what is usual for a classifier depends on."""


@dataclass(frozen=True)
class Calibrated(CalibratedClassifier):
    """A calibrated classifier, and what its cached results are found by.

    `key` stands for everything that was seen: the features and logits of these very images, their classes, and whether
    a gradient leads back to them; and for the code of the classifier, as far as it is known.
    """

    key: str


def calibrate_models(
    context: Context, classifiers: Sequence[Classifier], calibration: AuditSet
) -> dict[str, Calibrated | Failure]:
    """Calibrate every classifier, by its name; one that fails cannot be explained, and is measured all the same."""

    def calibrated(classifier: Classifier) -> Calibrated:
        found = calibrate(context, classifier, calibration)
        for target in sure_targets(context.config.queries, classifier.class_names):
            check_target(found, target)
        return found

    return {one.name: tried("calibration", partial(calibrated, one)) for one in classifiers}


@dataclass(frozen=True)
class Seen:
    """What a classifier sees in images: features `[N, d]` and logits `[N, K]`."""

    features: Tensor
    logits: Tensor


@torch.no_grad()
def look_at(context: Context, classifier: Classifier, calibration: AuditSet) -> Seen:
    """Show `classifier` the calibration images, `robustness.batch_size` at a time.

    Raises ClassifierError for features or logits that are not finite.
    """
    ask = partial(_seen, context, classifier, calibration)
    stages, size = context.of(classifier), context.config.robustness.batch_size
    return stages.kept("calibration", ask, ("audit.classifiers",), images=calibration.content, batch_size=size)


@torch.no_grad()
def calibrate(context: Context, classifier: Classifier, calibration: AuditSet, seen: Seen | None = None) -> Calibrated:
    """Learn what is usual for `classifier` on the calibration images; what it sees in them is `seen` if it is known.

    Raises ClassifierError where it assigns too few images to a class that an edit may leave or enter.
    """
    config = context.config
    seen = look_at(context, classifier, calibration) if seen is None else seen
    answers = seen.logits
    decided = answers.argmax(1)
    asked = asked_classes(config.queries, classifier.class_names)
    fit = partial(
        fit_calibration, seen.features, decided, config.counterfactual, classifier.class_names, config.seed,
        classifier.name, classes=asked,
    )  # fmt: skip
    fitted = context.stages.kept(
        "usual features", fit, (fit_calibration.__module__,), features=seen.features, decided=decided, classes=asked,
        settings=config.counterfactual.model_dump(include=USUAL), names=classifier.class_names, seed=config.seed,
    )  # fmt: skip
    points = operating_points(answers.softmax(1), calibration.row_labels, decided)
    points = points.clamp(max=context.config.counterfactual.operating_point_cap)
    first = calibration.select(range(min(PROBED, len(calibration))))
    sees = context.of(classifier).kept(
        "gradient on calibration images", lambda: _has_gradient(classifier, first.images().to(context.device)),
        ("audit.classifiers",), images=first.content,
    )  # fmt: skip
    seeing = "differentiable" if sees else "no gradient"
    hashes = [hash_tensor(values) for values in (seen.features, answers, calibration.row_labels)]
    key = " ".join([*hashes, seeing, *([classifier.content] if classifier.content else [])])
    return Calibrated(classifier, fitted, points, key, real=calibration)


@torch.no_grad()
def _seen(context: Context, classifier: Classifier, calibration: AuditSet) -> Seen:
    features, logits = [], []
    with preserve_mode(classifier), stage_progress(f"calibration {classifier.name}", len(calibration)) as advance:
        for images, _, rows in calibration.batches(context.config.robustness.batch_size):
            x, y = sparing(classifier, partial(classifier.features_and_logits, images.to(context.device)))
            if not (bool(x.isfinite().all()) and bool(y.isfinite().all())):
                where = where_not_finite(torch.cat([x, y], dim=1).cpu(), images, calibration.select(rows).row_ids)
                raise ClassifierError(f"Classifier '{classifier.name}' has NaN or infinite features or logits{where}")
            features.append(x.cpu())
            logits.append(y.cpu())
            advance(len(images))
    return Seen(torch.cat(features), torch.cat(logits))


def _has_gradient(classifier: Classifier, images: Tensor) -> bool:
    """Whether the logits answer to `images`: code that cuts the way back is no other in features and logits."""
    with preserve_mode(classifier), torch.enable_grad():
        leaf = images.clone().requires_grad_()
        logits = classifier(leaf)
        if not logits.requires_grad:
            return False
        # The sum of all logits is constant in a network that centres them; the first one alone is not.
        (gradient,) = torch.autograd.grad(logits[:, 0].sum(), leaf, allow_unused=True)
    return gradient is not None and bool(gradient.any())


def check_target(calibrated: CalibratedClassifier, target: int) -> None:
    """Raise ClassifierError if the classifier has no operating point for the class `target`."""
    classifier = calibrated.classifier
    if calibrated.operating_point[target].isnan():
        raise ClassifierError(
            f"Classifier '{classifier.name}' gets no calibration image of class '{classifier.class_names[target]}' "
            "right, so that nothing says how convincing a counterfactual towards it should be: choose another target "
            "or leave the classifier out."
        )
