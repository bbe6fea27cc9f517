"""Counterfactuals of one classifier by the configured method, kept in the cache by all they depend on."""

from dataclasses import dataclass, fields, replace

from torch import Tensor

from audit.classifiers.classifier import Classifier
from audit.counterfactual.methods import ChosenMethod
from audit.counterfactual.protocol import Counterfactuals, InvertedQueries, SearchNetworks
from audit.counterfactual.targets import NOT_EXPLAINED, choose_targets, nearest_targets
from audit.pipeline.calibrate import Calibrated, check_target
from audit.pipeline.context import Context
from audit.pipeline.networks import Networks
from audit.pipeline.queries import Queries
from audit.results import Clean
from audit.runtime.progress import stage_progress
from audit.storage.cache import Entry


@dataclass(frozen=True)
class Subject:
    """One classifier to explain: what is usual for it, and its logits `[N, K]` and accuracy on the audited images."""

    calibrated: Calibrated
    logits: Tensor
    clean: Clean

    @property
    def classifier(self) -> Classifier:
        return self.calibrated.classifier

    @property
    def name(self) -> str:
        return self.classifier.name


@dataclass(frozen=True)
class Explained:
    """One classifier's counterfactuals of the query images towards its `targets` `[N]`."""

    subject: Subject
    counterfactuals: Counterfactuals
    targets: Tensor


def explain_model(
    context: Context, method: ChosenMethod, networks: Networks, queries: Queries, subject: Subject
) -> Explained:
    """Draw one classifier's counterfactuals of the query images; the targets are the same for every `method`.

    Raises ClassifierError where a target class has no operating point, and MethodError for a fault of the method.
    """
    config, calibrated, classifier = context.config, subject.calibrated, subject.classifier
    generator, inversion, logits = networks.loaded.generator, queries.inversion, subject.logits[queries.positions]

    def compute() -> Entry:
        targets = choose_targets(
            config.queries.target,
            logits,
            queries.labels,
            classifier.class_names,
            lambda sources: nearest_targets(classifier, generator, inversion, sources, config.counterfactual),
        )
        assert not bool((targets == NOT_EXPLAINED).any()), "query images of the target class are never selected"
        for target in targets.unique().tolist():
            check_target(calibrated, classifier.class_names[target])
        with stage_progress(f"counterfactuals {classifier.name}", len(queries.images)) as advance:
            found = method.explain(
                calibrated,
                SearchNetworks(generator, networks.perceptual),
                InvertedQueries(queries.images, queries.labels, inversion),
                targets,
                advance,
            )
        tensors = {f.name: value for f in fields(found) if (value := getattr(found, f.name)) is not None}
        return Entry(tensors | {"targets": targets}, {})

    entry = (context if method.known_by_version else replace(context, store=None)).cached(
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
        queries=queries.images,
        labels=queries.labels,
        embedding=[networks.perceptual.name, networks.perceptual.weights_sha256],
        settings=config.counterfactual.model_copy(update={"method": method.name}),
        package=method.package,
        target=config.queries.target,
        seed=config.seed,
    )
    tensors = dict(entry.tensors)
    targets = tensors.pop("targets")
    return Explained(subject, Counterfactuals(**tensors), targets)
