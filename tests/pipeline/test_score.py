"""Summaries of one model's counterfactuals."""

from dataclasses import replace

import pytest
import torch
from scipy.stats import norm
from support_small_audit import by_brightness

from audit.embeddings.embedding import embed_all
from audit.metrics.transfer import Verdicts
from audit.pipeline.explain import WayBack
from audit.pipeline.reference import build_reference
from audit.pipeline.score import mean_interval, score_model


@pytest.mark.parametrize("level", [0.5, 0.9, 0.95, 0.99])
def test_a_mean_has_an_interval_of_the_level_that_was_asked_for(level: float) -> None:
    values = torch.tensor([0.1, 0.4, 0.2, float("nan"), 0.9])
    found = mean_interval(values, level)
    low, high = norm.interval(level, loc=0.4, scale=values[[0, 1, 2, 4]].double().std() / 2)
    assert (found.value, found.level, found.n) == (pytest.approx(0.4), level, 4)
    assert (found.low, found.high) == (pytest.approx(low), pytest.approx(high))


def test_one_value_has_no_interval_and_none_has_no_value() -> None:
    one, none = mean_interval(torch.tensor([0.3])), mean_interval(torch.tensor([float("nan")]))
    assert (one.value, one.low, one.high, one.n) == (pytest.approx(0.3), None, None, 1)
    assert (none.value, none.n) == (None, 0)


def test_one_models_counterfactuals_by_hand(small) -> None:
    explained = small.explained(small.subject(by_brightness("whole")))
    embedded = embed_all(small.networks.embedding, small.calibration.images())
    reference = build_reference(small.context, small.networks, small.queries, small.calibration, embedded, [0, 1])
    yes = Verdicts("judge", 1.0, explained.targets, small.queries.labels, 1.0)
    scored = score_model(small.context, reference, explained, [yes], small.method)
    summary = scored.summary
    change = (1 - 2 * small.queries.images).abs().flatten(1).mean(1)
    assert (summary.method, summary.method_package) == ("mirrored", "outside 1.0")
    assert (summary.n, summary.flip_ratio.value, summary.feature_target_flips) == (6, 1.0, None)
    assert summary.l1.value == pytest.approx(float(change.mean()), rel=1e-5)
    assert [row.l1 for row in scored.rows] == pytest.approx(change.tolist(), rel=1e-5)
    assert [(row.source, row.target) for row in scored.rows] == [("dark", "bright"), ("bright", "dark")] * 3
    assert {row.metric for row in summary.fid + summary.mmd} == {"fid", "mmd"}
    assert summary.lpips is None
    assert summary.judges[0].agreement == 1.0
    assert scored.scores.reasons["localisation"].startswith("the data give no region")
    assert (summary.axioms.effectiveness, summary.axioms.reversibility, summary.nafr) == (1.0, None, None)
    assert {path for note in scored.not_computed for path in note.paths} >= {
        "counterfactuals.axioms.reversibility", "counterfactuals.axioms.returned", "counterfactuals.nafr",
    }  # fmt: skip


def test_a_copy_counts_for_shared_flips_and_not_for_transfer(small) -> None:
    explained = small.explained(small.subject(by_brightness("whole")))
    back = WayBack(torch.arange(4), small.queries.images[:4], torch.tensor([True, True, True, False]))
    embedded = embed_all(small.networks.embedding, small.calibration.images())
    reference = build_reference(small.context, small.networks, small.queries, small.calibration, embedded, [0, 1])
    yes = Verdicts("judge", 1.0, explained.targets, small.queries.labels, 1.0)
    no = Verdicts("again", 1.0, small.queries.labels, small.queries.labels, 1.0, "sha", is_copy=True)
    scored = score_model(small.context, reference, replace(explained, back=back), [yes, no], small.method)
    summary = scored.summary
    assert ([one.name for one in summary.judges], [one.name for one in summary.copies]) == (["judge"], ["again"])
    assert (summary.nafr.value, summary.nafr.n, summary.copies[0].weights_sha256) == (0.0, 6, "sha")
    assert scored.scores.transfer.tolist() == [1.0] * 6
    assert (summary.axioms.reversibility.value, summary.axioms.reversibility.n) == (0.0, 4)
    assert (summary.axioms.returned, summary.axioms.effectiveness) == (0.75, 1.0)
