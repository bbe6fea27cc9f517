"""The report's certificate of loading: one row a model, a mark a check, and the findings on demand."""

from collections.abc import Sequence

from audit.results import LoadingCheck, ModelResult

TITLES = {
    "input": "Input stated",
    "readings": "No better reading",
    "determinism": "Deterministic",
    "batches": "Image by image",
    "gradient": "Gradient",
    "compiled": "Compiled alike",
}
"""Headings by the name of a check, in the order of the columns."""
MARKS = {True: "passed", False: "failed", None: "open"}
"""What a mark says; open: not tried, or nothing to tell it by."""


def certified(models: Sequence[ModelResult]) -> list[ModelResult]:
    """Return the models that have a certificate."""
    return [model for model in models if model.certificate]


def columns(models: Sequence[ModelResult]) -> list[str]:
    """Return the names of all checks that some model has, the known ones first."""
    found = list(dict.fromkeys(check.name for model in models for check in model.certificate))
    return sorted(found, key=lambda name: list(TITLES).index(name) if name in TITLES else len(TITLES))


def check_of(model: ModelResult, name: str) -> LoadingCheck | None:
    """Return the check of that name; None where the model was not given to it."""
    return next((check for check in model.certificate if check.name == name), None)
