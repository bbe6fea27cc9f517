"""The classifiers of an audit, loaded; one that cannot be loaded leaves the others to be audited."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from audit.classifiers.checkpoint import existing_file
from audit.classifiers.classifier import Classifier
from audit.classifiers.containers.table import kind_and_place
from audit.classifiers.feature_networks import HookedNetwork, OutputNetwork
from audit.classifiers.load import load_classifier
from audit.classifiers.slices import Slices
from audit.config import ClassifierConfig, CounterfactualConfig, is_shipped
from audit.data.audit_set import AuditSet
from audit.errors import ClassifierError, ConfigError, Terminated
from audit.pipeline.context import Context
from audit.pipeline.images import Images
from audit.results import Failure, Notice
from audit.robustness.precision import precision_refused
from audit.runtime.faults import reason


@dataclass(frozen=True)
class Models:
    """The classifiers that could be loaded, by name why the others could not, and those that only judge."""

    classifiers: tuple[Classifier, ...]
    failed: Mapping[str, Failure]
    judges: tuple[Classifier, ...] = ()


def load_models(context: Context, images: Images) -> Models:
    """Load every classifier of the configuration.

    Raises ClassifierError where a file is not there, which is a mistake of the configuration, where none of the
    classifiers or not all of the judges can be loaded.
    """
    config = context.config
    for one in (*config.classifiers, *config.judge_checkpoints):
        check_files(one)
    classifiers: list[Classifier] = []
    failed: dict[str, Failure] = {}
    for one in config.classifiers:
        try:
            classifiers.append(load_model(one, context, images.all))
        except (KeyboardInterrupt, Terminated, ConfigError):
            raise
        except BaseException as error:  # noqa: BLE001 - foreign code may raise anything, SystemExit included
            failed[one.name] = Failure(stage="loading", why=reason(error))
    if not classifiers:
        raise none_left(list(failed.values()))
    return Models(
        tuple(classifiers), failed, tuple(load_model(one, context, images.all) for one in config.judge_checkpoints)
    )


def load_model(config: ClassifierConfig, context: Context, data: AuditSet) -> Classifier:
    """Load one classifier onto the audit's device. Raises ClassifierError, and whatever foreign code raises."""
    found = load_classifier(config, data.image_shape, data.class_names, context.base, independent=data.is_multi_label)
    classifier = found.to(context.device)
    classifier.slices = Slices(config.name, context.config.max_memory)
    if context.config.precision != "float32" and data.is_multi_label:
        why = "models of labels do so always."
        classifier.notices += (precision_refused(config.name, why),)
    classifier.notices += tuple(_notices_of_detail(classifier, data))
    if context.config.generator is not None:
        classifier.notices += tuple(_notices_of_counterfactuals(classifier, context.config.counterfactual))
    return classifier


def _notices_of_detail(classifier: Classifier, data: AuditSet) -> Iterator[Notice]:
    """Yield that images are made smaller than their files and than what the model was, by somebody's word, trained on.

    Its size by default is nobody's word: that the input was guessed is said elsewhere.
    """
    side, wanted = min(data.image_shape[1:]), min(classifier.input_shape[1:])
    if data.reading is None or classifier.input.origins["size"] not in ("configuration", "checkpoint"):
        return
    usual = int(np.median(data.reading.sizes.min(axis=1)))
    if side < min(wanted, usual):
        yield Notice(
            subject=classifier.name,
            kind="detail-lost",
            text=f"it takes images of {wanted} x {wanted} and most files have sides of {usual} and more, but all are "
            f"reduced to {side} x {side} before, so that it sees less than in training. Set data.image_size to "
            f"{wanted}, unless a generator draws smaller ones.",
        )


def _notices_of_counterfactuals(classifier: Classifier, settings: CounterfactualConfig) -> Iterator[Notice]:
    """Yield what counterfactuals go by where that is not the input of a linear layer, or no gradient."""
    if "gradient-free" in settings.methods:
        yield Notice(
            subject=classifier.name,
            kind="gradient-free",
            text="its counterfactuals by 'gradient-free' are searched by answers alone, with at most "
            f"{settings.queries} of them an image (counterfactual.queries): they are weaker, larger and fewer than "
            "those of methods that follow gradients, and show less of what the model decides by.",
        )
    if isinstance(classifier.network, OutputNetwork):
        yield Notice(
            subject=classifier.name,
            kind="features-are-logits",
            text="its logits come from no linear layer, so that its features are the logits themselves: "
            "counterfactuals are aligned with what is usual for these. Set features to the name of a module to go by "
            "its output.",
        )
    if isinstance(classifier.network, HookedNetwork):
        yield Notice(
            subject=classifier.name,
            kind="features-by-name",
            text=f"its features are the {classifier.network.features_of}, from which its logits do not follow by one "
            "linear layer: which features speak for a class is told by the gradient at each image.",
        )


def check_files(config: ClassifierConfig) -> None:
    """Raise ClassifierError for a file of the configuration that is not there."""
    contained = kind_and_place(config)
    if config.file is not None and contained is None:
        existing_file(config.file, "Classifier file")
    elif config.file is not None and contained is not None and not Path(contained[1]).exists():
        raise ClassifierError(f"'{contained[1]}' of classifier '{config.name}' does not exist: check the path.")
    if config.checkpoint is not None and not is_shipped(config.checkpoint):
        existing_file(config.checkpoint, "Checkpoint")
    place, _, _ = (config.factory or "").rpartition(":")
    if place.endswith(".py"):
        existing_file(place, "Factory file")


def none_left(failures: Sequence[Failure]) -> ClassifierError:
    """Return the error that nothing could be audited: the first reason, and how many more there are."""
    first, others = failures[0].why, len(failures) - 1
    tail = f" None of the other {others} classifiers could be audited either." if others > 1 else ""
    tail = " The other classifier could not be audited either." if others == 1 else tail
    return ClassifierError(f"{first}{tail}")
