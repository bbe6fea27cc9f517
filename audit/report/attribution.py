"""The report's tables and pictures of attribution maps, the baselines beside the edits."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from audit.report import figures
from audit.results import Attribution, ModelResult, RegionShare

TITLES = {
    "grad-cam": "Grad-CAM",
    "integrated-gradients": "Integrated Gradients",
    "occlusion": "Occlusion",
}
EXAMPLES = 6
"""Images whose maps are shown where no gallery shows them."""
DEPENDS = 0.5
"""Rank correlation with the map of shuffled weights above which the map is marked: it tells little of the model."""


@dataclass(frozen=True)
class Shown:
    """One image with its maps, each with its title, as data URIs."""

    id: str
    predicted: str
    image: str
    maps: list[tuple[str, str]]


def rows(model: ModelResult, region: str) -> Iterator[tuple[str, RegionShare | None, Attribution | None]]:
    """Yield (title, where the mass lies, method) of a model's edits, where there are any, and of every method."""
    if model.counterfactuals is not None:
        yield "edits", _of(model.counterfactuals.regions, region), None
    for one in model.attributions:
        yield TITLES[one.method], _of(one.regions, region), one


def _of(shares: Sequence[RegionShare], region: str) -> RegionShare | None:
    return next((share for share in shares if share.region == region), None)


def maps_of(model: ModelResult, row_id: str, folder: Path) -> list[tuple[str, str]]:
    """Return (title, data URI) of every map of one image."""
    return [
        (TITLES[one.method], _map_uri(folder, example.map_image))
        for one in model.attributions
        for example in one.examples
        if example.id == row_id
    ]


def examples(models: Sequence[ModelResult], folder: Path) -> list[tuple[str, list[Shown]]]:
    """Return the first few images of every model with their maps."""
    found = []
    for model in models:
        first = next((one.examples for one in model.attributions if one.examples), [])
        shown = [
            Shown(
                one.id,
                one.predicted,
                figures.file_uri(folder, one.image),
                maps_of(model, one.id, folder),
            )
            for one in first[:EXAMPLES]
        ]
        if shown:
            found.append((model.name, shown))
    return found


def _map_uri(folder: Path, file: str) -> str:
    # Each map over its own largest value: methods have no common unit.
    return figures.heat_uri(np.asarray(figures.read_image(folder, file).convert("L"), dtype=np.float64) / 255, 1.0)
