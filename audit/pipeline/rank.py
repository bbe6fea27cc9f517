"""The meaningfulness index and the order of the models, with a paired bootstrap over query images (Efron 1979).

Index = 100 x weighted geometric mean of the components that all models have. A component that one model lacks is left
out for all, or indices would not compare. In the mean (not in what is printed) a component below 0.01 counts as 0.01,
so that a single zero does not erase the order among models that share it.

Every draw takes the same images for all models, so what makes an image hard or easy cancels in the comparison. Model A
is *above* B when A's index is the higher one in at least `separation` of the draws (ties count half). A model's rank is
1 + the number of models above it: models that cannot be told apart share a rank. "Cannot be told apart" is not
transitive - a first model may be above the third but not above the second - and counting the models above needs no such
thing: a rank is a statement about a model and those that beat it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from audit.config import RankingConfig
from audit.errors import MetricError
from audit.metrics.components import ModelScores, components
from audit.results import COMPONENTS, Comparison, Components, NotComputed
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
    not_computed: list[NotComputed] = field(default_factory=list)


@dataclass(frozen=True)
class Ranking:
    """The order of the models (as given, not sorted), their pairwise comparison, and what the index rests on."""

    models: list[ModelRank]
    comparisons: list[Comparison]
    used: tuple[str, ...]
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


def bootstrap_weights(images: int, draws: int, seed: int) -> Tensor:
    """How often each image is in each resample with replacement: float64 `[draws, images]`, rows sum to `images`."""
    drawn = torch.randint(images, (draws, images), generator=stage_generator(seed, "bootstrap"))
    weights = torch.zeros(draws, images, dtype=torch.float64)
    return weights.scatter_add_(1, drawn, torch.ones_like(drawn, dtype=torch.float64))


def probability_above(a: Tensor, b: Tensor) -> float:
    """Share of draws in which `a` `[B]` exceeds `b` `[B]`; draws that are equal count half."""
    return float(((a > b).double() + 0.5 * (a == b).double()).mean())


def shared_ranks(above: Tensor, separation: float) -> list[int]:
    """Ranks from `above` `[M, M]`, the probability that the row's model beats the column's: 1 + models surely above."""
    sure = above >= separation  # the diagonal is 0.5 and separation above that: no model is above itself
    return [1 + int(count) for count in sure.sum(0)]


def _interval(draws: Tensor) -> tuple[float, float]:
    tail = (1 - LEVEL) / 2
    low, high = torch.quantile(draws, torch.tensor([tail, 1 - tail], dtype=draws.dtype)).tolist()
    return low, high


def _redrawn(scores: ModelScores, weights: Tensor, estimate: Mapping[str, Tensor]) -> dict[str, Tensor]:
    # A draw in which no image defines a component carries no news about it and repeats the estimate.
    draws, _ = components(scores, weights)
    return {key: torch.where(draw.isfinite(), draw, estimate[key]) for key, draw in draws.items()}


def rank_models(models: Sequence[ModelScores], config: RankingConfig, seed: int) -> Ranking:
    """Index, 95 % intervals, pairwise probabilities and shared ranks of models scored on the same query images.

    Reproducible from `seed`. Raises MetricError if there are no models, no images, or models differ in images.
    """
    counts = sorted({len(model.flipped) for model in models})
    if len(counts) != 1 or counts[0] == 0:
        raise MetricError(
            f"Models are ranked on the same query images; given {len(models)} models on {counts} images: score every "
            "model on all queries."
        )
    weights = {key: float(getattr(config, key)) for key in COMPONENTS}
    everything = torch.ones(1, counts[0], dtype=torch.float64)
    resample = bootstrap_weights(counts[0], config.bootstrap, seed)
    measured = [components(model, everything) for model in models]
    estimates, missing = [values for values, _ in measured], [why for _, why in measured]
    draws = [_redrawn(model, resample, estimate) for model, estimate in zip(models, estimates, strict=True)]

    used = tuple(key for key in COMPONENTS if weights[key] > 0 and all(key in values for values in estimates))
    notes = [
        _left_out(key, f"left out for all models, as {_lacking(key, models, estimates)}")
        for key in COMPONENTS
        if weights[key] > 0 and key not in used
    ]
    notes += [_left_out(key, "its weight is 0") for key in COMPONENTS if weights[key] == 0]
    places: list[ModelRank] = []
    comparisons: list[Comparison] = []
    if used:
        index = [weighted_index({k: values[k] for k in used}, weights) for values in estimates]
        index_draws = [weighted_index({k: values[k] for k in used}, weights) for values in draws]
        above = torch.tensor([[probability_above(a, b) for b in index_draws] for a in index_draws])
        ranks: list[int | None] = list(shared_ranks(above, config.separation))
        comparisons = [
            Comparison(a=models[i].name, b=models[j].name, probability=float(above[i, j]))
            for i in range(len(models))
            for j in range(i + 1, len(models))
        ]
    else:
        ranks = [None] * len(models)
        why = "no component with a positive weight is available for all models"
        notes.append(NotComputed(what="index", why=why, paths=["index", "rank"]))
    for position, model in enumerate(models):
        places.append(
            ModelRank(
                name=model.name,
                rank=ranks[position],
                index=float(index[position]) if used else None,
                interval=_interval(index_draws[position]) if used else None,
                components=Components(**{key: float(value) for key, value in estimates[position].items()}),
                component_intervals={key: _interval(draw) for key, draw in draws[position].items()},
                not_computed=[
                    NotComputed(what=key, why=why, paths=[f"components.{key}"])
                    for key, why in missing[position].items()
                ],
            )
        )
    return Ranking(models=places, comparisons=comparisons, used=used, not_computed=notes)


def _left_out(key: str, why: str) -> NotComputed:
    return NotComputed(what=f"{key} in the index", why=why, paths=[f"components.{key}"])


def _lacking(key: str, models: Sequence[ModelScores], estimates: Sequence[Mapping[str, Tensor]]) -> str:
    names = [model.name for model, values in zip(models, estimates, strict=True) if key not in values]
    return f"{', '.join(names)} {'has' if len(names) == 1 else 'have'} none"
