"""The push rises while an image is short of its goal, falls past it, and is a smooth function of the logits."""

import torch

from audit.counterfactual.balance import AIM, LARGEST, OVERSHOOT, RATE, SMALLEST, Push, reach_of


def logits(log_odds: list[float]) -> torch.Tensor:
    return torch.stack([torch.zeros(len(log_odds)), torch.tensor(log_odds)], 1)


def test_short_images_are_pushed_and_convincing_ones_released() -> None:
    push = Push(torch.zeros(3))
    targets = torch.ones(3, dtype=torch.long)
    push.observe(logits([-3.0, 3.0, AIM]), targets, torch.arange(3))
    torch.testing.assert_close(push.value, torch.tensor([RATE, 1 / RATE, 1.0]))
    for _ in range(200):
        push.observe(logits([-3.0, 3.0, AIM]), targets, torch.arange(3))
    torch.testing.assert_close(push.value, torch.tensor([LARGEST, SMALLEST, 1.0]))
    torch.testing.assert_close(reach_of(push.value), torch.tensor([LARGEST**OVERSHOOT, 1.0, 1.0]))


def test_an_edit_under_way_is_not_pushed_further() -> None:
    still, moving = Push(torch.zeros(1)), Push(torch.zeros(1))
    target = torch.ones(1, dtype=torch.long)
    for push, before in ((still, -1.0), (moving, -2.0)):
        push.observe(logits([before]), target, torch.arange(1))
        push.observe(logits([-1.0]), target, torch.arange(1))
    assert still.value > 1
    assert moving.value < still.value


def test_rounding_of_the_logits_stays_rounding() -> None:
    push, other = Push(torch.zeros(40)), Push(torch.zeros(40))
    targets = torch.ones(40, dtype=torch.long)
    generator = torch.Generator().manual_seed(0)
    for _ in range(50):
        now = torch.randn(40, generator=generator)
        push.observe(logits(now.tolist()), targets, torch.arange(40))
        other.observe(logits((now + 1e-6).tolist()), targets, torch.arange(40))
    torch.testing.assert_close(push.value, other.value, rtol=1e-3, atol=1e-4)


def test_images_without_an_iterate_keep_their_push() -> None:
    push = Push(torch.tensor([0.0, 1.0, 2.0]))
    push.observe(logits([-3.0, 3.0, 1.0]), torch.ones(3, dtype=torch.long), torch.arange(3))
    value = push.value.clone()
    push.observe(logits([-3.0, 1.0]), torch.ones(2, dtype=torch.long), torch.tensor([0, 2]))
    assert (push.value[[0, 2]] > value[[0, 2]]).all()
    assert push.value[1] == value[1]
