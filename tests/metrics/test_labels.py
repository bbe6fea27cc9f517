"""Scores of labels against scikit-learn, and how they deal with what is not known."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, brier_score_loss, f1_score, roc_auc_score

from audit.metrics import labels
from audit.metrics.labels import LabelAnswers, calibration, rank_scores, side_effects


def _answers(seed: int = 0, n: int = 80, count: int = 3, unknown: float = 0.2) -> LabelAnswers:
    rng = torch.Generator().manual_seed(seed)
    truth = (torch.rand(n, count, generator=rng) < 0.3).long()
    logits = 2 * truth - 1 + 2 * torch.randn(n, count, generator=rng)
    truth[torch.rand(n, count, generator=rng) < unknown] = -1
    truth[0], truth[1] = 0, 1
    return LabelAnswers(logits, truth, torch.linspace(-1, 1, count))


@pytest.fixture(autouse=True)
def _few_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(labels, "RESAMPLES", 20)


@pytest.mark.parametrize("seed", range(3))
def test_scores_are_those_of_scikit_learn(seed: int) -> None:
    answers = _answers(seed)
    auroc, precision, f1 = rank_scores(answers, torch.Generator().manual_seed(0))
    errors, briers = calibration(answers)
    for label in range(3):
        known = answers.truth[:, label] >= 0
        truth, logits = answers.truth[known, label].numpy(), answers.logits[known, label].double()
        assert auroc.by_label[label].value == pytest.approx(roc_auc_score(truth, logits.numpy()), abs=1e-5)
        assert precision.by_label[label].value == pytest.approx(
            average_precision_score(truth, logits.numpy()), abs=1e-5
        )
        decided = (logits > answers.limits[label]).numpy()
        assert f1.by_label[label].value == pytest.approx(f1_score(truth, decided), abs=1e-6)
        assert briers[label] == pytest.approx(brier_score_loss(truth, logits.sigmoid().numpy()), abs=1e-6)
        assert errors[label] == pytest.approx(_ece(logits.sigmoid().numpy(), truth), abs=1e-5)
        assert auroc.by_label[label].n == int(known.sum())
    values = [one.value for one in auroc.by_label if one.value is not None]
    assert auroc.macro.value == pytest.approx(np.mean(values))
    low, value, high = auroc.macro.low, auroc.macro.value, auroc.macro.high
    assert low is not None
    assert high is not None
    assert low < value < high


def _ece(probability: np.ndarray, truth: np.ndarray) -> float:
    bins = np.minimum((probability * 15).astype(int), 14)
    return sum(abs((probability[bins == b] - truth[bins == b]).sum()) for b in range(15)) / len(truth)


def test_logits_that_a_sigmoid_makes_equal_are_still_ranked() -> None:
    logits = torch.tensor([[30.0], [40], [50], [60]])
    answers = LabelAnswers(logits, torch.tensor([[0], [0], [1], [1]]), torch.zeros(1))
    assert rank_scores(answers, torch.Generator())[0].by_label[0].value == 1


def test_a_label_that_all_images_have_has_no_score() -> None:
    answers = LabelAnswers(
        torch.randn(6, 2), torch.tensor([[1, 0], [1, 1], [-1, 0], [1, 1], [1, 0], [1, 1]]), torch.zeros(2)
    )
    auroc, *_ = rank_scores(answers, torch.Generator())
    assert auroc.by_label[0].value is None
    assert auroc.macro.value == auroc.by_label[1].value
    assert calibration(LabelAnswers(torch.zeros(2, 1), torch.full((2, 1), -1), torch.zeros(1))) == ([None], [None])


@settings(max_examples=10, deadline=None)
@given(st.permutations(range(3)), st.integers(0, 50))
def test_labels_in_another_order_have_the_same_scores(order: list[int], seed: int) -> None:
    answers = _answers(seed, n=30)
    turned = LabelAnswers(answers.logits[:, order], answers.truth[:, order], answers.limits[order])
    found, expected = (rank_scores(one, torch.Generator().manual_seed(1)) for one in (turned, answers))
    for mine, theirs in zip(found, expected, strict=True):
        assert mine.by_label == [theirs.by_label[i] for i in order]
        assert mine.macro.value == pytest.approx(theirs.macro.value)
    assert torch.equal(turned.right, answers.right[:, order])


logits = st.lists(st.floats(-20, 20, width=32), min_size=12, max_size=12).map(lambda values: torch.tensor(values))


@given(logits, logits, st.lists(st.booleans(), min_size=4, max_size=4), st.permutations(range(3)))
def test_what_an_edit_does_to_other_labels_costs_validity_and_nothing_else(
    before: torch.Tensor, after: torch.Tensor, flips: list[bool], order: list[int]
) -> None:
    before, after, flipped, limits = (
        before.view(4, 3),
        after.view(4, 3),
        torch.tensor(flips),
        torch.tensor([0, 1.0, -2]),
    )
    effects = side_effects(before, after, limits)
    valid = effects.valid(flipped)
    assert bool((valid <= flipped).all())
    assert bool(((effects.change >= 0) & (effects.change <= 1)).all())
    assert torch.equal(side_effects(before, before, limits).valid(flipped), flipped)
    # The order of the other labels and the direction of the edit change nothing.
    turned = side_effects(after[:, order], before[:, order], limits[order])
    assert torch.equal(turned.change, effects.change[:, order])
    assert torch.equal(turned.valid(flipped), valid)
    # Of one label more, no edit becomes valid.
    assert bool((valid <= side_effects(before[:, 1:], after[:, 1:], limits[1:]).valid(flipped)).all())


def test_the_size_of_a_side_effect_is_that_of_the_probability() -> None:
    effects = side_effects(torch.tensor([[-10.0, 0.4]]), torch.tensor([[10.0, 0.6]]), torch.tensor([0.0, 0.5]))
    sigmoid = [1 / (1 + np.exp(-value)) for value in (-10, 10, 0.4, 0.6)]
    assert effects.change[0].tolist() == pytest.approx([sigmoid[1] - sigmoid[0], sigmoid[3] - sigmoid[2]])
    assert effects.moved.all()
