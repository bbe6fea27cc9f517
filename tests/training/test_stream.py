"""Batches are functions of the step; augmentation moves pixels and invents none."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from audit.errors import ConfigError
from audit.training.config import AugmentationConfig, ClassifierTrainConfig
from audit.training.stream import augment, held_out_phantom, phantom_stream, set_stream, training_steps


def phantom_config(**optimiser: object) -> ClassifierTrainConfig:
    values = {"batch_size": 4, "steps": 2} | optimiser
    return ClassifierTrainConfig.model_validate(
        {"name": "x", "data": {"path": "phantom"}, "optimiser": values, "selection": {"n": 6}}
    )


def npz_config(folder: Path, **optimiser: object) -> ClassifierTrainConfig:
    generator = np.random.default_rng(0)
    arrays = {}
    for split, n in (("train", 10), ("val", 4), ("test", 5)):
        arrays[f"{split}_images"] = generator.integers(0, 255, (n, 28, 28), dtype=np.uint8)
        arrays[f"{split}_labels"] = np.arange(n)[:, None] % 2
    np.savez(folder / "set.npz", **arrays)
    values = {"batch_size": 4, "epochs": 2} | optimiser
    return ClassifierTrainConfig.model_validate(
        {"name": "x", "data": {"path": str(folder / "set.npz")}, "optimiser": values}
    )


def test_phantom_steps_are_fresh_and_repeatable() -> None:
    stream = phantom_stream(phantom_config())
    first, again, second = stream.batch(0)[0], stream.batch(0)[0], stream.batch(1)[0]
    assert first.shape == (4, 1, 64, 64)
    assert torch.equal(first, again)
    assert not torch.equal(first, second)
    assert len(stream.validation) == 6


def test_held_out_images_are_not_those_of_training() -> None:
    stream = phantom_stream(phantom_config())
    held_out = held_out_phantom(4, 0, "evaluation", 0.0).images()
    distance = (held_out[:, None] - stream.batch(0)[0][None]).abs().mean(dim=(2, 3, 4))
    assert distance.min() > 0.005


def test_a_pass_over_a_split_shows_every_image_once(tmp_path: Path) -> None:
    stream = set_stream(npz_config(tmp_path, batch_size=5))
    shown = torch.cat([stream.batch(step)[0] for step in range(2)]).flatten(1)
    assert len(torch.unique(shown, dim=0)) == 10
    assert not torch.equal(shown, torch.cat([stream.batch(step)[0] for step in (2, 3)]).flatten(1))
    assert stream.class_names
    assert len(stream.validation) == 4


def test_steps_follow_from_epochs(tmp_path: Path) -> None:
    config = npz_config(tmp_path)
    assert training_steps(config, set_stream(config)) == 4
    with pytest.raises(ConfigError, match="no epochs"):
        training_steps(phantom_config(steps=None, epochs=1), phantom_stream(phantom_config()))


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
