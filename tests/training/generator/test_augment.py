"""Adaptive augmentation: identity at p = 0, the share p of every transformation, exactness, gradients, moves of p."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from audit.training.generator import augment_colour as colour
from audit.training.generator import augment_spatial as spatial
from audit.training.generator.augment import DEFAULT_GROUPS, GROUPS, adapt, augment
from audit.training.generator.augment_corrupt import BAND_POWER, add_noise, band_gains, bands, cut_out

N = 4000
UNIT = torch.eye(3)


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def noise_images(n=6, channels=1, size=32, seed=0):
    return torch.rand(n, channels, size, size, generator=rng(seed)) * 2 - 1


def moved(matrices):
    return (matrices != UNIT).flatten(1).any(1)


def test_nothing_happens_without_probability_or_groups():
    images = noise_images()
    assert augment(images, 0.0, rng(), GROUPS) is images
    assert augment(images, 1.0, rng(), ()) is images


# Each transformation alone: how often it changes an image, given how often it was meant to.
APPLIED = {
    "flip": (lambda p, g: spatial.flips(N, p, g), 1 / 2),
    "turn": (lambda p, g: spatial.quarter_turns(N, p, g) != 0, 3 / 4),
    "shift": (lambda p, g: (spatial.integer_shifts(N, 256, p, g) != 0).any(1), 1 - (1 / 64) ** 2),
    "scale": (lambda p, g: moved(spatial.scalings(N, p, g)), 1),
    "stretch": (lambda p, g: moved(spatial.stretchings(N, p, g)), 1),
    "either rotation": (lambda p, g: moved(spatial.rotations(N, p, g)) | moved(spatial.rotations(N, p, g)), 1),
    "fraction": (lambda p, g: moved(spatial.fractional_shifts(N, p, g)), 1),
    "brightness": (lambda p, g: colour.brightness(N, p, g) != 0, 1),
    "contrast": (lambda p, g: colour.contrast(N, p, g) != 1, 1),
    "luma": (lambda p, g: colour.luma_signs(N, p, g) == -1, 1 / 2),
    "hue": (lambda p, g: colour.hues(N, p, g) != 0, 1),
    "saturation": (lambda p, g: colour.saturation(N, p, g) != 1, 1),
    "noise": (lambda p, g: (add_noise(torch.zeros(N, 1, 2, 2), p, g) != 0).flatten(1).any(1), 1),
}


@pytest.mark.parametrize("name", APPLIED)
@settings(max_examples=8, deadline=None)
@given(p=st.floats(0.0, 1.0), seed=st.integers(0, 1000))
def test_every_transformation_is_applied_with_probability_p(name, p, seed):
    draw, visible = APPLIED[name]
    share = draw(p, rng(seed)).double().mean().item()
    expected = p * visible
    assert abs(share - expected) <= 5 * math.sqrt(expected * (1 - expected) / N) + 1e-9


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_every_group_alone_acts_keeps_the_shape_and_has_finite_gradients(group, channels):
    images = noise_images(8, channels).requires_grad_()
    out = augment(images, 0.8, rng(1), (group,))
    assert out.shape == images.shape
    assert not torch.equal(out, images)
    out.square().sum().backward()
    assert torch.isfinite(out).all()
    assert torch.isfinite(images.grad).all()
    assert images.grad.abs().sum() > 0


@settings(max_examples=10, deadline=None)
@given(p=st.floats(0.01, 0.1), seed=st.integers(0, 1000), channels=st.sampled_from([1, 3]))
def test_images_for_which_nothing_was_drawn_stay_to_the_bit(p, seed, channels):
    images = noise_images(64, channels, 16, seed)
    for groups in (DEFAULT_GROUPS, GROUPS):
        same = (augment(images, p, rng(seed), groups) == images).flatten(1).all(1).double().mean().item()
        drawn = 15 if groups == GROUPS else 12  # at most: transformations per image
        expected = (1 - p) ** drawn
        assert same >= expected - 4 * math.sqrt(expected * (1 - expected) / 64) - 1e-9


def test_the_generator_of_the_draws_decides_everything():
    images = noise_images()
    assert torch.equal(augment(images, 0.5, rng(3), GROUPS), augment(images, 0.5, rng(3), GROUPS))


def test_blitting_only_moves_pixels():
    images = noise_images(32)
    zero = torch.zeros(32, 2, dtype=torch.long)
    flip, turns = torch.arange(32) % 2 == 1, torch.arange(32) // 2 % 4
    out = spatial.move(images, flip, turns, zero)
    for image, result, mirrored, quarter in zip(images, out, flip, turns, strict=True):
        expected = image.flip(2) if mirrored else image
        assert torch.equal(result, torch.rot90(expected, int(quarter), (1, 2)))
    shifts = torch.tensor([[3, -2]]).expand(32, 2)
    shifted = spatial.move(images, torch.zeros(32, dtype=torch.bool), torch.zeros(32, dtype=torch.long), shifts)
    assert torch.equal(shifted[..., 3:, :-2], images[..., :-3, 2:])
    assert torch.equal(shifted[..., 0, :-2], images[..., 3, 2:])


def test_integer_shifts_reach_an_eighth_of_the_image():
    shifts = spatial.integer_shifts(N, 64, 1.0, rng())
    assert (int(shifts.min()), int(shifts.max())) == (-8, 8)


def test_the_filter_is_an_orthonormal_wavelet_with_six_vanishing_moments():
    taps = torch.tensor(spatial.SYM6, dtype=torch.float64)
    for k in range(6):
        product = (taps[: 12 - 2 * k] * taps[2 * k :]).sum()
        assert abs(product - float(k == 0)) < 1e-10
        assert abs(((-1.0) ** torch.arange(12) * torch.arange(12).double() ** k * taps).sum()) < 1e-7


def test_resampling_is_exact_where_nothing_moves_and_for_whole_pixels():
    images = noise_images(2, 3)
    still = UNIT.expand(2, 3, 3)
    assert spatial.warp(images, still) is images
    nearly = still.clone()
    nearly[:, 0, 2] = 1e-8
    assert_close(spatial.warp(images, nearly), images, atol=1e-4, rtol=0)
    shift = still.clone()
    shift[:, 0, 2] = 2 * 2 / 32  # sample two pixels to the right: content moves two to the left
    assert_close(spatial.warp(images, shift)[..., :-2], images[..., 2:], atol=1e-4, rtol=0)


def test_warps_agree_with_the_function_they_sample():
    size = 64

    def wave(x, y):
        return torch.sin(3 * x) * torch.cos(2 * y + 0.5 * x)

    axis = (torch.arange(size) + 0.5) / size * 2 - 1
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    transform = spatial.geometric_transforms(1, 1.0, rng(6))
    u, v = ((transform[0, k, 0] * x + transform[0, k, 1] * y + transform[0, k, 2]) for k in range(2))
    inside = (u.abs() < 0.9) & (v.abs() < 0.9)
    assert inside.float().mean() > 0.2
    out = spatial.warp(wave(x, y)[None, None], transform)[0, 0]
    assert_close(out[inside], wave(u, v)[inside], atol=0.03, rtol=0)  # the filter's centre is a fifth of a pixel off


def test_detail_that_would_alias_is_removed():
    stripes = torch.tensor([1.0, -1.0]).repeat(32).expand(1, 1, 64, 64)
    half = torch.diag(torch.tensor([2.0, 2.0, 1.0]))[None]  # shrink by two: the stripes are finer than a pixel
    assert spatial.warp(stripes, half)[..., 20:44, 20:44].square().mean() < 0.3


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 100))
def test_warping_is_linear_and_far_places_stay_in_range(seed):
    transforms = spatial.geometric_transforms(4, 1.0, rng(seed))
    transforms[0, 0, 2] = 7.0  # far outside: reflected again and again
    a, b = noise_images(4, 1, 16, seed), noise_images(4, 1, 16, seed + 1)
    both = spatial.warp(a - 2 * b, transforms)
    assert_close(both, spatial.warp(a, transforms) - 2 * spatial.warp(b, transforms), atol=1e-4, rtol=1e-4)
    assert both.abs().max() < 6


def test_hue_and_saturation_leave_the_luma_and_hue_keeps_the_length_of_chroma():
    n = 200
    matrices, _ = colour.colour_transforms(n, 3, 1.0, rng(3))
    assert_close(matrices.sum(2).abs(), matrices.sum(2).abs()[:, :1].expand(n, 3), atol=1e-4, rtol=1e-4)
    chroma = torch.tensor([1.0, -1.0, 0.0])
    out = matrices @ chroma
    assert_close(out.sum(1), torch.zeros(n), atol=1e-4, rtol=0)
    turned = matrices @ torch.tensor([1.0, 1.0, -2.0])
    assert_close(turned.norm(dim=1) / out.norm(dim=1), torch.full((n,), math.sqrt(3)), atol=1e-3, rtol=1e-3)
    assert torch.det(matrices).abs().min() > 0  # invertible: nothing is lost


@pytest.mark.parametrize("channels", [1, 2, 3])
def test_recolouring_is_the_drawn_affine_map(channels):
    images = noise_images(5, channels, 4)
    matrices, offsets = colour.colour_transforms(5, channels, 0.9, rng(5))
    expected = torch.einsum("nij,njhw->nihw", matrices, images) + offsets[:, :, None, None]
    assert_close(colour.recolour(images, matrices, offsets), expected, atol=1e-5, rtol=1e-5)


def test_bands_add_up_and_gains_keep_the_expected_power():
    images = noise_images(3)
    assert_close(sum(bands(images)), images, atol=1e-5, rtol=0)
    gains = band_gains(500, 1.0, rng())
    assert_close((gains.square() * torch.tensor(BAND_POWER)).sum(1), torch.ones(500), atol=1e-4, rtol=1e-4)


def test_cutout_removes_at_most_a_quarter():
    kept = cut_out(torch.ones(500, 1, 32, 32), 1.0, rng()).mean((1, 2, 3))
    assert float(kept.min()) == pytest.approx(0.75, abs=0.04)
    assert 0.8 < float(kept.mean()) < 0.9


def test_p_follows_the_sign_of_the_heuristic_within_its_bounds():
    assert adapt(0.5, 0.9, 1000, 0.6, 100_000) == 0.51
    assert adapt(0.5, 0.1, 1000, 0.6, 100_000) == 0.49
    assert adapt(0.0, 0.1, 1000, 0.6, 100_000) == 0.0
    assert adapt(0.799, 0.9, 1000, 0.6, 100_000) == 0.8
    assert adapt(0.999, 0.9, 1000, 0.6, 100_000, highest=1.0) == 1.0
