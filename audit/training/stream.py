"""Training batches as a function of the step: fresh phantom images without end, or shuffled passes over a split.

No more than one batch is held as floats; the order of a pass depends on seed and epoch only.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from audit.data import phantom
from audit.data.audit_set import AuditSet
from audit.data.load import load_data
from audit.errors import ConfigError
from audit.seeds import stage_generator, stage_seed
from audit.training.config import AugmentationConfig, ClassifierTrainConfig

MEASURED_IMAGES = 1024
"""Images on which the normalisation (and the phantom's class frequencies) are measured."""


@dataclass(frozen=True)
class Stream:
    """Where training images come from: `batch(step)` gives float images `[B, C, H, W]` in [0, 1] and labels `[B]`."""

    batch: Callable[[int], tuple[Tensor, Tensor]]
    measured: Callable[[], tuple[Tensor, Tensor]]
    size: int | None
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


def epoch_order(n: int, seed: int, epoch: int) -> Tensor:
    """Return the permutation of `n` rows for pass number `epoch`."""
    return torch.randperm(n, generator=stage_generator(seed, f"train/order/{epoch}"))


def augment(images: Tensor, config: AugmentationConfig, generator: torch.Generator) -> Tensor:
    """Shift each image by up to `config.shift` pixels (edges replicated) and mirror half of them if `config.flip`."""
    n, _, height, width = images.shape
    if config.shift:
        moves = torch.randint(-config.shift, config.shift + 1, (2, n), generator=generator)
        rows = (torch.arange(height) + moves[0][:, None]).clamp(0, height - 1)
        columns = (torch.arange(width) + moves[1][:, None]).clamp(0, width - 1)
        picked = images.permute(0, 2, 3, 1)[torch.arange(n)[:, None, None], rows[:, :, None], columns[:, None, :]]
        images = picked.permute(0, 3, 1, 2)
    if config.flip:
        mirrored = torch.rand(n, generator=generator) < 0.5
        images = torch.where(mirrored[:, None, None, None], images.flip(3), images)
    return images.contiguous()


def phantom_stream(config: ClassifierTrainConfig) -> Stream:
    """Every step draws new images from the phantom with a seed of its own: there is no epoch to overfit to."""
    correlation = config.data.phantom.marker_correlation
    size = config.optimiser.batch_size

    def drawn(n: int, stage: str) -> tuple[Tensor, Tensor]:
        batch = phantom.sample(n, stage_seed(config.seed, stage), marker_correlation=correlation)
        return batch.images, batch.labels

    def batch(step: int) -> tuple[Tensor, Tensor]:
        images, labels = drawn(size, f"train/phantom/{step}")
        return augment(images, config.augmentation, stage_generator(config.seed, f"train/augment/{step}")), labels

    return Stream(
        batch=batch,
        measured=lambda: drawn(MEASURED_IMAGES, "train/measure"),
        size=None,
        class_names=phantom.CLASS_NAMES,
        image_shape=(1, 64, 64),
        validation=held_out_phantom(config.selection.n, config.seed, "validation", correlation),
        description={"source": "phantom", "marker_correlation": correlation, "drawn": "fresh images at every step"},
    )


def set_stream(config: ClassifierTrainConfig) -> Stream:
    """Shuffled passes over the training split of a folder, manifest or npz."""
    whole = load_data(config.data, config.seed)
    training = whole.split(config.train_split)
    validation = whole.split(config.validation_split)
    order = torch.randperm(len(validation), generator=stage_generator(config.seed, "train/validation"))
    size = min(config.optimiser.batch_size, len(training))
    per_epoch = len(training) // size
    labels = training.row_labels
    current: dict[int, Tensor] = {}

    def batch(step: int) -> tuple[Tensor, Tensor]:
        epoch, position = divmod(step, per_epoch)
        if epoch not in current:
            current.clear()
            current[epoch] = epoch_order(len(training), config.seed, epoch)
        rows = current[epoch][position * size : (position + 1) * size]
        generator = stage_generator(config.seed, f"train/augment/{step}")
        return augment(training.images(rows), config.augmentation, generator), labels[rows]

    def measured() -> tuple[Tensor, Tensor]:
        rows = epoch_order(len(training), config.seed, -1)[:MEASURED_IMAGES]
        return training.images(rows), labels

    return Stream(
        batch=batch,
        measured=measured,
        size=len(training),
        class_names=whole.class_names,
        image_shape=whole.image_shape,
        validation=validation.select(order[: config.selection.n]),
        description={"source": Path(config.data.path).name, "train": len(training), "validation": len(validation)},
    )


def training_steps(config: ClassifierTrainConfig, stream: Stream) -> int:
    """Return the number of steps that the configuration asks for; raises ConfigError on epochs of endless data."""
    if config.optimiser.steps is not None:
        return config.optimiser.steps
    if stream.size is None or config.optimiser.epochs is None:
        raise ConfigError(
            "The phantom has no epochs, its images are fresh at every step: give optimiser.steps instead."
        )
    size = min(config.optimiser.batch_size, stream.size)
    return max(1, round(config.optimiser.epochs * (stream.size // size)))
