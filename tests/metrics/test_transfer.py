"""Transfer: judges fitted on real embeddings, their power, and who agrees with whom."""

from dataclasses import replace

import pytest
import torch

from audit.errors import MetricError
from audit.metrics.transfer import (
    Confidences,
    Verdicts,
    fit_judge,
    judge_row,
    power,
    transfer_scores,
)

TARGETS = torch.zeros(6, dtype=torch.int64)
FLIPPED = torch.tensor([True, True, True, True, True, False])
SOURCE = torch.ones(6, dtype=torch.int64)


def verdicts(counterfactuals: list[int], inversions: list[int] | None = None, **given: float) -> Verdicts:
    inverted = SOURCE if inversions is None else torch.tensor(inversions)
    values = {"accuracy": 0.9, "rejects_adversarial": 1.0} | given
    return Verdicts("judge", counterfactuals=torch.tensor(counterfactuals), inversions=inverted, **values)


@pytest.mark.parametrize("kind", ["logistic", "knn"])
def test_fitted_judges_learn_separable_classes_and_repeat(kind: str) -> None:
    generator = torch.Generator().manual_seed(0)
    centres = torch.tensor([[4.0, 0, 0], [0, 4.0, 0], [0, 0, 4.0]])
    labels = torch.arange(3).repeat(30)
    train = centres[labels] + torch.randn(90, 3, generator=generator)
    test = centres[labels] + torch.randn(90, 3, generator=generator)
    judge, again = (fit_judge("phantom-factors", train, labels, kind) for _ in range(2))  # type: ignore[arg-type]
    predicted = judge.predict(test)
    assert predicted.dtype == torch.int64
    assert float((predicted == labels).float().mean()) > 0.9
    assert torch.equal(predicted, again.predict(test))
    assert judge.name == f"{kind} on phantom-factors"


def test_one_class_is_refused() -> None:
    with pytest.raises(MetricError, match="two or more classes"):
        fit_judge("e", torch.randn(5, 2), torch.zeros(5, dtype=torch.int64))


def test_judges_without_discrimination_have_no_power() -> None:
    always_yes = verdicts([0] * 6, [0] * 6)
    assert power(always_yes, TARGETS) == 0
    fooled = verdicts([0] * 6, accuracy=0.9, rejects_adversarial=0.0)
    assert power(fooled, TARGETS) == 0
    assert power(verdicts([0] * 6, accuracy=0.0), TARGETS) == 0
    assert power(verdicts([0] * 6), TARGETS) == pytest.approx(0.9)
    assert power(verdicts([0] * 6, rejects_adversarial=0.5), TARGETS) == pytest.approx(0.4)


def test_scores_are_weighted_shares_and_unflipped_is_zero() -> None:
    strong = verdicts([0, 0, 1, 1, 0, 0])
    weak = verdicts([1, 0, 1, 0, 0, 0], rejects_adversarial=0.5)
    scores = transfer_scores([strong, weak], TARGETS, FLIPPED)
    weights = torch.tensor([0.9, 0.4])
    expected = [weights[0] / weights.sum(), 1, 0, weights[1] / weights.sum(), 1, 0]
    assert scores.tolist() == pytest.approx([float(value) for value in expected])


def test_a_judge_is_heard_by_how_far_it_goes_to_its_own_operating_point() -> None:
    before, goal = torch.full((6,), 0.1), torch.full((6,), 0.9)
    after = torch.tensor([0.1, 0.5, 0.9, 0.99, 0.01, 0.9])
    judge = replace(verdicts([1, 1, 0, 0, 1, 0]), confidences=Confidences(before, after, goal))
    assert judge.way(TARGETS).tolist() == pytest.approx([0, 0.5, 1, 1, 0, 1])  # log-odds -2.2, 0, 2.2
    assert transfer_scores([judge], TARGETS, FLIPPED).tolist() == pytest.approx([0, 0.5, 1, 1, 0, 0])
    assert judge.at(torch.tensor([1, 2])).way(TARGETS[:2]).tolist() == pytest.approx([0.5, 1])
    for scale in (0.1, 3.0):  # a judge that is as sharp in all it says is heard as before
        odds = [torch.sigmoid(scale * torch.logit(p.double())) for p in (before, after, goal)]
        assert Confidences(*odds).way().tolist() == pytest.approx(judge.way(TARGETS).tolist())


def test_a_short_way_and_a_certain_judge_have_finite_scores() -> None:
    sure = Confidences(torch.tensor([0.0, 0.5, 0.9]), torch.tensor([1.0, 0.51, 0.8]), torch.tensor([1.0, 0.5, 0.5]))
    assert sure.way().tolist() == pytest.approx([1.0, 0.4, 0.0], abs=1e-3)


def test_a_judge_that_never_says_no_changes_nothing() -> None:
    strong, yes = verdicts([0, 1, 1, 1, 1, 0]), verdicts([0] * 6, [0] * 6)
    assert torch.equal(transfer_scores([strong, yes], TARGETS, FLIPPED), transfer_scores([strong], TARGETS, FLIPPED))
    alone = transfer_scores([yes], TARGETS, FLIPPED)
    assert torch.isnan(alone[:5]).all()
    assert alone[5] == 0


def test_images_whose_inversion_is_already_the_target_are_no_evidence() -> None:
    scores = transfer_scores([verdicts([0, 1, 0, 0, 0, 0], [0, 0, 1, 1, 1, 1], accuracy=1.0)], TARGETS, FLIPPED)
    assert torch.isnan(scores[:2]).all()
    assert scores[2:].tolist() == [1, 1, 1, 0]


def test_judge_row_counts_flips_only() -> None:
    row = judge_row(verdicts([0, 0, 0, 1, 1, 0], [0, 1, 1, 1, 1, 1], rejects_adversarial=0.7), TARGETS, FLIPPED)
    assert (row.agreement, row.rejects_inversion) == (3 / 5, pytest.approx(5 / 6))
    assert (row.accuracy, row.rejects_adversarial) == (0.9, 0.7)
    assert judge_row(verdicts([0] * 6), TARGETS, torch.zeros(6, dtype=torch.bool)).agreement is None
