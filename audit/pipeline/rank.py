"""The meaningfulness index and the order of the models, with a bootstrap over query images (Efron 1979).

Index = 100 x weighted geometric mean of the components that all models have. A component that one model lacks is left
out for all, or indices would not compare; where all have a response, others weigh less by default. In the mean (not in
what is printed) a component below 0.01 counts as 0.01, so that a single zero does not erase the order among models that
share it.

Every draw takes the same images for all models, so what makes an image hard or easy cancels in the comparison. A model
that is explained on images of its own is drawn by itself, and never changes what the index of the others rests on:
where it lacks a component of theirs, it has no index. A model with a veto has the index 0, in every draw.

Model A is *surely above* B when A's index is the higher one in at least `separation` of the draws (ties count half).
Ordered by index, a *tier* ends where every model so far is surely above every model still to come; a model's rank is 1
+ the number of models in higher tiers. "Cannot be told apart" is not transitive - a first model may be surely above the
third but not above the second - so models that hang together by such a chain share a tier, and ranks never contradict
the order of the indices.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import NormalDist

import torch
from torch import Tensor

from audit.config import RankingConfig
from audit.errors import MetricError
from audit.metrics.components import ModelScores, components
from audit.results import COMPONENTS, Comparison, Components, Interval, NotComputed
from audit.runtime.seeds import stage_generator

FLOOR = 0.01
LEVEL = 0.95


@dataclass(frozen=True)
class ModelRank:
    """One model's place: `index` and `interval` in 0 to 100, None where there is no index; `not_computed` says why."""

    name: str
    rank: int | None
    index: float | None
    interval: tuple[float, float] | None
    components: Components
    component_intervals: dict[str, tuple[float, float]] = field(default_factory=dict)
    veto: str | None = None
    not_computed: list[NotComputed] = field(default_factory=list)


@dataclass(frozen=True)
class Ranking:
    """The order of the models (as given, not sorted), their pairwise comparison, and what the index rests on: the
    components that are `used`, with their weights.
    """

    models: list[ModelRank]
    comparisons: list[Comparison]
    used: Mapping[str, float]
    not_computed: list[NotComputed]


def weighted_index(values: Mapping[str, Tensor], weights: Mapping[str, float]) -> Tensor:
    """Index in 0 to 100 from components of any one shape: weighted geometric mean with every component at least 0.01.

    Only components with a positive weight count; raises MetricError if there is none.
    """
    used = {key: weights[key] for key in values if weights[key] > 0}
    if not used:
        raise MetricError("No component with a positive weight is available: raise a weight in the table 'ranking'.")
    logs = sum(weight * values[key].clamp(FLOOR, 1).log() for key, weight in used.items())
    assert isinstance(logs, Tensor)
    return 100 * (logs / sum(used.values())).exp()


def bootstrap_weights(images: int, draws: int, seed: int, stage: str = "bootstrap") -> Tensor:
    """How often each image is in each resample with replacement: float64 `[draws, images]`, rows sum to `images`."""
    drawn = torch.randint(images, (draws, images), generator=stage_generator(seed, stage))
    weights = torch.zeros(draws, images, dtype=torch.float64)
    return weights.scatter_add_(1, drawn, torch.ones_like(drawn, dtype=torch.float64))


def probability_above(a: Tensor, b: Tensor) -> float:
    """Share of draws in which `a` `[B]` exceeds `b` `[B]`; draws that are equal count half."""
    return float(((a > b).double() + 0.5 * (a == b).double()).mean())


def tier_ranks(index: Tensor, above: Tensor, separation: float) -> list[int]:
    """Return the ranks of models by the tiers that they fall into.

    `above` `[M, M]` is the probability that the row's model beats the column's; `index` `[M]` orders the models.
    """
    order = index.argsort(descending=True, stable=True)
    sure = above[order][:, order] >= separation
    ranks, first = [1] * len(index), 1
    for place, model in enumerate(order.tolist()):
        first = place + 1 if bool(sure[:place, place:].all()) else first
        ranks[model] = first
    return ranks


def images_needed(difference: float, draws: Tensor, n: int, separation: float) -> int | None:
    """Return how many query images would tell two models apart, if their indices differ by as much as on these `n`.

    `draws` `[B]` are the bootstrap's differences; `difference` is that of the estimates. Their spread s falls with the
    square root of n, and a normal difference d is above 0 in a share `separation` of the draws where d = z s, z the
    normal quantile: n (z s / d)^2 images. None where d is 0.
    """
    if difference == 0:
        return None
    z = NormalDist().inv_cdf(separation)
    return max(math.ceil(n * (z * float(draws.std()) / difference) ** 2), n + 1)


def _interval(draws: Tensor) -> tuple[float, float]:
    tail = (1 - LEVEL) / 2
    low, high = torch.quantile(draws, torch.tensor([tail, 1 - tail], dtype=draws.dtype)).tolist()
    return low, high


def _difference(estimate: Tensor, draws: Tensor, n: int) -> Interval:
    low, high = _interval(draws)
    return Interval(value=float(estimate), low=low, high=high, level=LEVEL, n=n)


def _redrawn(scores: ModelScores, weights: Tensor, estimate: Mapping[str, Tensor]) -> dict[str, Tensor]:
    # A draw in which no image defines a component carries no news about it and repeats the estimate.
    draws, _ = components(scores, weights)
    return {key: torch.where(draw.isfinite(), draw, estimate[key]) for key, draw in draws.items()}


def rank_models(
    models: Sequence[ModelScores], config: RankingConfig, seed: int, unpaired: Collection[str] = ()
) -> Ranking:
    """Index, 95 % intervals, pairwise probabilities and shared ranks of models.

    All are scored on the same query images but those named in `unpaired`. Reproducible from `seed`. Raises MetricError
    if there are no models, no images, or paired models differ in images.
    """
    paired = [model for model in models if model.name not in unpaired]
    counts = sorted({len(model.flipped) for model in paired or models[:1]})
    if len(counts) != 1 or any(len(model.flipped) == 0 for model in models):
        raise MetricError(
            f"Models are ranked on the same query images; given {len(models)} models on {counts} images: score every "
            "model on all queries."
        )
    together = bootstrap_weights(counts[0], config.bootstrap, seed)
    measured = [components(model, torch.ones(1, len(model.flipped), dtype=torch.float64)) for model in models]
    estimates, missing = [values for values, _ in measured], [why for _, why in measured]
    draws = []
    for model, estimate in zip(models, estimates, strict=True):
        n, stage = len(model.flipped), f"bootstrap/{model.name}"
        resample = bootstrap_weights(n, config.bootstrap, seed, stage) if model.name in unpaired else together
        draws.append(_redrawn(model, resample, estimate))

    leading = [model.name for model in paired or models]
    theirs = {model.name: values for model, values in zip(models, estimates, strict=True) if model.name in leading}
    there = {key for key in COMPONENTS if all(key in values for values in theirs.values())}
    weights = config.weights(response="response" in there)
    used = {key: weights[key] for key in COMPONENTS if weights[key] > 0 and key in there}
    notes = [
        _left_out(key, f"left out for all models, as {_lacking(key, theirs)}")
        for key in COMPONENTS
        if weights[key] > 0 and key not in used
    ]
    notes += [_left_out(key, _unweighted(key, config, theirs)) for key in COMPONENTS if weights[key] == 0]
    if not used:
        why = "no component with a positive weight is available for all models"
        notes.append(NotComputed(what="index", why=why, paths=["index", "rank"]))
    placed = [i for i, values in enumerate(estimates) if used and all(key in values for key in used)]
    allowed = {i: float(models[i].veto is None) for i in placed}
    index = {i: allowed[i] * weighted_index({k: estimates[i][k] for k in used}, used) for i in placed}
    redrawn = [allowed[i] * weighted_index({k: draws[i][k] for k in used}, used) for i in placed]
    above = torch.tensor([[probability_above(a, b) for b in redrawn] for a in redrawn]).view(len(placed), len(placed))
    values = torch.tensor([float(index[i]) for i in placed])
    ranks = dict(zip(placed, tier_ranks(values, above, config.separation), strict=True))
    intervals = dict(zip(placed, map(_interval, redrawn), strict=True))
    sizes = {(i, j): min(len(models[i].flipped), len(models[j].flipped)) for i in placed for j in placed}
    comparisons = [
        Comparison(
            a=models[i].name,
            b=models[j].name,
            probability=float(above[first, second]),
            images_needed=None
            if max(above[first, second], above[second, first]) >= config.separation
            else images_needed(
                float(index[i] - index[j]),
                redrawn[first] - redrawn[second],
                sizes[i, j],
                config.separation,
            ),
            paired=not {models[i].name, models[j].name} & set(unpaired),
            difference=_difference(index[i] - index[j], redrawn[first] - redrawn[second], sizes[i, j]),
            components={
                key: _difference(estimates[i][key] - estimates[j][key], draws[i][key] - draws[j][key], sizes[i, j])
                for key in draws[i]
                if key in draws[j]
            },
        )
        for first, i in enumerate(placed)
        for second, j in enumerate(placed)
        if first < second
    ]
    places = [
        ModelRank(
            name=model.name,
            rank=ranks.get(i),
            index=float(index[i]) if i in index else None,
            interval=intervals.get(i),
            components=Components(**{key: float(value) for key, value in estimates[i].items()}),
            component_intervals={key: _interval(draw) for key, draw in draws[i].items()},
            veto=model.veto,
            not_computed=[
                *(NotComputed(what=key, why=why, paths=[f"components.{key}"]) for key, why in missing[i].items()),
                *_no_place(used, estimates[i]),
            ],
        )
        for i, model in enumerate(models)
    ]
    return Ranking(models=places, comparisons=comparisons, used=used, not_computed=notes)


def _left_out(key: str, why: str) -> NotComputed:
    return NotComputed(what=f"{key} in the index", why=why, paths=[f"components.{key}"])


def _unweighted(key: str, config: RankingConfig, estimates: Mapping[str, Mapping[str, Tensor]]) -> str:
    if getattr(config, key) == 0:
        return "its weight is 0"
    if key == "response":
        return f"left out for all models, as {_lacking(key, estimates)}"
    return "by default it does not count where response does"


def _lacking(key: str, estimates: Mapping[str, Mapping[str, Tensor]]) -> str:
    names = [name for name, values in estimates.items() if key not in values]
    return f"{', '.join(names)} {'has' if len(names) == 1 else 'have'} none"


def _no_place(used: Collection[str], estimate: Mapping[str, Tensor]) -> list[NotComputed]:
    lacks = [key for key in used if key not in estimate]
    why = f"it has no {' and no '.join(lacks)}, which the index of the models with common query images rests on"
    return [NotComputed(what="index", why=why, paths=["index", "rank"])] if lacks else []
