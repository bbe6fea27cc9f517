"""The look at every model before anything long: what it may have been given wrongly is said while it can be mended."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from audit.classifiers.certify import IMAGES, compiled_check, draws_at_random, gradient_check
from audit.classifiers.classifier import Classifier
from audit.data.audit_set import AuditSet
from audit.pipeline.context import Context
from audit.results import LoadingCheck, Notice, Reading
from audit.robustness.sanity.doubts import input_notices
from audit.robustness.sanity.measure import read_otherwise, sample_of
from audit.runtime.progress import remark

CODE = ("audit.classifiers.certify", "audit.robustness.sanity")


@dataclass(frozen=True)
class Look:
    """What was seen of one model."""

    readings: list[Reading] = field(default_factory=list)
    notices: list[Notice] = field(default_factory=list)
    checks: list[LoadingCheck] = field(default_factory=list)


def first_looks(context: Context, classifiers: Sequence[Classifier], audited: AuditSet) -> dict[str, Look]:
    """Return a look at every classifier by its name, on a few images of `audited`.

    What it finds is also said on a terminal at once: the stages after this one may take hours.
    """
    names = audited.class_names
    # Labels that are numbers have an order by themselves, and `data.classes` is one that somebody wrote down.
    stated = context.config.data.classes is not None or all(name == f"class {k}" for k, name in enumerate(names))
    looks = {}
    for classifier in classifiers:
        readings, checks = seen_of(context, classifier, audited)
        notices = input_notices(classifier.name, classifier.input, readings, audited.image_shape, names, stated=stated)
        for notice in notices:
            remark(f"Note on {notice.subject}: {notice.text}")
        looks[classifier.name] = Look(readings, notices, checks)
    return looks


def seen_of(context: Context, classifier: Classifier, audited: AuditSet) -> tuple[list[Reading], list[LoadingCheck]]:
    """Return how one classifier answers to images given otherwise, and checks of how it was loaded; nothing is said."""
    config, device = context.config, context.device
    sample = sample_of(audited, config.seed)
    architecture = {one.name: one.architecture for one in config.classifiers}.get(classifier.name)

    def look() -> tuple[list[Reading], list[LoadingCheck]]:
        few = sample.images(range(min(IMAGES, len(sample)))).to(device)
        readings = read_otherwise(classifier, sample, architecture, device)
        return readings, [gradient_check(classifier, few), compiled_check(classifier, few, config.compiled)]

    return context.of(classifier).kept(
        "first look", look, CODE, images=sample.content, compiled=config.compiled, architecture=architecture,
        random=draws_at_random(classifier),
    )  # fmt: skip
