"""The certificate of loading: what the loader and the first stages saw of a model, by line. Nothing is run again."""

from collections.abc import Iterator, Sequence

from audit.classifiers.certify import draws_at_random
from audit.classifiers.classifier import Classifier
from audit.pipeline.first_look import Look
from audit.results import LoadingCheck, ModelInput, Reading, TrustCheck
from audit.robustness.trust.batch_dependence import NAME as BATCH_DEPENDENCE

INPUT, READINGS, DETERMINISM, BATCHES = "input", "readings", "determinism", "batches"
GUESSED = ("timm", "library", "default")
"""Origins of settings that nobody stated for this model."""


def certificate(classifier: Classifier, look: Look, checks: Sequence[TrustCheck]) -> list[LoadingCheck]:
    """Return the lines for a model: `look` is the first look at it, `checks` those made with its clean accuracy."""
    return [
        _input(classifier.input),
        *_readings(look.readings),
        _determinism(classifier),
        *_batches(checks),
        *look.checks,
    ]


def _input(given: ModelInput) -> LoadingCheck:
    guessed = [key for key in ("size", "channels", "mean", "std", "classes") if given.origins.get(key) in GUESSED]
    if guessed:
        said = f"Nobody stated {', '.join(guessed)} for this model: what is taken may be right or not."
        return LoadingCheck(name=INPUT, passed=None, finding=said)
    return LoadingCheck(
        name=INPUT, passed=True, finding="Size, channels, mean, std and classes are stated for this model."
    )


def _readings(readings: Sequence[Reading]) -> Iterator[LoadingCheck]:
    others = [one for one in readings if not one.assumed and one.not_tried is None]
    better = [one.name for one in others if one.better]
    if others:
        seen = f"{len(others)} other usual readings of the input were tried"
        meaning = f"better by more than chance: {', '.join(better)}" if better else "none is better by more than chance"
        yield LoadingCheck(name=READINGS, passed=not better, finding=f"{seen}; {meaning}.")


def _determinism(classifier: Classifier) -> LoadingCheck:
    if draws_at_random(classifier):
        said = "Two answers to the same images differ: its forward draws at random."
        return LoadingCheck(name=DETERMINISM, passed=False, finding=said)
    return LoadingCheck(name=DETERMINISM, passed=True, finding="Two answers to the same images are the same.")


def _batches(checks: Sequence[TrustCheck]) -> Iterator[LoadingCheck]:
    for one in checks:
        if one.name == BATCH_DEPENDENCE:
            yield LoadingCheck(name=BATCHES, passed=one.passed, value=one.value, limit=one.limit, finding=one.finding)
