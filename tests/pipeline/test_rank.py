"""The index and the order: closed forms, monotony, reproducibility, shared ranks, and what is left out for all."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from audit.config import RankingConfig
from audit.errors import MetricError
from audit.metrics.components import ModelScores
from audit.metrics.response import Answers
from audit.pipeline.rank import (
    bootstrap_weights,
    images_needed,
    probability_above,
    rank_models,
    tier_ranks,
    weighted_index,
)
from audit.results import COMPONENTS

CONFIG = RankingConfig(bootstrap=300)


def model(name: str, level: float, seed: int = 0, n: int = 40, spread: float = 0.1, **given: object) -> ModelScores:
    noise = torch.rand(n, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) - 0.5
    scores = (level + spread * noise).clamp(0, 1)
    values = {"sparsity": scores, "localisation": scores, "transfer": scores} | given
    return ModelScores(name, torch.ones(n, dtype=torch.bool), **values)  # type: ignore[arg-type]


def scalars(values: list[float]) -> dict[str, torch.Tensor]:
    return {key: torch.tensor(value, dtype=torch.float64) for key, value in zip(COMPONENTS, values, strict=True)}


EVEN = dict.fromkeys(COMPONENTS, 1.0)


def test_a_veto_makes_the_index_0_whatever_the_components_are() -> None:
    found = rank_models([model("good", 0.5), model("bad", 0.9, veto="its edits lie in 'marker'")], CONFIG, 0)
    good, bad = found.models
    assert (bad.index, bad.interval, bad.rank, bad.veto) == (0.0, (0.0, 0.0), 2, "its edits lie in 'marker'")
    assert (good.rank, good.veto, found.comparisons[0].probability) == (1, None, 1.0)
    assert bad.components.transfer == pytest.approx(0.9, abs=0.05)  # the parts are told all the same


def test_index_closed_forms() -> None:
    assert float(weighted_index(scalars([1] * 6), EVEN)) == pytest.approx(100)
    assert float(weighted_index(scalars([0.5] * 6), EVEN)) == pytest.approx(50)
    assert float(weighted_index(scalars([0, 1, 1, 1, 1, 1]), EVEN)) == pytest.approx(100 * 0.01 ** (1 / 6))
    weights = EVEN | {"validity": 3.0, "realism": 0.0}
    expected = 100 * (0.5**3 * 0.2 * 0.3 * 0.4 * 0.6) ** (1 / 7)
    assert float(weighted_index(scalars([0.5, 0.9, 0.2, 0.3, 0.4, 0.6]), weights)) == pytest.approx(expected)
    with pytest.raises(MetricError, match="positive weight"):
        weighted_index(scalars([1] * 6), dict.fromkeys(COMPONENTS, 0.0))


@settings(max_examples=25, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=6, max_size=6), st.integers(0, 5), st.floats(0, 1))
def test_index_is_monotone_in_every_component_and_between_its_extremes(
    values: list[float], which: int, step: float
) -> None:
    better = list(values)
    better[which] = min(1.0, better[which] + step)
    low, high = float(weighted_index(scalars(values), EVEN)), float(weighted_index(scalars(better), EVEN))
    assert high >= low - 1e-9
    assert 100 * max(min(values), 0.01) - 1e-6 <= low <= 100 * max(max(values), 0.01) + 1e-6


def test_resamples_hold_all_images_and_repeat_by_seed() -> None:
    weights = bootstrap_weights(30, 200, 7)
    assert torch.equal(weights.sum(1), torch.full((200,), 30.0, dtype=torch.float64))
    assert torch.equal(weights, bootstrap_weights(30, 200, 7))
    assert not torch.equal(weights, bootstrap_weights(30, 200, 8))


def test_ranking_is_reproducible_and_leaves_the_global_generator_alone() -> None:
    models = [model("a", 0.6), model("b", 0.58, seed=1)]
    before = torch.random.get_rng_state()
    assert rank_models(models, CONFIG, 3) == rank_models(models, CONFIG, 3)
    assert torch.equal(before, torch.random.get_rng_state())


def test_clearly_different_models_get_different_ranks() -> None:
    ranking = rank_models([model("low", 0.3), model("high", 0.8, seed=1), model("mid", 0.5, seed=2)], CONFIG, 0)
    assert [place.rank for place in ranking.models] == [3, 1, 2]
    assert [(c.a, c.b, c.probability) for c in ranking.comparisons] == [
        ("low", "high", 0.0),
        ("low", "mid", 0.0),
        ("high", "mid", 1.0),
    ]
    for place in ranking.models:
        assert place.interval is not None
        assert place.index is not None
        assert place.interval[0] <= place.index <= place.interval[1]


def test_the_same_model_twice_ties() -> None:
    ranking = rank_models([model("a", 0.5), model("a again", 0.5)], CONFIG, 0)
    assert [place.rank for place in ranking.models] == [1, 1]
    assert ranking.comparisons[0].probability == 0.5


def test_pairing_separates_what_single_intervals_do_not() -> None:
    # Both models find the same images hard; b is a little better on every one of them.
    ranking = rank_models([model("a", 0.5, spread=0.6), model("b", 0.52, spread=0.6)], CONFIG, 0)
    first, second = ranking.models
    assert first.interval is not None
    assert second.interval is not None
    assert first.interval[1] > second.interval[0]
    assert (first.rank, second.rank) == (2, 1)


def test_the_difference_of_two_models_is_that_of_the_draws_of_both() -> None:
    a, b = model("a", 0.6, seed=1), model("b", 0.55, seed=1)
    found = rank_models([a, b], CONFIG, 0)
    (row,) = found.comparisons
    assert row.difference is not None
    assert row.difference.value == pytest.approx(found.models[0].index - found.models[1].index)
    assert row.difference.low <= row.difference.value <= row.difference.high
    wide = sum(high - low for low, high in (m.interval for m in found.models))
    assert row.difference.high - row.difference.low < 0.2 * wide  # what both models share cancels
    assert set(row.components) == {"validity", "sparsity", "localisation", "transfer"}
    assert row.components["transfer"].value == pytest.approx(0.05, abs=0.01)
    assert (row.difference.n, row.components["transfer"].n) == (40, 40)


def test_models_that_hang_together_by_a_chain_share_a_tier() -> None:
    index = torch.tensor([60.0, 50.0, 40.0, 10.0])
    above = torch.tensor([[0.5, 0.8, 0.99, 1], [0.2, 0.5, 0.8, 1], [0.01, 0.2, 0.5, 1], [0, 0, 0, 0.5]])
    assert tier_ranks(index, above, 0.95) == [1, 1, 1, 4]
    shuffled = torch.tensor([3, 1, 0, 2])
    assert tier_ranks(index[shuffled], above[shuffled][:, shuffled], 0.95) == [4, 1, 1, 1]
    assert probability_above(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([1.0, 1.0, 4.0])) == pytest.approx(0.5)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.floats(0, 100), st.floats(0.1, 30)), min_size=1, max_size=8), st.integers(0, 99))
def test_ranks_never_contradict_the_order_of_the_indices(models: list[tuple[float, float]], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    draws = [level + spread * torch.randn(200, generator=generator) for level, spread in models]
    above = torch.tensor([[probability_above(a, b) for b in draws] for a in draws])
    index = torch.tensor([level for level, _ in models])
    ranks = torch.tensor(tier_ranks(index, above, 0.95))
    assert (ranks[:, None] <= ranks)[index[:, None] > index].all()
    assert (above >= 0.95)[ranks[:, None] < ranks].all()
    assert all(int(rank) == 1 + int((ranks < rank).sum()) for rank in ranks)


def test_images_needed_to_tell_two_models_apart_in_closed_form() -> None:
    # An index of one mean: its paired difference has the standard error sd / sqrt(n), so (z sd / mean)^2 images decide.
    only = RankingConfig(bootstrap=4000, validity=0, realism=0, sparsity=1, localisation=0, transfer=0)
    gaps = 0.02 + 0.2 * torch.linspace(-1, 1, 40, dtype=torch.float64)
    base = torch.full((40,), 0.5, dtype=torch.float64)
    ones = torch.ones(40, dtype=torch.bool)
    (found,) = rank_models([ModelScores("a", ones, base + gaps), ModelScores("b", ones, base)], only, 0).comparisons
    expected = (1.6449 * float(gaps.std(correction=0)) / 0.02) ** 2
    assert found.images_needed == pytest.approx(expected, rel=0.05)
    (same,) = rank_models([ModelScores("a", ones, base), ModelScores("b", ones, base)], only, 0).comparisons
    (apart,) = rank_models([ModelScores("a", ones, base + 0.1), ModelScores("b", ones, base)], only, 0).comparisons
    assert (same.images_needed, apart.images_needed, apart.probability) == (None, None, 1.0)
    assert images_needed(1.0, torch.tensor([0.9, 1.1]), 40, 0.95) == 41  # never fewer than did not suffice


def test_a_component_missing_for_one_model_is_left_out_for_all_but_still_printed() -> None:
    lacking = model("b", 0.5, transfer=None, reasons={"transfer": "no judge has power"})
    ranking = rank_models([model("a", 0.5), lacking], CONFIG, 0)
    assert ranking.used == {"validity": 1, "sparsity": 1, "localisation": 4}
    assert ranking.models[0].components.transfer is not None
    assert ranking.models[1].components.transfer is None
    assert "transfer" in ranking.models[0].component_intervals
    said = {(note.what, note.why) for note in ranking.not_computed}
    assert ("transfer in the index", "left out for all models, as b has none") in said
    assert ("realism in the index", "left out for all models, as a, b have none") in said
    assert ("transfer", "no judge has power") in {(n.what, n.why) for n in ranking.models[1].not_computed}
    assert ranking.models[0].index == pytest.approx(ranking.models[1].index)


def test_with_a_response_of_all_models_it_weighs_most_and_what_judges_edits_not_at_all() -> None:
    def answering(name: str, inside: float, outside: float, **given: object) -> ModelScores:
        answers = Answers(*(torch.full((40,), value, dtype=torch.float64) for value in (inside, outside, 0.0)))
        return model(name, 0.5, response=answers, **given)

    reads, other = answering("reads", 0.9, 0.1), answering("other", 0.3, 0.7)
    found = rank_models([reads, other], CONFIG, 0)
    assert found.used == {"validity": 1, "sparsity": 1, "localisation": 2, "response": 8}
    assert [one.components.response for one in found.models] == [pytest.approx(0.9), pytest.approx(0.3)]
    first = found.models[0]
    parts = [float(getattr(first.components, name)) for name in found.used]
    closed = math.prod(part**weight for part, weight in zip(parts, found.used.values(), strict=True)) ** (1 / 12)
    assert first.index == pytest.approx(100 * closed)
    assert [place.rank for place in found.models] == [1, 2]
    said = {(note.what, note.why) for note in found.not_computed}
    assert ("transfer in the index", "by default it does not count where response does") in said
    asked = rank_models([reads, other], CONFIG.model_copy(update={"transfer": 1.0}), 0)
    assert asked.used == {"validity": 1, "sparsity": 1, "localisation": 2, "transfer": 1, "response": 8}
    silent = rank_models([reads, other], CONFIG.model_copy(update={"response": 0.0}), 0)
    assert silent.used == {"validity": 1, "sparsity": 1, "localisation": 4, "transfer": 1}
    alone = rank_models([reads, model("b", 0.5, reasons={"response": "it is alone"})], CONFIG, 0)
    assert alone.used == silent.used
    assert ("response in the index", "left out for all models, as b has none") in {
        (note.what, note.why) for note in alone.not_computed
    }


def test_a_zero_component_is_printed_as_zero_and_does_not_erase_the_order() -> None:
    zero = torch.zeros(40, dtype=torch.float64)
    ranking = rank_models([model("a", 0.8, localisation=zero), model("b", 0.4, localisation=zero)], CONFIG, 0)
    assert ranking.models[0].components.localisation == 0
    assert [place.rank for place in ranking.models] == [1, 2]


def test_no_weight_no_index() -> None:
    with pytest.raises(ValidationError, match="at least one component needs a weight"):
        RankingConfig(validity=0, realism=0, sparsity=0, localisation=0, transfer=0)
    config = RankingConfig(validity=0, realism=0, sparsity=0, localisation=0, transfer=1, bootstrap=100)
    ranking = rank_models([model("a", 0.5, transfer=None)], config, 0)
    assert (ranking.models[0].index, ranking.models[0].rank, ranking.models[0].interval) == (None, None, None)
    assert any(note.what == "index" for note in ranking.not_computed)


def test_models_on_different_images_are_refused() -> None:
    for models in ([], [model("a", 0.5), model("b", 0.5, n=39)]):
        with pytest.raises(MetricError, match="same query images"):
            rank_models(models, CONFIG, 0)


def test_interval_covers_the_true_value() -> None:
    # The mean of uniform scores is 0.5; sparsity's 95 % interval should hold it in most of 60 repetitions.
    hits = 0
    for seed in range(60):
        scores = torch.rand(40, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
        ranking = rank_models([model("a", 0.5, sparsity=scores)], CONFIG, seed)
        low, high = ranking.models[0].component_intervals["sparsity"]
        hits += low <= 0.5 <= high
    assert hits >= 51


def test_a_model_on_images_of_its_own_changes_nothing_for_the_others() -> None:
    others = [model("a", 0.5), model("b", 0.6, seed=1)]
    alone = model("alone", 0.9, seed=2, n=17, transfer=None, localisation=None)
    without = rank_models(others, CONFIG, 3)
    ranking = rank_models([others[0], alone, others[1]], CONFIG, 3, {"alone"})
    assert ranking.used == without.used
    assert [ranking.models[0], ranking.models[2]] == without.models
    assert [c for c in ranking.comparisons if c.paired] == ranking.comparisons == without.comparisons
    assert (ranking.models[1].index, ranking.models[1].rank, ranking.models[1].interval) == (None, None, None)
    assert ranking.models[1].components.sparsity is not None
    lacks = next(note for note in ranking.models[1].not_computed if note.what == "index")
    assert lacks.why.startswith("it has no localisation and no transfer, which")


def test_what_is_not_paired_is_drawn_by_itself() -> None:
    # The same scores: paired they tie in every draw, on their own they differ by chance, in the way of the interval.
    twice = [model("a", 0.5, spread=0.6), model("b", 0.5, spread=0.6)]
    (apart,) = rank_models(twice, CONFIG, 0, {"b"}).comparisons
    assert not apart.paired
    assert 0.2 < apart.probability < 0.8
    a, b = rank_models(twice, CONFIG, 0, {"b"}).models
    assert a.interval != b.interval
    assert a.interval == rank_models(twice, CONFIG, 0).models[0].interval
    assert b == rank_models([twice[1], model("c", 0.1, n=9)], CONFIG, 0, {"b", "c"}).models[0]
    better = rank_models([model("a", 0.5, spread=0.2), model("b", 0.8, spread=0.2, n=9)], CONFIG, 0, {"b"})
    assert [place.rank for place in better.models] == [2, 1]
