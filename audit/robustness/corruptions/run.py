"""Accuracy under the 15 corruptions of ImageNet-C and CIFAR-10-C at five severities (Hendrycks & Dietterich 2019).

Written from the paper's definitions and constants, in batches, for any size and one to four channels. The packages that
offer them were tried and left: imagecorruptions 1.1.2 needs what numpy, scikit-image and setuptools have removed,
draws from the global generator, takes one 8-bit image at a time and does not scale lengths; medmnistc 0.1.0 pins exact
versions, needs ImageMagick and corrupts by data set, not by this list; kornia 0.9.0 has augmentations with strengths of
its own, and no glass, zoom, fog or frost.
"""

import difflib
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial

import torch
from torch import Tensor, nn

from audit.classifiers.mode import preserve_mode
from audit.classifiers.slices import sparing
from audit.config import CorruptionsConfig
from audit.data.audit_set import AuditSet
from audit.embeddings.embedding import check_images
from audit.errors import ConfigError, MetricError
from audit.metrics.intervals import bootstrap_mean, wilson_interval
from audit.results import Corruption, Corruptions
from audit.robustness.attacks.checks import check_labels, checked_logits, float_images
from audit.robustness.balls import attacked_rows
from audit.robustness.corruptions import blur, digital, noise, weather
from audit.robustness.corruptions.constants import IMAGENET_C, Constants, fitting
from audit.robustness.panel import Panel
from audit.runtime.progress import stage_progress
from audit.runtime.seeds import stage_generator

_FUNCTIONS: tuple[Callable[[Tensor, int, torch.Generator, Constants], Tensor], ...] = (
    noise.gaussian_noise,
    noise.shot_noise,
    noise.impulse_noise,
    blur.defocus_blur,
    blur.glass_blur,
    blur.motion_blur,
    blur.zoom_blur,
    weather.snow,
    weather.frost,
    weather.fog,
    digital.brightness,
    digital.contrast,
    digital.elastic_transform,
    digital.pixelate,
    digital.jpeg_compression,
)
_BY_NAME = {function.__name__: function for function in _FUNCTIONS}
CORRUPTIONS: tuple[str, ...] = tuple(_BY_NAME)
SEVERITIES = (1, 2, 3, 4, 5)
SMALLEST_SIDE = 8


def check_names(names: Sequence[str]) -> None:
    """Raise ConfigError naming the nearest corruption for the first name that is none."""
    for name in names:
        if name not in _BY_NAME:
            nearest = difflib.get_close_matches(name, CORRUPTIONS, n=1, cutoff=0)[0]
            raise ConfigError(
                f"There is no corruption '{name}' (robustness.corruptions.names): did you mean '{nearest}'? "
                f"All: {', '.join(CORRUPTIONS)}."
            )


def corrupt(
    images: Tensor, name: str, severity: int, generator: torch.Generator, published: Constants = IMAGENET_C
) -> Tensor:
    """Corrupt `images` `[N, C, H, W]` in [0, 1]; float32, same shape and range, on the images' device.

    `severity` is 1 to 5 of the `published` list. Lengths follow the shorter side, relative to the list's own; values
    are not rounded to 8 bits (JPEG apart). Random draws come from `generator`, on its own device. Raises ConfigError
    for an unknown name and MetricError for another severity, one to four channels exceeded, sides below 8 pixels or
    values outside [0, 1].
    """
    check_names([name])
    if severity not in SEVERITIES:
        raise MetricError(f"Severity is {severity} where one of 1, 2, 3, 4, 5 is expected.")
    # The check of pixels lets rounding errors through, on which a Poisson draw would fail.
    images = float_images(images, "images to corrupt").clamp(0, 1)
    _, channels, height, width = images.shape
    if not 1 <= channels <= 4 or min(height, width) < SMALLEST_SIDE:
        raise MetricError(
            f"Images of {channels} channels and {height}x{width} pixels cannot be corrupted: one to four channels and "
            f"sides of at least {SMALLEST_SIDE} pixels are expected; set data.image_size."
        )
    if len(images) == 0:
        return images
    with torch.no_grad():
        return _BY_NAME[name](images, severity, generator, published).clamp(0, 1)


def corruption_accuracies(
    panel: Panel,
    dataset: AuditSet,
    config: CorruptionsConfig,
    seed: int,
    *,
    batch_size: int,
    device: torch.device | str = "cpu",
) -> dict[str, tuple[Corruptions, Tensor]]:
    """Measure every model of `panel` on the same corrupted images, each of which is made once.

    Takes the first `config.n` images of the attacked order. Returns, by the name of a model that does not fail, the
    result and the correctness of every prediction, bool `[n, corruptions, severities]` in the order of `config`, for
    paired comparisons. Draws depend on `seed`, corruption, severity and batch only. Raises ConfigError for an unknown
    corruption and MetricError if `dataset` is empty.
    """
    names = config.names if config.names is not None else CORRUPTIONS
    check_names(names)
    chosen = attacked_rows(dataset, config.n, seed)
    if len(chosen) == 0:
        raise MetricError(f"There is no image of {dataset.source} to corrupt: check data.audit_split.")
    published = fitting(config.constants, *chosen.image_shape[1:])
    cells = [(i, name, j, severity) for i, name in enumerate(names) for j, severity in enumerate(config.severities)]

    def right(show: Callable[[], Tensor], rows: AuditSet, cell: Mapping[str, object]) -> dict[str, Tensor]:
        """Whether each answer is right, by model."""
        labels = rows.row_labels
        ids = [f"{row_id} ({cell['name']} {cell['severity']})" if cell else row_id for row_id in rows.row_ids]

        def answer(classifier: nn.Module, images: Tensor) -> Tensor:
            with preserve_mode(classifier), torch.no_grad():
                logits = sparing(classifier, partial(checked_logits, classifier, images, ids)).cpu()
            check_labels(labels, len(images), logits.shape[1])
            return logits.argmax(dim=1) == labels

        return panel.ask("corruptions", show, answer, (__name__,), images=rows.content, cell=cell)

    n = len(chosen)
    correct = {model: torch.zeros(n, len(names), len(config.severities), dtype=torch.bool) for model in panel.standing}
    clean = {model: torch.zeros(n, dtype=torch.bool) for model in panel.standing}
    with stage_progress("corruptions", n * len(cells)) as advance:
        for rows in chosen.places(batch_size):
            images = cache(partial(_read, chosen, rows, device))  # not read where all answers are kept
            these, first = chosen.select(rows), int(rows[0])
            for model, found in right(images, these, {}).items():
                clean[model][rows] = found
            for i, name, j, severity in cells:
                cell = {"name": name, "severity": severity, "constants": published.name, "seed": seed, "first": first}
                draws = stage_generator(seed, f"corruptions/{name}/{severity}/{first}")
                corrupted = partial(_corrupted, images, name, severity, draws, published)
                for model, found in right(corrupted, these, cell).items():
                    correct[model][rows, i, j] = found
                advance(len(rows))
    return {
        model: (_summary(correct[model], names, config.severities, seed, clean[model], published), correct[model])
        for model in panel.standing
    }


def _read(chosen: AuditSet, rows: Tensor, device: torch.device | str) -> Tensor:
    images = chosen.images(rows).to(device)
    check_images(images, f"images of {chosen.source}")
    return images


def _corrupted(
    images: Callable[[], Tensor], name: str, severity: int, generator: torch.Generator, published: Constants
) -> Tensor:
    return corrupt(images(), name, severity, generator, published)


def _summary(
    correct: Tensor, names: Sequence[str], severities: Sequence[int], seed: int, clean: Tensor, published: Constants
) -> Corruptions:
    n = len(correct)
    rows = [
        Corruption(
            name=name,
            accuracy={
                severity: wilson_interval(int(correct[:, i, j].sum()), n) for j, severity in enumerate(severities)
            },
            mean=float(correct[:, i].double().mean()),
        )
        for i, name in enumerate(names)
    ]
    # Images are drawn again, not cells: the cells of one image rise and fall together.
    mean = bootstrap_mean(correct.double().mean(dim=(1, 2)), stage_generator(seed, "corruptions/bootstrap"))
    return Corruptions(
        mean_accuracy=mean,
        corruptions=rows,
        n=n,
        clean_accuracy=wilson_interval(int(clean.sum()), n),
        constants=published.name,
    )
