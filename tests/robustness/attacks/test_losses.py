"""The losses of attacks: closed forms, invariance, and a sign that says whether the classifier was fooled."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from audit.errors import ClassifierError, MetricError
from audit.robustness.attacks.losses import (
    LOSSES,
    cross_entropy,
    dlr,
    image_gradient,
    margin,
    targeted_dlr,
    targeted_margin,
)

CLASSES = (2, 3, 4, 9, 10, 1000)
classes = st.sampled_from(CLASSES)
seeds = st.integers(0, 10**6)


def case(k: int, seed: int, n: int = 8) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(n, k, generator=generator) * 3
    labels = torch.randint(k, (n,), generator=generator)
    return logits, labels, (labels + 1 + torch.randint(k - 1, (n,), generator=generator)) % k


def test_closed_forms() -> None:
    logits = torch.tensor([[4.0, 1.0, 3.0, 2.0], [4.0, 1.0, 3.0, 2.0]])
    labels, targets = torch.tensor([0, 1]), torch.tensor([2, 2])
    assert margin(logits, labels).tolist() == [-1.0, 3.0]
    assert dlr(logits, labels).tolist() == [-0.5, 1.5]
    assert targeted_margin(logits, labels, targets).tolist() == [-1.0, 2.0]
    assert targeted_dlr(logits, labels, targets).tolist() == pytest.approx([-1 / 2.5, 2 / 2.5])
    total = sum(math.exp(z) for z in (4, 1, 3, 2))
    assert cross_entropy(logits, labels).tolist() == pytest.approx([math.log(total) - 4, math.log(total) - 1])


@settings(max_examples=25, deadline=None)
@given(k=classes, seed=seeds, scale=st.floats(0.01, 100), shift=st.floats(-10, 10))
def test_ratios_do_not_change_under_scale_and_shift(k: int, seed: int, scale: float, shift: float) -> None:
    logits, labels, targets = case(k, seed)
    logits = logits.double()  # So that the shift itself loses nothing; the loss rounds to float32.
    moved = (logits + shift) * scale
    if k >= 3:
        assert torch.allclose(dlr(moved, labels), dlr(logits, labels), rtol=1e-2, atol=1e-2)
    if k >= 4:
        assert torch.allclose(
            targeted_dlr(moved, labels, targets), targeted_dlr(logits, labels, targets), rtol=1e-2, atol=1e-2
        )
    assert torch.allclose(margin(logits * scale, labels), margin(logits, labels) * scale, rtol=1e-3, atol=1e-4)


@settings(max_examples=25, deadline=None)
@given(k=classes, seed=seeds)
def test_sign_says_fooled(k: int, seed: int) -> None:
    logits, labels, targets = case(k, seed, n=32)
    fooled = logits.argmax(dim=1) != labels
    assert torch.equal(margin(logits, labels) > 0, fooled)
    if k >= 3:
        assert torch.equal(dlr(logits, labels) > 0, fooled)
    for loss in (targeted_margin, targeted_dlr) if k >= 4 else (targeted_margin,):
        assert (fooled | (loss(logits, labels, targets) <= 0)).all(), "positive only where the classifier is fooled"
        chosen = logits.argmax(dim=1)
        assert torch.equal(loss(logits, labels, chosen) > 0, fooled)


@settings(max_examples=25, deadline=None)
@given(k=classes, seed=seeds)
def test_margin_is_the_targeted_margin_of_the_best_other_class(k: int, seed: int) -> None:
    logits, labels, _ = case(k, seed)
    every = torch.stack([targeted_margin(logits, labels, torch.full_like(labels, t)) for t in range(min(k, 10))], dim=1)
    if k <= 10:
        every.scatter_(1, labels[:, None], -torch.inf)
        assert torch.equal(margin(logits, labels), every.amax(dim=1))
    assert (margin(logits, labels)[:, None] >= every).logical_or(every == 0).all()


@pytest.mark.parametrize("k", CLASSES)
def test_gradients_are_finite_even_where_all_logits_are_equal(k: int) -> None:
    for value in (torch.zeros(3, k), case(k, 0, n=3)[0]):
        logits = value.clone().requires_grad_()
        labels = torch.tensor([0, 1, 1])
        losses = [cross_entropy(logits, labels), margin(logits, labels), targeted_margin(logits, labels, 1 - labels)]
        losses += [dlr(logits, labels)] if k >= 3 else []
        losses += [targeted_dlr(logits, labels, 1 - labels)] if k >= 4 else []
        for loss in losses:
            (gradient,) = torch.autograd.grad(loss.sum(), logits, retain_graph=True)
            assert loss.shape == (3,)
            assert torch.isfinite(loss).all()
            assert torch.isfinite(gradient).all()


def test_too_few_classes_are_refused_in_one_sentence() -> None:
    labels = torch.tensor([0, 1])
    with pytest.raises(MetricError, match=r"at least 3 classes .* has 2"):
        dlr(torch.rand(2, 2), labels)
    with pytest.raises(MetricError, match=r"at least 4 classes .* has 3"):
        targeted_dlr(torch.rand(2, 3), labels, 1 - labels)
    with pytest.raises(MetricError, match=r"at least 2 classes .* has 1"):
        margin(torch.rand(2, 1), labels)


def test_losses_of_16_bit_logits_are_in_float32() -> None:
    logits, labels, targets = case(10, 0)
    for loss in (*LOSSES.values(), margin):
        assert loss(logits.bfloat16(), labels).dtype == torch.float32
    assert targeted_dlr(logits.bfloat16(), labels, targets).dtype == torch.float32


def test_gradient_of_an_image_is_that_of_its_own_loss() -> None:
    images = torch.rand(3, 1, 2, 2, requires_grad=True)
    gradient = image_gradient(nn.Identity(), (images.flatten(1) ** 2).sum(dim=1), images)
    assert torch.allclose(gradient, 2 * images)


def test_a_loss_without_a_path_to_the_image_has_gradient_zero() -> None:
    images, weight = torch.rand(3, 1, 2, 2, requires_grad=True), torch.ones(3, requires_grad=True)
    assert not image_gradient(nn.Identity(), images.detach().sum(dim=(1, 2, 3)), images).any()
    assert not image_gradient(nn.Identity(), images.detach().sum(dim=(1, 2, 3)) * weight, images).any()


def test_a_gradient_that_is_not_finite_is_refused() -> None:
    images = torch.zeros(2, 1, 2, 2, requires_grad=True)
    with pytest.raises(ClassifierError, match=r"Identity.* gradient"):
        image_gradient(nn.Identity(), images.sqrt().sum(dim=(1, 2, 3)), images)
