"""Augmentation: today's moves invent no pixel, affine maps are torchvision's, and every draw is its image's own."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.transforms import v2

from audit.config import parse_config
from audit.errors import ConfigError
from audit.training.classifier.augmentation import affine_maps, apply, augment, draw
from audit.training.classifier.config import AugmentationConfig

ALL = {
    "flip": 0.3, "crop": 0.75, "rotation": 10, "translation": 0.02, "scaling": 0.05, "shear": 5, "brightness": 0.2,
    "contrast": 0.2,
}  # fmt: skip


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@settings(max_examples=20, deadline=None)
@given(shift=st.integers(0, 3), flip=st.booleans(), seed=st.integers(0, 1000))
def test_augmentation_keeps_shape_and_invents_no_value(shift: int, flip: bool, seed: int) -> None:
    images = torch.rand(5, 3, 8, 6, generator=torch.Generator().manual_seed(seed))
    config = AugmentationConfig(shift=shift, flip=flip)
    out = augment(images, config, torch.Generator().manual_seed(seed))
    assert out.shape == images.shape
    for before, after in zip(images, out, strict=True):
        assert torch.isin(after, before).all()
    if not shift and not flip:
        assert torch.equal(out, images)


def test_shift_moves_the_image_and_repeats_its_edge() -> None:
    images = torch.arange(16.0).reshape(1, 1, 4, 4).repeat(64, 1, 1, 1) / 16
    out = augment(images, AugmentationConfig(shift=1), torch.Generator().manual_seed(0))
    rows, columns = torch.meshgrid(torch.arange(4), torch.arange(4), indexing="ij")
    allowed = [
        images[0, 0, (rows + dy).clamp(0, 3), (columns + dx).clamp(0, 3)] for dy in (-1, 0, 1) for dx in (-1, 0, 1)
    ]
    assert {tuple(o.flatten().tolist()) for o in out} == {tuple(a.flatten().tolist()) for a in allowed}


def images_of(n: int, channels: int = 3, height: int = 12, width: int = 16, seed: int = 0) -> torch.Tensor:
    return torch.rand(n, channels, height, width, generator=seeded(seed))


def test_true_and_false_still_say_whether_to_mirror() -> None:
    assert [AugmentationConfig(flip=value).flip for value in (True, False, 0.3)] == [0.5, 0.0, 0.3]
    with pytest.raises(ConfigError, match="flip"):
        parse_config(AugmentationConfig, {"flip": 1.5}, "test")


@settings(max_examples=20, deadline=None)
@given(
    seed=st.integers(0, 1000),
    channels=st.sampled_from([1, 3]),
    change=st.fixed_dictionaries({}, optional={k: st.just(v) for k, v in ALL.items()}),
)
def test_every_mixture_of_changes_stays_in_range_and_off_means_untouched(
    seed: int, channels: int, change: dict[str, float]
) -> None:
    images = images_of(4, channels, seed=seed)
    out = augment(images, AugmentationConfig(**change), seeded(seed))
    assert out.shape == images.shape
    assert out.min() >= 0
    assert out.max() <= 1
    assert torch.equal(out, augment(images, AugmentationConfig(**change), seeded(seed)))
    if not change:
        assert torch.equal(out, images)


def test_a_part_of_the_batch_is_changed_as_in_the_whole() -> None:
    images, config = images_of(6), AugmentationConfig(shift=2, **ALL)
    whole = augment(images, config, seeded(1))
    draws = draw(config, 6, seeded(1))
    parts = [apply(images[p], {k: v[p] for k, v in draws.items()}) for p in (slice(0, 3), slice(3, 6))]
    assert torch.equal(torch.cat(parts), whole)


def test_affine_maps_are_those_of_torchvision() -> None:
    n, height, width = 5, 24, 36
    smooth = v2.functional.gaussian_blur(images_of(n, 1, height, width), [7, 7], [2.0, 2.0])
    config = AugmentationConfig(rotation=10, translation=0.05, scaling=0.05, shear=5)
    draws = draw(config, n, seeded(2))
    ours = apply(smooth, draws)
    for row in range(n):
        theirs = v2.functional.affine(
            smooth[row],
            angle=float(draws["affine_angle"][row]),
            translate=[float(draws["affine_x"][row]) * width, float(draws["affine_y"][row]) * height],
            scale=1 + float(draws["affine_scale"][row]),
            shear=[float(draws["affine_shear"][row]), 0.0],
            interpolation=v2.InterpolationMode.BILINEAR,
        )
        inside = (..., slice(8, -8), slice(8, -8))  # beyond the edge torchvision fills with black
        assert torch.allclose(ours[row][inside], theirs[inside], atol=1e-4)
        assert (ours[row][inside] - smooth[row][inside]).abs().max() > 1e-3


def test_a_crop_keeps_its_share_of_the_image_and_lies_within_it() -> None:
    draws = draw(AugmentationConfig(crop=0.75), 2000, seeded(3))
    width, height, x, y = draws["crop"].unbind(dim=1)
    area = width * height
    assert area.min() >= 0.75 - 1e-6
    assert area.max() <= 1
    assert area.mean() == pytest.approx(0.875, abs=0.01)
    assert (width / height).max() <= 4 / 3 + 1e-5
    assert (x.abs() + width).max() <= 1 + 1e-6
    assert (y.abs() + height).max() <= 1 + 1e-6
    maps = affine_maps({"crop": torch.tensor([[0.5, 1.0, 0.5, 0.0]])}, 1, 4, 8)
    corners = torch.tensor([[-1.0, 0.0, 1.0], [1.0, 0.0, 1.0]])
    assert torch.allclose(corners @ maps[0].T, torch.tensor([[0.0, 0.0], [1.0, 0.0]])), "the right half, whole height"


@pytest.mark.parametrize("channels", [1, 3])
def test_brightness_and_contrast_are_those_of_torchvision(channels: int) -> None:
    images = images_of(4, channels)
    draws = draw(AugmentationConfig(brightness=0.2, contrast=0.2), 4, seeded(4))
    out = apply(images, draws)
    for row in range(4):
        bright = v2.functional.adjust_brightness(images[row], float(draws["brightness"][row]))
        theirs = v2.functional.adjust_contrast(bright, float(draws["contrast"][row]))
        assert torch.allclose(out[row], theirs, atol=1e-3)
    for values in draws.values():
        assert values.min() >= 0.8
        assert values.max() <= 1.2
        assert len(values.unique()) == 4


def test_equal_images_are_changed_each_in_its_own_way() -> None:
    images = images_of(1).repeat(8, 1, 1, 1)
    for key, value in ALL.items():
        if key == "flip":
            continue
        out = augment(images, AugmentationConfig(**{key: value}), seeded())
        assert len(out.flatten(1).unique(dim=0)) == 8, key


def test_mirroring_has_its_probability() -> None:
    images = torch.tensor([[[[0.0, 1.0]]]]).repeat(4000, 1, 1, 1)
    out = augment(images, AugmentationConfig(flip=0.3), seeded())
    assert float(out[:, 0, 0, 0].mean()) == pytest.approx(0.3, abs=0.03)
