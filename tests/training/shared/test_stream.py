"""Batches are functions of the step, and the parts of several processes are one batch."""

from pathlib import Path

import numpy as np
import pytest
import torch

from audit.errors import ConfigError
from audit.runtime.distributed import Workers
from audit.training.classifier.config import AugmentationConfig, ClassifierTrainConfig, SelectionConfig
from audit.training.shared.stream import held_out_phantom, phantom_stream, selection_steps, set_stream, training_steps


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
    assert training_steps(config.optimiser, set_stream(config).per_epoch) == 4
    with pytest.raises(ConfigError, match="no epochs"):
        training_steps(phantom_config(steps=None, epochs=1).optimiser, phantom_stream(phantom_config()).per_epoch)


def test_validations_can_be_counted_in_epochs(tmp_path: Path) -> None:
    whole = npz_config(tmp_path)
    stream = set_stream(whole)
    assert (stream.per_epoch, selection_steps(whole, stream)) == (2, 200)
    for epochs, steps in ((1, 2), (3, 6), (0.1, 1)):
        config = whole.model_copy(update={"selection": SelectionConfig(every_epochs=epochs)})
        assert selection_steps(config, stream) == steps
    endless = phantom_config().model_copy(update={"selection": SelectionConfig(every_epochs=1, n=2)})
    with pytest.raises(ConfigError, match=r"no epochs.*give selection\.every instead"):
        selection_steps(endless, phantom_stream(endless))


@pytest.mark.parametrize("kind", ["phantom", "npz"])
def test_processes_share_out_the_very_batch_of_one(tmp_path: Path, kind: str) -> None:
    config = phantom_config() if kind == "phantom" else npz_config(tmp_path)
    changes = AugmentationConfig(shift=1, flip=True, rotation=10, brightness=0.2)
    config = config.model_copy(update={"augmentation": changes})
    build = phantom_stream if kind == "phantom" else set_stream
    images, labels = build(config).batch(1)
    parts = [build(config, Workers(rank, 2)).batch(1) for rank in (0, 1)]
    assert torch.equal(torch.cat([part[0] for part in parts]), images)
    assert torch.equal(torch.cat([part[1] for part in parts]), labels)
    with pytest.raises(ConfigError, match="multiple of 3"):
        build(config, Workers(0, 3))
