"""The two long stages of an audit - inversion and counterfactuals - each kept in the store by all it depends on."""

from collections.abc import Callable
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from audit.classifiers.classifier import Classifier, weights_hash
from audit.classifiers.mode import preserve_mode
from audit.config import AuditConfig
from audit.counterfactual.exceptional import fit_calibration
from audit.counterfactual.iterates import operating_points
from audit.counterfactual.spruce import Counterfactuals, explain
from audit.counterfactual.targets import NOT_EXPLAINED, choose_targets
from audit.data.audit_set import AuditSet
from audit.ground import Ground
from audit.inversion.invert import Inversion, invert
from audit.inversion.storing import from_entry, to_entry
from audit.progress import stage_progress
from audit.store import Entry, Store, hash_tensor


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
    config: AuditConfig, ground: Ground, queries: Tensor, store: Store | None, device: torch.device
) -> Inversion:
    """Invert the query images once for all models; an inversion depends on generator, image and settings only."""

    def compute() -> Entry:
        with stage_progress("inversion (images)", len(queries)) as advance:
            found = invert(
                ground.loaded.generator, queries.to(device), config.inversion, config.seed, ground.network,
                ground.encoder, advance,
            )  # fmt: skip
        return to_entry(found)

    entry = _cached(
        store,
        "inversion",
        compute,
        generator=ground.loaded.sha256,
        encoder=None if ground.encoder is None else weights_hash(ground.encoder.state_dict()),
        embedding=ground.network.weights_sha256,
        images=queries,
        settings=config.inversion,
        seed=config.seed,
    )
    return from_entry(entry)


@torch.no_grad()
def _calibration_features(
    classifier: Classifier, calibration: AuditSet, batch_size: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    features, logits = [], []
    with preserve_mode(classifier), stage_progress(f"calibration {classifier.name}", len(calibration)) as advance:
        for images, _, _ in calibration.batches(batch_size):
            x, y = classifier.features_and_logits(images.to(device))
            features.append(x.cpu())
            logits.append(y.cpu())
            advance(len(images))
    return torch.cat(features), torch.cat(logits)


def explain_model(
    classifier: Classifier, config: AuditConfig, ground: Ground, queries: Tensor, labels: Tensor, logits: Tensor,
    inversion: Inversion, calibration: AuditSet, store: Store | None, device: torch.device,
) -> Explained:  # fmt: skip
    """Calibrate one classifier on the calibration split and draw its counterfactuals of the query images.

    `queries` `[N, C, H, W]`, their `labels` `[N]` and the classifier's `logits` `[N, K]` on them belong together.
    Raises ClassifierError where the classifier assigns too few calibration images to a class.
    """
    generator = ground.loaded.generator

    def compute() -> Entry:
        features, real_logits = _calibration_features(classifier, calibration, config.robustness.batch_size, device)
        decided = real_logits.argmax(1)
        fitted = fit_calibration(
            features, decided, classifier.num_classes, config.counterfactual, classifier.class_names, config.seed,
            classifier.name,
        )  # fmt: skip
        points = operating_points(real_logits.softmax(1), calibration.row_labels, decided)
        targets = choose_targets(
            config.queries.target, logits, labels, classifier.class_names, classifier, generator, inversion,
            config.counterfactual,
        )  # fmt: skip
        assert not bool((targets == NOT_EXPLAINED).any()), "query images of the target class are never selected"
        with stage_progress(f"counterfactuals {classifier.name}", len(queries)) as advance:
            found = explain(
                classifier, generator, inversion, queries, labels, targets, fitted, points, config.counterfactual,
                ground.network, advance,
            )  # fmt: skip
        tensors = {f.name: getattr(found, f.name) for f in fields(Counterfactuals)}
        return Entry(tensors | {"targets": targets, "operating_point": points}, {})

    entry = _cached(
        store,
        "counterfactuals",
        compute,
        classifier=classifier.weights_sha256,
        source=classifier.source,
        generator=ground.loaded.sha256,
        mean=classifier.mean,
        std=classifier.std,
        input_shape=list(classifier.input_shape),
        inversion=inversion.images,
        pivots=inversion.pivots,
        images=queries,
        embedding=ground.network.weights_sha256,
        calibration=[calibration.source, hash_tensor(calibration.row_labels), len(calibration)],
        data=config.data,
        settings=config.counterfactual,
        target=config.queries.target,
        seed=config.seed,
    )
    tensors = dict(entry.tensors)
    targets, points = tensors.pop("targets"), tensors.pop("operating_point")
    return Explained(Counterfactuals(**tensors), targets, points)
