"""The table of the report that holds the audited counterfactual method against those it is compared with."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from audit.report import figures
from audit.results import EDIT_FULL_SCALE, AuditResult, ComparedMethod, ModelResult, QueryRow

SHOWN = 3
"""Query images that every method is shown on."""


@dataclass(frozen=True)
class Sample:
    """One counterfactual and its edit map, as data URIs."""

    row: QueryRow
    counterfactual: str
    edit: str


@dataclass(frozen=True)
class Method:
    """One method on one model. `numbers` is the model's own row for the audited method; `seconds` are per image."""

    name: str
    audited: bool
    numbers: ModelResult | ComparedMethod
    seconds: float | None
    samples: list[Sample]


def compared(
    result: AuditResult, models: Sequence[ModelResult], folder: Path, scale: float
) -> list[tuple[ModelResult, list[Method]]]:
    """Return every model that was explained by several methods, and those, the audited one first.

    Pictures lie in `folder`; `scale` is the change that the edit maps show brightest.
    """
    images = sum(model.counterfactuals.n for model in models if model.counterfactuals is not None)

    def method(name: str, stage: str, numbers: ModelResult | ComparedMethod) -> Method:
        seconds = result.environment.seconds.get(stage)
        samples = [found for row in numbers.queries[:SHOWN] if (found := _sample(row, folder, scale)) is not None]
        audited = isinstance(numbers, ModelResult)
        return Method(name, audited, numbers, seconds / images if seconds is not None and images else None, samples)

    tables = []
    for model in models:
        if model.methods and model.counterfactuals is not None:
            first = method(model.counterfactuals.method or "", "counterfactuals", model)
            others = [method(name, f"counterfactuals by {name}", one) for name, one in model.methods.items()]
            tables.append((model, [first, *others]))
    return tables


def _sample(row: QueryRow, folder: Path, scale: float) -> Sample | None:
    if row.counterfactual_image is None or row.edit_image is None:
        return None
    edit = np.asarray(figures.read_image(folder, row.edit_image).convert("L")) / 255 * EDIT_FULL_SCALE
    image = figures.read_image(folder, row.counterfactual_image)
    return Sample(row, figures.image_uri(image), figures.heat_uri(edit, scale))
