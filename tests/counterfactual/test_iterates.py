"""Which iterate is the counterfactual, which the semifactual, and how convincing is convincing enough."""

import pytest
import torch
from torch import Tensor

from audit.counterfactual.iterates import SATURATED, Iterates, goal_of, log_odds, operating_points
from audit.errors import ClassifierError


def play(path: list[tuple[float, float]], goal: float = 0.8) -> Iterates:
    """One image of one pixel whose inversion is 0; `path` gives pixel and probability of the target class 1."""
    iterates = Iterates(
        torch.zeros(1, 1, 1, 1), torch.tensor([0]), torch.tensor([1]), torch.logit(torch.tensor([goal]))
    )
    for pixel, probability in path:
        iterates.observe(torch.full((1, 1, 1, 1), pixel), torch.full((1, 1, 1), pixel), binary(probability))
    return iterates


def binary(probability: float) -> Tensor:
    return torch.tensor([[1 - probability, probability]]).log()


def test_the_sparsest_iterate_at_the_operating_point_is_taken() -> None:
    found = play([(0.0, 0.1), (0.1, 0.4), (0.5, 0.99), (0.3, 0.85), (0.2, 0.7), (0.4, 0.9)])
    assert (found.step.item(), found.images.item(), found.latents.item()) == pytest.approx((3, 0.3, 0.3))
    assert found.reached.item()
    assert found.flipped.item()
    assert found.confidence.item() == pytest.approx(0.85)
    assert found.flip_step.item() == 2
    assert found.semifactuals.item() == pytest.approx(0.1)


def test_short_of_the_operating_point_the_most_confident_flip_is_taken() -> None:
    found = play([(0.0, 0.1), (0.2, 0.6), (0.3, 0.7), (0.1, 0.55)])
    assert found.step.item() == 2
    assert found.flipped.item()
    assert not found.reached.item()


def test_without_a_flip_the_nearest_to_the_target_is_taken() -> None:
    found = play([(0.0, 0.1), (0.2, 0.45), (0.3, 0.3)])
    assert found.step.item() == 1
    assert not found.flipped.item()
    assert found.flip_step.item() == -1
    assert found.semifactuals.item() == pytest.approx(0.3)


def test_the_semifactual_is_the_last_before_the_first_flip_even_if_the_decision_returns() -> None:
    found = play([(0.0, 0.1), (0.1, 0.3), (0.4, 0.9), (0.2, 0.2), (0.5, 0.9)])
    assert found.semifactuals.item() == pytest.approx(0.1)
    assert found.flip_step.item() == 2


def test_an_inversion_that_already_is_the_target_is_its_own_counterfactual() -> None:
    found = play([(0.0, 0.9), (0.1, 0.95)])
    assert (found.step.item(), found.flip_step.item(), found.semifactuals.item()) == (0, 0, 0.0)


def test_a_third_class_on_the_way_is_no_semifactual() -> None:
    iterates = Iterates(torch.zeros(1, 1, 1, 1), torch.tensor([0]), torch.tensor([1]), torch.tensor([0.0]))
    for pixel, logits in ((0.0, [2.0, 0, 0]), (0.1, [1.0, 0, 0]), (0.2, [0, 0, 1.0]), (0.3, [0, 3.0, 0])):
        iterates.observe(torch.full((1, 1, 1, 1), pixel), torch.zeros(1, 1, 1), torch.tensor([logits]))
    assert iterates.semifactuals.item() == pytest.approx(0.1)
    assert iterates.flip_step.item() == 3


def test_saturated_confidence_asks_for_nothing_more() -> None:
    goal = goal_of(torch.tensor([1.0]), torch.tensor([0]))
    assert goal.item() == SATURATED
    assert log_odds(torch.tensor([[50.0, 0.0], [3.0, 0.0]]), torch.tensor([0, 0])).tolist() == [SATURATED, 3.0]


def test_log_odds_are_of_the_class_against_all_others() -> None:
    logits = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    targets = torch.tensor([0, 1, 2, 3, 0])
    probability = logits.softmax(1).gather(1, targets[:, None])[:, 0]
    torch.testing.assert_close(log_odds(logits, targets), torch.logit(probability), atol=1e-5, rtol=1e-5)


def test_operating_points_are_medians_over_correct_images() -> None:
    probabilities = torch.tensor([[0.9, 0.1], [0.7, 0.3], [0.6, 0.4], [0.2, 0.8], [0.45, 0.55]])
    labels = torch.tensor([0, 0, 0, 0, 0])
    points = operating_points(probabilities, labels, probabilities.argmax(1))
    assert points[0] == pytest.approx(0.7)
    assert points[1].isnan()
    torch.testing.assert_close(goal_of(points, torch.tensor([0, 0])).sigmoid(), torch.tensor([0.7, 0.7]))
    with pytest.raises(ClassifierError, match="class 1"):
        goal_of(points, torch.tensor([0, 1]))


def test_an_image_that_has_come_to_its_end_stays_as_it_was() -> None:
    iterates = Iterates(torch.zeros(2, 1, 1, 1), torch.zeros(2).long(), torch.ones(2).long(), torch.zeros(2))
    iterates.observe(torch.zeros(2, 1, 1, 1), torch.zeros(2, 1, 1), torch.cat([binary(0.1), binary(0.2)]))
    iterates.observe(torch.full((1, 1, 1, 1), 0.3), torch.zeros(1, 1, 1), binary(0.7), torch.tensor([1]))
    assert iterates.images.flatten().tolist() == pytest.approx([0.0, 0.3])
    assert iterates.step.tolist() == iterates.last.tolist() == [0, 1]
    assert iterates.flip_step.tolist() == [-1, 1]
    assert iterates.trace.flatten().tolist() == pytest.approx([0.1, 0.1, 0.2, 0.7])
