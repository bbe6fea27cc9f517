"""What each model decides by: sentences no stronger than its numbers, and the picture that shows it best."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray
from PIL import Image

from audit.report import figures
from audit.report.text import bounds, finite, percent, probability, region_of, wrong_region
from audit.results import (
    EDIT_FULL_SCALE,
    MAIN_REGION,
    Answered,
    AuditResult,
    Comparison,
    Counterfactuals,
    Interval,
    ModelResult,
    Query,
    QueryRow,
    RegionShare,
)

METHODS = {
    "spruce": "SPRUCE",
    "piece": "PIECE",
    "latent-shift": "latent shift",
    "latent-gradient": "latent gradient",
}
"""Words for the counterfactual methods; any other is called by its name."""
CHANCE = 0.05
"""An edit keeps to a region where a share as large would come about by chance with at most this probability."""
NAMED = 3
"""Models told one by one that a model cannot be told apart from."""
MANY_IMAGES = 10_000
CROP = 0.7
"""A region that takes more of the image's side than this, with a margin around it, is shown with the whole image."""


@dataclass(frozen=True)
class Shot:
    """One picture of a sequence, as data URI, and what it shows."""

    uri: str
    what: str
    note: str


@dataclass(frozen=True)
class Clearest:
    """The query image on which a model's edit is seen best: its pictures, and the probability at each step.

    `why` says by which rule it was chosen.
    """

    row: QueryRow
    why: str
    shots: list[Shot]
    trace: Markup


@dataclass(frozen=True)
class Account:
    """One model's part of the section."""

    model: ModelResult
    sentences: list[Markup]
    clearest: Clearest | None


def method_name(counterfactuals: Counterfactuals) -> str:
    """Return what a method is called, with the package that brings it."""
    name = counterfactuals.method or "an unnamed method"
    package = f" ({counterfactuals.method_package})" if counterfactuals.method_package else ""
    return METHODS.get(name, name) + package


def accounts(result: AuditResult, models: Sequence[ModelResult], folder: Path) -> list[Account]:
    """Return what is to be said of each model that was explained; its pictures lie in `folder`."""
    queries = {query.id: query for query in result.queries}
    return [
        Account(model, account(model, result), _clearest(model, queries, folder))
        for model in models
        if model.counterfactuals is not None
    ]


def account(model: ModelResult, result: AuditResult) -> list[Markup]:
    """Return in sentences what an explained model decides by, how sure that is, and whom it is level with."""
    scores = model.counterfactuals
    assert scores is not None
    if scores.unexplained is not None:
        why = Markup("<strong>No edit within the generator's range explains this model:</strong> {}.")
        return [why.format(scores.unexplained), *_level(model, result)]
    said = [_place(model)]
    if finite(model.components.transfer):
        copies = f"; an independently trained copy shares {_share(scores.nafr)}" if _known(scores.nafr) else ""
        said.append(
            Markup("Independent judges agree with {} of its flips{}.").format(
                percent(model.components.transfer, 0), copies
            )
        )
    if finite(model.components.response):
        said.append(_answered(model.components.response, scores.answered))
    if (scores.flip_ratio.value or 0) < 0.9 and finite(scores.flip_ratio.value):
        said.append(
            Markup("It was flipped on {} of the query images only; its other scores rest on those.").format(
                percent(scores.flip_ratio.value, 0)
            )
        )
    if going := scores.still_shrinking:
        said.append(
            Markup("{} of {} edits still shrank when the search ended; smaller ones may exist.").format(going, scores.n)
        )
    return [*said, *_level(model, result)]


def _place(model: ModelResult) -> Markup:
    """Say where the edits lie; "decides by" only where most flips are lost without the part that lies there."""
    scores = model.counterfactuals
    assert scores is not None
    if not scores.regions:
        return Markup("No regions were given: where its edits lie, only the pictures show.")
    row = told_region(model)
    if row is None:
        most = max(scores.regions, key=lambda one: one.lift or 0.0)
        if not finite(most.mass):
            return Markup("No query image shows a region.")
        return Markup("Its edits keep to no named region beyond chance; nearest comes the {}: {}.").format(
            most.region, _mass(most)
        )
    where = "the region that carries the class" if row.region == MAIN_REGION else f"the {row.region}"
    if not _known(row.undone):
        return Markup("Its edits keep to {}: {}.").format(where, _mass(row))
    assert row.undone is not None
    alone = f"; that part alone keeps {_share(row.alone)} of them" if _known(row.alone) else ""
    if decides(row):
        return Markup("<strong>Decides by {}:</strong> {}. Without that part {} of its flips stay{}.").format(
            where, _mass(row), _share(row.undone), alone
        )
    return Markup("Its edits keep to {}: {}. But {} of its flips stay without that part{}.").format(
        where, _mass(row), _share(row.undone), alone
    )


def told_region(model: ModelResult) -> RegionShare | None:
    """Return the region that a model's edits keep to beyond chance; of several the class's own, if not outweighed."""
    wrong = wrong_region(model)
    main = region_of(model, MAIN_REGION)
    if wrong is not None and beyond_chance(wrong):
        return wrong
    if main is not None and beyond_chance(main):
        return main
    rows = model.counterfactuals.regions if model.counterfactuals else []
    return max((row for row in rows if beyond_chance(row)), key=lambda row: row.lift or 0.0, default=None)


def beyond_chance(row: RegionShare) -> bool:
    """Say whether more of the edit lies in a region than its area and chance give, at both ends of the interval."""
    least = row.mass if row.mass_interval is None else row.mass_interval[0]
    if least is None or row.area is None or not (finite(least) and finite(row.area)):
        return False
    return least > row.area and (row.p_value is None or row.p_value <= CHANCE)


def decides(row: RegionShare) -> bool:
    """Say whether most flips are lost, beyond chance, where the part of the edit inside the region is undone."""
    return beyond_chance(row) and row.undone is not None and finite(row.undone.high) and (row.undone.high or 0.0) < 0.5


def _mass(row: RegionShare) -> str:
    low, high = row.mass_interval or (None, None)
    between = f" {bounds(low, high, 100, 0)}" if bounds(low, high) else ""
    return f"{percent(row.mass, 0)}{between} of the edit lies there, on {percent(row.area)} of the image"


def _known(interval: Interval | None) -> bool:
    return interval is not None and finite(interval.value)


def _answered(response: float | None, answered: Answered | None) -> Markup:
    """Return what the model answers to; without acquisition, as in files of before, the `response` alone."""
    if answered is None or answered.acquisition is None:
        return Markup(
            "Of what it answers to the edits of all models, {} is answered to their part in the region."
        ).format(percent(response, 0))
    return Markup(
        "Of what it answers to the edits of all models and to another exposure and contrast of the image, {} is "
        "answered to the edits' part in the region, {} to their rest and {} to exposure and contrast."
    ).format(percent(answered.region, 0), percent(answered.rest, 0), percent(answered.acquisition, 0))


def _share(interval: Interval | None) -> str:
    assert interval is not None
    return f"{percent(interval.value, 0)} {bounds(interval.low, interval.high, 100, 0)}".strip()


def _level(model: ModelResult, result: AuditResult) -> list[Markup]:
    """Say which models cannot be told apart from this one, and how many images would do it; none for a lone model."""
    level = [one for one in result.comparisons if model.name in (one.a, one.b) and not told_apart(one, result)]
    if not level or model.counterfactuals is None:
        return []
    others = [(one.b if one.a == model.name else one.a, one) for one in level]
    told = ", ".join(f"{other} ({_images(one, other)})" for other, one in others[:NAMED])
    more = f" and {len(others) - NAMED} more models" if len(others) > NAMED else ""
    return [Markup("On these {} images it cannot be told apart from {}{}.").format(model.counterfactuals.n, told, more)]


def told_apart(one: Comparison, result: AuditResult) -> bool:
    """Say whether one of the two has the higher index with the probability that the audit asks for."""
    ranking = result.config.get("ranking")
    value = ranking.get("separation") if isinstance(ranking, Mapping) else None
    separation = float(value) if isinstance(value, int | float) else 0.95
    return not finite(one.probability) or max(one.probability, 1 - one.probability) >= separation


def _images(one: Comparison, other: str) -> str:
    higher = one.probability if one.b == other else 1 - one.probability
    if one.images_needed is None:
        return f"higher with probability {probability(higher)}"
    return f"{about(one.images_needed)} would be needed"


def about(images: int) -> str:
    """Return in words a number of images to two digits, for it is no surer than that."""
    if images > MANY_IMAGES:
        return f"more than {MANY_IMAGES}"
    digits = max(len(str(images)) - 2, 0)
    return f"about {round(images, -digits)}"


def _clearest(model: ModelResult, queries: Mapping[str, Query], folder: Path) -> Clearest | None:
    """Return the pictures of the query image on which the edit is seen best; None where there is nothing to show."""
    assert model.counterfactuals is not None
    shown = [row for row in model.queries if _is_shown(row, queries)]
    if not shown or model.counterfactuals.unexplained is not None:
        return None
    told = told_region(model)
    region = None if told is None else told.region

    def change(row: QueryRow) -> float:
        mass, area = row.mass.get(region or ""), row.area.get(region or "")
        return row.l1 * mass / area if mass and area else 0.0

    row = max(shown, key=lambda one: (one.converged is not False, change(one), one.l1))
    changes = "most changes" if region is None else f"the {region} changes most"
    settled = ", of those whose edit had stopped to shrink" if row.converged else ""
    why = f"the query image on which {changes}{settled}"
    return Clearest(row, why, _shots(row, queries[row.query], region, folder), trace_of(row, model))


def _is_shown(row: QueryRow, queries: Mapping[str, Query]) -> bool:
    query = queries.get(row.query)
    pictures = (row.counterfactual_image, row.edit_image, None if query is None else query.inversion_image)
    return row.flipped and not row.ruined and not row.wrong and None not in pictures


def _shots(row: QueryRow, query: Query, region: str | None, folder: Path) -> list[Shot]:
    """Return the whole image with a frame around what follows, then enlarged before, last before the flip, after."""

    def read(name: str | None) -> Image.Image:
        return figures.read_image(folder, str(name))

    before = read(query.inversion_image)
    box = _box(read(query.region_images[region]), before.size) if region in query.region_images else None
    edit = np.asarray(read(row.edit_image).convert("L").resize(before.size, 0)) / 255 * EDIT_FULL_SCALE
    cut = edit if box is None else edit[box[1] : box[3], box[0] : box[2]]
    scale = max(float(cut.max()), 1 / 255)

    more = " or more" if scale >= EDIT_FULL_SCALE else ""

    def crop(name: str | None) -> str:
        picture = read(name)
        return figures.image_uri(picture if box is None else picture.crop(box))

    shots = [Shot(crop(query.inversion_image), "before", row.source)]
    if row.semifactual_image is not None and row.flip_step:
        shots.append(Shot(crop(row.semifactual_image), "just before it flips", f"still {row.source}"))
    shots.append(Shot(crop(row.counterfactual_image), "after", f"{row.target} {percent(row.confidence, 0)}"))
    shots.append(
        Shot(figures.heat_uri(cut, scale), "difference", f"brightest: {percent(scale, 0)} of the pixel range{more}")
    )
    whole = [] if box is None else [Shot(figures.framed_uri(before, box), "the image", "framed: enlarged beside it")]
    return whole + shots


def _box(mask: Image.Image, size: tuple[int, int]) -> tuple[int, int, int, int] | None:
    """Return a square around a mask with as much again around it; None where that is most of the image."""
    inside: NDArray[np.bool_] = np.asarray(mask.convert("L").resize(size, 0)) > 127
    ys, xs = np.flatnonzero(inside.any(1)), np.flatnonzero(inside.any(0))
    if not len(ys):
        return None
    side = int(max(2.2 * max(ys[-1] - ys[0] + 1, xs[-1] - xs[0] + 1), min(size) / 4))
    if side > CROP * min(size):
        return None
    left = min(max(int(xs[0] + xs[-1] + 1 - side) // 2, 0), size[0] - side)
    top = min(max(int(ys[0] + ys[-1] + 1 - side) // 2, 0), size[1] - side)
    return left, top, left + side, top + side


def trace_of(row: QueryRow, model: ModelResult) -> Markup:
    """Return the small plot of one image's probability of its target class, step by step."""
    goal = model.counterfactuals.operating_point.get(row.target) if model.counterfactuals else None
    ended = "" if row.flip_step is None else f", flips at step {row.flip_step}"
    label = (
        f"Probability of {row.target} by step, {model.name} on {row.query}: from {percent(row.trace[0], 0)} "
        f"to {percent(row.confidence, 0)} at step {row.step}{ended}"
        if row.trace and finite(row.trace[0])
        else ""
    )
    return figures.spark_line(row.trace, (row.flip_step, row.step), goal, label)
