"""Summaries of one model's counterfactuals."""

from dataclasses import dataclass, replace

import pytest
import torch
from support_small_audit import by_brightness, configured

from audit.config import RankingConfig
from audit.counterfactual.answers import judged
from audit.counterfactual.methods import ChosenMethod
from audit.counterfactual.protocol import Counterfactuals
from audit.embeddings.embedding import embed_all
from audit.metrics.response import Answers
from audit.metrics.transfer import Verdicts
from audit.pipeline.context import Context
from audit.pipeline.edit_parts import flips_by_part
from audit.pipeline.explain import WayBack, equal_edits, explain_model
from audit.pipeline.reference import build_reference
from audit.pipeline.score import OWN_CLASS, score_model
from audit.results import Answered


def test_one_models_counterfactuals_by_hand(small) -> None:
    explained = small.explained(small.subject(by_brightness("whole")))
    embedded = embed_all(small.networks.embedding, small.calibration.images())
    reference = build_reference(small.context, small.networks, small.queries, small.calibration, embedded, {0: 3, 1: 3})
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


def test_what_is_answered_to_is_divided_among_region_rest_and_acquisition(small) -> None:
    explained = small.explained(small.subject(by_brightness("whole")))
    embedded = embed_all(small.networks.embedding, small.calibration.images())
    reference = build_reference(small.context, small.networks, small.queries, small.calibration, embedded, {0: 3, 1: 3})
    answers = Answers(*(torch.full((6,), value, dtype=torch.float64) for value in (0.6, 0.1, 0.3)))

    def answered(context: Context, response: Answers | str) -> Answered | None:
        return score_model(context, reference, explained, [], small.method, response=response).summary.answered

    told = answered(small.context, answers)
    assert (told.region, told.rest, told.acquisition) == pytest.approx((0.6, 0.1, 0.3))
    config = small.context.config.model_copy(update={"ranking": RankingConfig(acquisition=False)})
    alone = Answers(answers.inside, answers.rest, torch.zeros(6, dtype=torch.float64))
    told = answered(replace(small.context, config=config), alone)
    assert (told.region, told.rest) == pytest.approx((6 / 7, 1 / 7))
    assert told.acquisition is None
    assert answered(small.context, "the data give no region") is None
    assert answered(small.context, Answers(*[torch.zeros(6, dtype=torch.float64)] * 3)) is None


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


def test_what_is_misclassified_is_corrected_and_counts_for_no_distance_to_its_own_class(small) -> None:
    subject = small.subject(by_brightness("whole"))
    logits = subject.logits.clone()
    logits[[0, 3]] = logits[[0, 3]].flip(1)  # as if it had been wrong on two of the six
    wrong = replace(subject, logits=logits)
    both = small.explained(wrong)
    assert both.wrong.tolist() == [True, False, False, True, False, False]
    assert torch.equal(both.targets[both.wrong], small.queries.labels[both.wrong])
    embedded = embed_all(small.networks.embedding, small.calibration.images())
    edits = equal_edits([both, small.explained(subject)], 2)
    assert edits == {0: 2, 1: 2}
    reference = build_reference(small.context, small.networks, small.queries, small.calibration, embedded, edits)
    yes = Verdicts("judge", 1.0, both.targets, small.queries.labels, 1.0)
    lenient = replace(small.context, config=configured(metrics={"min_images": 2}))
    scored = score_model(lenient, reference, both, [yes], small.method)
    assert scored.summary.corrected is not None
    assert (scored.summary.corrected.n, scored.summary.corrected.value) == (2, 0.0)  # mirrored away from their class
    assert scored.summary.flip_ratio.value == pytest.approx(4 / 6)
    assert [(row.source, row.target, row.wrong) for row in scored.rows[:2]] == [
        ("bright", "dark", True), ("bright", "dark", False),
    ]  # fmt: skip
    assert scored.scores.transfer is not None
    assert scored.scores.transfer.isnan().tolist() == both.wrong.tolist()
    assert sorted(torch.cat([one.rows for one in scored.scores.realism]).tolist()) == [1, 2, 4, 5]
    assert {row.n for row in scored.summary.fid + scored.summary.mmd} == {2}
    some = small.queries.select(torch.tensor([0, 3]))
    only = explain_model(small.context, small.method, small.networks, some, wrong)
    yes = replace(yes, counterfactuals=only.targets, inversions=some.labels)
    scored = score_model(lenient, reference.of(some), only, [yes], small.method)
    assert (scored.scores.realism, scored.scores.transfer.isnan().all()) == ((), True)
    assert {scored.scores.reasons[name] for name in ("realism", "transfer")} == {OWN_CLASS}
    assert scored.summary.fid == []
    assert "FID and MMD" in [note.what for note in scored.not_computed]
    assert scored.summary.judges[0].agreement is None


def test_the_part_of_an_edit_that_carries_the_flip_is_told_from_the_rest(small) -> None:
    explained = small.explained(small.subject(by_brightness("left")))
    half = torch.zeros(6, 16, 16, dtype=torch.bool)
    half[:5, :, :8] = True  # one image does not show the region
    before = small.queries.inversion.images
    alone, undone = flips_by_part(small.context, explained, before, half)
    assert (alone.value, undone.value, alone.n, undone.n) == (1.0, 0.0, 5, 5)
    alone, undone = flips_by_part(small.context, explained, before, ~half)
    assert (alone.value, undone.value) == (pytest.approx(1 / 6), pytest.approx(5 / 6))
    nothing, _ = flips_by_part(small.context, explained, before, torch.zeros_like(half))
    assert (nothing.value, nothing.n) == (None, 0)


@dataclass(frozen=True)
class Striped:
    """A method whose counterfactuals flip by a broad stripe that no real image has."""

    def explain(self, subject, networks, queries, targets, advance) -> Counterfactuals:
        stripe = (torch.arange(16) < 4).float().expand(len(targets), 1, 16, 16)
        made = torch.where((targets == 1)[:, None, None, None], 1 - stripe, stripe)
        return judged(subject, queries, targets, made)


def test_a_model_that_only_ruins_flip_is_not_explained(small) -> None:
    striped = replace(small, method=ChosenMethod("striped", "outside 1.0", 0, Striped()))
    subject = small.subject(by_brightness("whole"))
    embedded = embed_all(small.networks.embedding, small.calibration.images())
    reference = build_reference(small.context, small.networks, small.queries, small.calibration, embedded, {0: 3, 1: 3})
    yes = Verdicts("judge", 1.0, small.queries.labels, small.queries.labels, 1.0)

    def scored(one):
        return score_model(small.context, reference, one.explained(subject), [yes], one.method)

    ruined = scored(striped)
    summary = ruined.summary
    assert (summary.flip_ratio.value, summary.explained.value) == (1.0, 0.0)
    assert all(row.ruined for row in ruined.rows)
    assert summary.unexplained.startswith("of 6 query images 6 flip only by an edit as large as exchanging the image")
    assert scored(small).summary.unexplained is None


def test_distances_of_all_models_rest_on_equally_many_edits(small) -> None:
    one = small.explained(small.subject(by_brightness("whole")))
    other = replace(one, targets=torch.tensor([1, 1, 1, 0, 1, 1]), queries=small.queries)
    other = replace(other, subject=replace(one.subject, logits=torch.eye(2)[1 - other.targets].repeat(2, 1)))
    assert equal_edits([one, other], 2) == {0: 3, 1: 3}
    assert equal_edits([one], 2) == {0: 3, 1: 3}
    assert equal_edits([one], 9) == {0: 3, 1: 3}
