"""Adaptive augmentation: identity at p = 0, no leak of the generator through shapes or gradients, adaptation of p."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from audit.generator.augment import adapt, augment, colour, resample, spatial_transforms


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def test_nothing_happens_without_probability():
    images = torch.rand(4, 1, 16, 16, generator=rng())
    assert augment(images, 0.0, rng()) is images


def test_identity_transform_returns_the_image():
    ramp = torch.linspace(-1, 1, 16)[None, None, :, None].expand(2, 1, 16, 16)
    out = resample(ramp, torch.eye(3).expand(2, 3, 3))
    assert_close(out[..., 2:-2, 2:-2], ramp[..., 2:-2, 2:-2], atol=1e-5, rtol=0)


def test_integer_shift_moves_pixels_exactly():
    image = torch.zeros(1, 1, 16, 16)
    image[..., 8, 8] = 1
    shift = torch.eye(3)[None].clone()
    shift[:, 0, 2] = 2 * 2 / 16  # sample two pixels to the right: content moves two to the left
    plain, moved = resample(image, torch.eye(3)[None]), resample(image, shift)
    assert_close(moved[..., 2:-4], plain[..., 4:-2], atol=1e-6, rtol=0)


@settings(max_examples=20, deadline=None)
@given(p=st.floats(0.01, 1.0), seed=st.integers(0, 1000), channels=st.sampled_from([1, 3]))
def test_augmented_images_stay_finite_and_differentiable(p, seed, channels):
    images = torch.rand(5, channels, 16, 16, generator=rng(seed)).requires_grad_()
    out = augment(images, p, rng(seed))
    assert out.shape == images.shape
    assert torch.isfinite(out).all()
    out.square().sum().backward()
    assert torch.isfinite(images.grad).all()


def test_transforms_are_applied_with_their_probability():
    matrices = spatial_transforms(4000, 16, 0.0, rng())
    assert_close(matrices, torch.eye(3).expand(4000, 3, 3))
    changed = (spatial_transforms(4000, 16, 0.3, rng()) - torch.eye(3)).abs().amax((1, 2)) > 1e-6
    assert changed.float().mean() > 0.7  # seven transforms, most with probability 0.3
    angles = spatial_transforms(100, 16, 1.0, rng(1))
    assert torch.linalg.det(angles[:, :2, :2]).abs().min() > 0.05


def test_luma_flip_and_hue_keep_the_mean_of_chroma():
    images = torch.rand(200, 3, 4, 4, generator=rng()) * 2 - 1
    out = colour(images, 1.0, rng(3))
    chroma = out - out.mean(1, keepdim=True)
    assert_close(chroma.sum(1), torch.zeros(200, 4, 4), atol=1e-4, rtol=0)


def test_p_follows_the_sign_of_the_heuristic():
    assert adapt(0.5, 0.9, 1000, 0.6, 100_000) == 0.51
    assert adapt(0.5, 0.1, 1000, 0.6, 100_000) == 0.49
    assert adapt(0.0, 0.1, 1000, 0.6, 100_000) == 0.0
    assert adapt(1.0, 0.9, 1000, 0.6, 100_000) == 1.0
