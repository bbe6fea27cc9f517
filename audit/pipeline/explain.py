"""The two long stages of an audit - inversion and counterfactuals - each kept in the store by all it depends on."""

from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import partial

import torch
from torch import Tensor

from audit.classifiers.classifier import Classifier
from audit.classifiers.mode import preserve_mode
from audit.classifiers.slices import sparing
from audit.config import AuditConfig
from audit.counterfactual.exceptional import Calibration, fit_calibration
from audit.counterfactual.iterates import operating_points
from audit.counterfactual.methods import ChosenMethod
from audit.counterfactual.protocol import CalibratedClassifier, Counterfactuals, InvertedQueries, SearchNetworks
from audit.counterfactual.targets import NOT_EXPLAINED, choose_targets, nearest_targets
from audit.data.audit_set import AuditSet
from audit.errors import ClassifierError
from audit.inversion.cache import keep_in, keep_without_store
from audit.inversion.invert import Inversion, invert
from audit.inversion.inverter import Inverter
from audit.pipeline.networks import Networks
from audit.robustness.attacks.checks import where_not_finite
from audit.runtime.progress import stage_progress
from audit.storage.cache import Entry, Store, hash_tensor

PROBED = 4
"""Calibration images on which it is tried whether the logits have a gradient."""


@dataclass(frozen=True)
class Calibrated:
    """What a classifier's features and confidence look like on the calibration split.

    `operating_point` `[K]` is NaN for a class of which no calibration image is classified correctly. `key` stands for
    everything that was seen: the features and logits of these very images, and whether a gradient leads back to them.
    """

    fitted: Calibration
    operating_point: Tensor
    key: str


@dataclass(frozen=True)
class Explained:
    """One model's counterfactuals towards its targets."""

    found: Counterfactuals
    targets: Tensor
    operating_point: Tensor


def _cached(store: Store | None, stage: str, compute: Callable[[], Entry], **inputs: object) -> Entry:
    if store is None:
        return compute()
    return store.get_or_compute(store.key(stage, **inputs), compute)


def invert_queries(
    config: AuditConfig, networks: Networks, queries: Tensor, store: Store | None, device: torch.device
) -> Inversion:
    """Invert the query images once for all models; an inversion depends on generator, image and settings only."""

    keep = (
        keep_without_store()
        if store is None
        else keep_in(
            store,
            generator=networks.loaded.sha256,
            encoder=networks.encoder_sha256,
            embedding=[networks.perceptual.name, networks.perceptual.weights_sha256],
            settings=config.inversion,
            seed=config.seed,
        )
    )
    inverter = Inverter(networks.loaded.generator, config.inversion, config.seed, networks.perceptual, networks.encoder)
    with stage_progress("inversion (images)", len(queries)) as advance:
        return invert(inverter, queries, advance, keep)


@torch.no_grad()
def calibrate(classifier: Classifier, calibration: AuditSet, config: AuditConfig, device: torch.device) -> Calibrated:
    """Learn what is usual for `classifier` on the calibration images, `robustness.batch_size` at a time.

    Raises ClassifierError where it assigns too few images to a class.
    """
    features, logits = [], []
    with preserve_mode(classifier), stage_progress(f"calibration {classifier.name}", len(calibration)) as advance:
        for images, _, rows in calibration.batches(config.robustness.batch_size):
            x, y = sparing(classifier, partial(classifier.features_and_logits, images.to(device)))
            if not (bool(x.isfinite().all()) and bool(y.isfinite().all())):
                where = where_not_finite(torch.cat([x, y], dim=1).cpu(), images, calibration.select(rows).row_ids)
                raise ClassifierError(f"Classifier '{classifier.name}' has NaN or infinite features or logits{where}")
            features.append(x.cpu())
            logits.append(y.cpu())
            advance(len(images))
    seen, answers = torch.cat(features), torch.cat(logits)
    decided = answers.argmax(1)
    fitted = fit_calibration(
        seen, decided, config.counterfactual, classifier.class_names, config.seed,
        classifier.name,
    )  # fmt: skip
    points = operating_points(answers.softmax(1), calibration.row_labels, decided)
    first = next(calibration.batches(PROBED))[0].to(device)
    seeing = "differentiable" if _has_gradient(classifier, first) else "no gradient"
    return Calibrated(fitted, points, f"{hash_tensor(seen)} {hash_tensor(answers)} {seeing}")


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


def check_target(classifier: Classifier, calibrated: Calibrated, target: str) -> None:
    """Raise ClassifierError if `target` is a class for which `classifier` has no operating point."""
    if target not in classifier.class_names:  # 'nearest' and 'runner-up' are known only once there are queries
        return
    if calibrated.operating_point[classifier.class_names.index(target)].isnan():
        raise ClassifierError(
            f"Classifier '{classifier.name}' gets no calibration image of class '{target}' right, so that nothing says "
            "how convincing a counterfactual towards it should be: choose another target or leave the classifier out."
        )


def explain_model(
    classifier: Classifier, calibrated: Calibrated, config: AuditConfig, networks: Networks, queries: Tensor,
    labels: Tensor, logits: Tensor, inversion: Inversion, store: Store | None, method: ChosenMethod,
) -> Explained:  # fmt: skip
    """Draw one classifier's counterfactuals of the query images.

    `queries` `[N, C, H, W]`, their `labels` `[N]` and the classifier's `logits` `[N, K]` on them belong together.
    Raises ClassifierError where a target class has no operating point.
    """
    generator = networks.loaded.generator

    def compute() -> Entry:
        targets = choose_targets(
            config.queries.target,
            logits,
            labels,
            classifier.class_names,
            lambda sources: nearest_targets(classifier, generator, inversion, sources, config.counterfactual),
        )
        assert not bool((targets == NOT_EXPLAINED).any()), "query images of the target class are never selected"
        for target in targets.unique().tolist():
            check_target(classifier, calibrated, classifier.class_names[target])
        with stage_progress(f"counterfactuals {classifier.name}", len(queries)) as advance:
            found = method.explain(
                CalibratedClassifier(classifier, calibrated.fitted, calibrated.operating_point),
                SearchNetworks(generator, networks.perceptual),
                InvertedQueries(queries, labels, inversion),
                targets,
                advance,
            )
        tensors = {f.name: value for f in fields(found) if (value := getattr(found, f.name)) is not None}
        return Entry(tensors | {"targets": targets}, {})

    entry = _cached(
        store if method.known_by_version else None,
        "counterfactuals",
        compute,
        # The features and logits stand for weights, code, preprocessing and class order of the classifier alike, but
        # not for the labels of the calibration images, which the operating point rests on.
        classifier=calibrated.key,
        operating_point=calibrated.operating_point,
        class_names=classifier.class_names,
        logits=logits,
        generator=networks.loaded.sha256,
        inversion=inversion.images,
        pivots=inversion.pivots,
        queries=queries,
        labels=labels,
        embedding=[networks.perceptual.name, networks.perceptual.weights_sha256],
        settings=config.counterfactual,
        package=method.package,
        target=config.queries.target,
        seed=config.seed,
    )
    tensors = dict(entry.tensors)
    targets = tensors.pop("targets")
    return Explained(Counterfactuals(**tensors), targets, calibrated.operating_point)
