"""Augmentation: today's moves invent no pixel, affine maps are torchvision's, and every draw is its image's own."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from audit.training.augmentation import augment
from audit.training.config import AugmentationConfig

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
