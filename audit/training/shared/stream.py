"""Training batches as a function of the step: fresh phantom images without end, or shuffled passes over a split.

No more than one batch is held as floats; the order of a pass depends on seed and epoch only. One of several processes
draws what concerns the whole batch and reads its own rows, so that all together see the batch that one process would.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from audit.data import phantom
from audit.data.audit_set import AuditSet
from audit.data.describe import note_on_training_data
from audit.data.load import load_data
from audit.errors import ConfigError, DataError
from audit.runtime.distributed import ALONE, Workers
from audit.runtime.seeds import stage_generator, stage_seed
from audit.training.classifier.augmentation import apply, draw
from audit.training.classifier.config import ClassifierTrainConfig, OptimiserConfig
from audit.training.shared.passes import Passes, pass_order

MEASURED_IMAGES = 1024
"""Images on which the normalisation (and the phantom's class frequencies) are measured."""


@dataclass(frozen=True)
class Stream:
    """Where training images come from: `batch(step)` gives float images `[B, C, H, W]` in [0, 1] and labels `[B]`.

    `per_epoch` is the number of steps that show every image once, None where images have no end.
    """

    batch: Callable[[int], tuple[Tensor, Tensor]]
    measured: Callable[[], tuple[Tensor, Tensor]]
    per_epoch: int | None
    class_names: tuple[str, ...]
    image_shape: tuple[int, int, int]
    validation: AuditSet
    description: dict[str, Any]


def held_out_phantom(n: int, seed: int, stage: str, marker_correlation: float) -> AuditSet:
    """Draw `n` phantom images that no training step can have seen: their seed is derived under another name."""
    whole = phantom.phantom_set(
        calibration=1, audit=n, seed=stage_seed(seed, f"train/{stage}"), marker_correlation=marker_correlation
    )
    return whole.split("test")


def _drawn(config: ClassifierTrainConfig, step: int, n: int, part: slice) -> dict[str, Tensor]:
    """Draw the augmentation of a batch of `n` images and return that of the rows `part`."""
    draws = draw(config.augmentation, n, stage_generator(config.seed, f"train/augment/{step}"))
    return {name: values[part] for name, values in draws.items()}


def phantom_stream(config: ClassifierTrainConfig, workers: Workers = ALONE) -> Stream:
    """Every step draws new images from the phantom with a seed of its own: there is no epoch to overfit to."""
    correlation = config.data.phantom.marker_correlation
    size = config.optimiser.batch_size
    part = workers.part(size)

    def drawn(n: int, stage: str) -> tuple[Tensor, Tensor]:
        batch = phantom.sample(n, stage_seed(config.seed, stage), marker_correlation=correlation)
        return batch.images, batch.labels

    def batch(step: int) -> tuple[Tensor, Tensor]:
        images, labels = drawn(size, f"train/phantom/{step}")
        return apply(images[part], _drawn(config, step, size, part)), labels[part]

    return Stream(
        batch=batch,
        measured=lambda: drawn(MEASURED_IMAGES, "train/measure"),
        per_epoch=None,
        class_names=phantom.CLASS_NAMES,
        image_shape=(1, 64, 64),
        validation=held_out_phantom(config.selection.n, config.seed, "validation", correlation),
        description={"source": "phantom", "marker_correlation": correlation, "drawn": "fresh images at every step"},
    )


def set_stream(config: ClassifierTrainConfig, workers: Workers = ALONE) -> Stream:
    """Shuffled passes over the training split of a folder, manifest or npz."""
    whole = load_data(config.data, config.seed)
    if whole.is_multi_label:
        raise DataError(
            f"Images of {whole.source} have several labels, and a classifier is trained on one class per image: set "
            'data.task to "single-label", or bring a network of your own.'
        )
    training = whole.split(config.train_split)
    note_on_training_data(training)
    validation = whole.split(config.validation_split)
    order = torch.randperm(len(validation), generator=stage_generator(config.seed, "train/validation"))
    size = min(config.optimiser.batch_size, len(training))
    part = workers.part(size)
    labels = training.row_labels
    passes = Passes(len(training), size, config.seed)

    def batch(step: int) -> tuple[Tensor, Tensor]:
        rows = passes.rows(step)[part]
        return apply(training.images(rows), _drawn(config, step, size, part)), labels[rows]

    def measured() -> tuple[Tensor, Tensor]:
        rows = pass_order(len(training), config.seed, -1)[:MEASURED_IMAGES]
        return training.images(rows), labels

    return Stream(
        batch=batch,
        measured=measured,
        per_epoch=len(training) // size,
        class_names=whole.class_names,
        image_shape=whole.image_shape,
        validation=validation.select(order[: config.selection.n]),
        description={"source": Path(config.data.path).name, "train": len(training), "validation": len(validation)},
    )


def _steps(epochs: float, per_epoch: int | None, key: str, instead: str) -> int:
    if per_epoch is None:
        raise ConfigError(
            f"The phantom has no epochs, its images are fresh at every step: give {instead} instead of {key}."
        )
    return max(1, round(epochs * per_epoch))


def training_steps(optimiser: OptimiserConfig, per_epoch: int | None) -> int:
    """Return the number of steps that the configuration asks for, of which `per_epoch` show every image once.

    Raises ConfigError on epochs of endless data, where `per_epoch` is None.
    """
    if optimiser.steps is not None:
        return optimiser.steps
    assert optimiser.epochs is not None, "the schema asks for one of the two"
    return _steps(optimiser.epochs, per_epoch, "optimiser.epochs", "optimiser.steps")


def selection_steps(config: ClassifierTrainConfig, stream: Stream) -> int:
    """Return the number of steps between two validations; raises ConfigError on epochs of endless data."""
    if config.selection.every_epochs is None:
        return config.selection.every
    return _steps(config.selection.every_epochs, stream.per_epoch, "selection.every_epochs", "selection.every")
