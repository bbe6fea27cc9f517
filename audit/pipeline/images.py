"""The images of an audit, read once: those it measures, those it learns what is usual from, and a second source."""

from dataclasses import dataclass

import torch

from audit.config import AuditConfig
from audit.data.audit_set import AuditSet
from audit.data.describe import describe, describe_shift
from audit.data.fingerprint import fingerprint
from audit.data.load import calibration_split, load_data, load_shift
from audit.errors import ConfigError
from audit.pipeline.context import Context
from audit.pipeline.queries import source_classes
from audit.results import MAIN_REGION, DataRead, Notice

_OF_LABELS = {"labels", "label_is", "label_follows"}
"""Keys of the table 'queries' that are for images of several labels."""
CALIBRATION_PER_CLASS = 4000
"""Most calibration images a class is learnt from: more change nothing that matters and cost memory."""


@dataclass(frozen=True)
class Images:
    """All images, and of them the `audited` ones, with their hash.

    `calibration` is None where no stage needs it, and `foreign` where there is no second source. `attacked` are those
    to attack; None: the first of the audited ones in a seeded order.
    """

    all: AuditSet
    audited: AuditSet
    audited_sha256: str
    calibration: AuditSet | None
    foreign: AuditSet | None
    read: DataRead
    notices: tuple[Notice, ...]
    attacked: AuditSet | None = None


def listed(context: Context) -> tuple[AuditSet, str | None, AuditSet | None]:
    """List the images that the configuration names: all, the split to calibrate on and what is used of it, if any."""
    config = context.config
    images = load_data(config.data, config.seed)
    if config.generator is None and config.robustness.vulnerability is None:
        return images, None, None
    usual = calibration_split(config.data, images)
    return images, usual, _at_most_per_class(context, images.split(usual))


def read_images(context: Context) -> Images:
    """Read what the configuration names. Raises ConfigError or DataError for what cannot be audited."""
    config = context.config
    images, usual, calibration = listed(context)
    audited = images.split(config.data.audit_split)
    _check_confounders(config, images)
    _check_labels(config, images)
    if config.generator is not None and not images.is_multi_label:
        source_classes(config.queries, images.class_names)  # fails here, before the long stages
    foreign = None if config.data.shift is None else load_shift(config.data, config.seed, audited)
    described = describe(images, config.data.audit_split, usual)
    return Images(
        all=images,
        audited=audited,
        audited_sha256=fingerprint(audited),
        calibration=calibration,
        foreign=foreign,
        read=described.read,
        notices=(*described.notices, *([] if foreign is None else describe_shift(foreign))),
    )


def _check_confounders(config: AuditConfig, images: AuditSet) -> None:
    """Raise ConfigError for a confounder that is no region of the data, or the one that carries the class."""
    others = [name for name in images.regions if name != MAIN_REGION]
    wrong = [name for name in config.regions.confounder if name not in others]
    if wrong:
        what = "which carries the class" if wrong[0] == MAIN_REGION else f"which {images.source} has no masks of"
        hint = f"name one of {', '.join(others)}" if others else "give masks of it or remove the key"
        raise ConfigError(f"regions.confounder names the region '{wrong[0]}', {what}: {hint}.")


def _check_labels(config: AuditConfig, images: AuditSet) -> None:
    """Raise ConfigError for settings that do not fit images of one class, or of several labels."""
    weights, names = config.robustness.label_weights, images.class_names
    if weights and not images.is_multi_label:
        raise ConfigError("Key 'robustness.label_weights' is for images of several labels: remove it.")
    for name in weights:
        if name not in names:
            raise ConfigError(f"Key 'robustness.label_weights' names '{name}', which is no label: {', '.join(names)}.")
    if weights and not any(weights.values()):
        raise ConfigError("Key 'robustness.label_weights' leaves no label to attack: give one a weight above 0.")
    given = config.queries.model_fields_set
    for key in sorted(given & ({"classes", "target"} if images.is_multi_label else _OF_LABELS)):
        instead = "name labels by queries.labels" if images.is_multi_label else "remove it"
        kind = "one class" if images.is_multi_label else "several labels"
        raise ConfigError(f"Key 'queries.{key}' is for images of {kind}: {instead}.")
    for key in ("labels", "label_follows"):
        for name in getattr(config.queries, key) or ():
            if name not in names:
                raise ConfigError(f"Key 'queries.{key}' names '{name}', which is no label: {', '.join(names)}.")


def _at_most_per_class(context: Context, calibration: AuditSet) -> AuditSet:
    labels = calibration.row_labels
    order = torch.randperm(len(labels), generator=context.rng("calibration"))
    if calibration.is_multi_label:
        return calibration.select(order[: 2 * CALIBRATION_PER_CLASS].sort().values)
    rows = [order[labels[order] == c][:CALIBRATION_PER_CLASS] for c in range(len(calibration.class_names))]
    return calibration.select(torch.cat(rows).sort().values)
