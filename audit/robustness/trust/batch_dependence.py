"""Does the answer to an image depend on the other images of its batch? Then no number measured is the model's own.

Batch normalisation without running statistics, a network exported in training mode, statistics, ranks or a softmax
taken over the batch: the logits of an image change with its neighbours, and every accuracy with `batch_size` and the
order of the images. The check asks for the logits of the same images in one batch, each alone, in the reverse order and
among other images. A sound network answers alike up to rounding: kernels for other batch sizes add in another order, so
that what is tolerated follows the coarsest floating-point type that the network computes in. Differences that come from
draws in `forward` are told apart by asking for the same batch again.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from audit.classifiers.mode import preserve_mode
from audit.classifiers.probe import first_line
from audit.results import TrustCheck
from audit.robustness.attacks.checks import checked_logits, float_images
from audit.robustness.trust.case import FOREIGN_ERRORS, RANDOMNESS_LIMIT
from audit.runtime.memory import out_of_memory
from audit.runtime.seeds import lent_randomness, stage_generator

NAME = "batch-dependence"
IMAGES = 16
"""Images asked for, one by one and together: enough for statistics over the batch to differ, and cheap."""
REPEATS = 4
"""Forwards of the same batch that tell draws at random from dependence."""
CONFIRMATIONS = 24
"""As many again before a model is blamed: a draw that shows in one of eight forwards is missed 4 times in 100."""
ABOVE_NOISE = 3.0
"""Times the difference of equal batches that the difference of unlike batches must have to be no draw at random."""
ROUNDINGS = 8.0
"""Units of the coarsest type's rounding, of the logits' range, that reordered sums of a deep network may make."""
TF32_EPS = 2.0**-10


class _CoarsestType(TorchDispatchMode):
    """Notes the largest relative rounding of any floating-point type that a network's operations return."""

    def __init__(self) -> None:
        super().__init__()
        self.eps = 0.0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for value in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(value, Tensor) and value.is_floating_point():
                self.eps = max(self.eps, torch.finfo(value.dtype).eps)
        return result


def _rounding(classifier: nn.Module, image: Tensor) -> float:
    """Return the relative rounding of the coarsest type in use, which a GPU's matrix units may make coarser."""
    seen = _CoarsestType()
    try:
        with seen:
            classifier(image)
    except FOREIGN_ERRORS:
        kinds = [p.dtype for p in classifier.parameters() if p.is_floating_point()]
        seen.eps = max((torch.finfo(kind).eps for kind in kinds), default=0.0)
    short = torch.backends.cudnn.allow_tf32 or torch.backends.cuda.matmul.allow_tf32
    return max(seen.eps, TF32_EPS) if image.device.type == "cuda" and short else seen.eps


def _halves(images: Tensor) -> Iterator[Tensor]:
    """Yield the positions of the first and of the second half of the batch."""
    return (rows for rows in torch.arange(len(images), device=images.device).chunk(2) if len(rows))


def _alone(classifier: nn.Module, images: Tensor) -> Tensor:
    return torch.cat([checked_logits(classifier, image) for image in images.split(1)])


def _reversed(classifier: nn.Module, images: Tensor) -> Tensor:
    return checked_logits(classifier, images.flip(0)).flip(0)


def _among_others(classifier: nn.Module, images: Tensor) -> Tensor:
    """Logits of each half of the batch in a batch whose other images are noise."""
    noise = torch.rand(images.shape, generator=stage_generator(0, f"trust/{NAME}")).to(images)
    batches = ((len(rows), torch.cat([images[rows], noise])) for rows in _halves(images))
    return torch.cat([checked_logits(classifier, batch)[:n] for n, batch in batches])


Arrangement = Callable[[nn.Module, Tensor], Tensor]
ARRANGEMENTS: tuple[tuple[str, Arrangement], ...] = (
    ("alone", _alone),
    ("in the reverse order", _reversed),
    ("among other images", _among_others),
)
"""Ways to ask for the logits `[N, K]` of the same images, by what they are called in a sentence."""


def _difference(found: Tensor, reference: Tensor) -> float:
    """Return the largest difference of any logit, as a share of the range of its image's or of a typical image's."""
    centred = reference - reference.mean(dim=1, keepdim=True)
    ranges = centred.abs().amax(dim=1)
    scale = torch.maximum(ranges, ranges.median())
    gap = (found - reference).abs().amax(dim=1)
    return float(torch.where(scale > 0, gap / scale.clamp_min(torch.finfo(scale.dtype).tiny), gap).max())


def _not_made(n: int, finding: str) -> TrustCheck:
    return TrustCheck(name=NAME, passed=None, value=None, limit=None, n=n, finding=finding)


def batch_dependence(classifier: nn.Module, images: Tensor) -> TrustCheck:
    """Compare the logits of the first `IMAGES` of `images` `[N, C, H, W]` in [0, 1] over ways to put them in batches.

    `value` is the largest difference as a share of the logits' range. The classifier keeps its mode and the global
    generators their state. What the classifier refuses ends in a row that was not made, and never in an error. Raises
    MetricError on images that are none.
    """
    images = float_images(images[:IMAGES], "images given to the check of batches")
    if len(images) == 0:
        return _not_made(0, "There is no image to check the classifier on.")
    with preserve_mode(classifier), lent_randomness(images.device), torch.no_grad():
        try:
            return _compared(classifier, images)
        except FOREIGN_ERRORS as error:
            if out_of_memory(error):
                raise
            return _not_made(
                len(images), f"The check cannot be made on this classifier ({first_line(error).rstrip('.')})."
            )


def _compared(classifier: nn.Module, images: Tensor) -> TrustCheck:
    n = len(images)
    reference = checked_logits(classifier, images).double()

    def noise(forwards: int) -> float:
        repeats = (checked_logits(classifier, images).double() for _ in range(forwards))
        return max(_difference(again, reference) for again in repeats)

    differences: dict[str, float] = {}
    refused: dict[str, str] = {}
    for name, arrangement in ARRANGEMENTS:
        try:
            differences[name] = _difference(arrangement(classifier, images).double(), reference)
        except FOREIGN_ERRORS as error:
            if out_of_memory(error):
                raise
            refused[name] = first_line(error).rstrip(".")
    limit = max(RANDOMNESS_LIMIT, ROUNDINGS * _rounding(classifier, images[:1] if "alone" not in refused else images))
    drawn = noise(REPEATS)
    worst = max(differences, key=lambda name: differences[name]) if differences else ""
    value = differences.get(worst, 0.0)
    if value > max(limit, ABOVE_NOISE * drawn):
        drawn = max(drawn, noise(CONFIRMATIONS))
    if value > limit and value > ABOVE_NOISE * drawn:
        return TrustCheck(
            name=NAME,
            passed=False,
            value=value,
            limit=limit,
            n=n,
            finding=f"The logits of an image {worst} differ from those in its batch by {value:.2g} of their range: the "
            "answer to an image depends on the other images of its batch (batch normalisation without running "
            "statistics, an export in training mode, or a statistic over the batch), so that every number of this "
            "model changes with the batch size and the order of the images.",
        )
    if drawn > RANDOMNESS_LIMIT:
        return _not_made(
            n,
            f"Forwards of one and the same batch differ by {drawn:.2g} of the logits' range: the classifier draws at "
            "random, and whether its answers depend on the batch cannot be told.",
        )
    if refused:
        name, why = next(iter(refused.items()))
        return _not_made(n, f"The classifier does not take these images {name} ({why}).")
    return TrustCheck(
        name=NAME,
        passed=True,
        value=value,
        limit=limit,
        n=n,
        finding=f"The logits of {n} images alone, in the reverse order and among other images differ by {value:.2g} of "
        "their range at most: the answer to an image depends on that image only.",
    )


def one_class(predicted: Tensor, labels: Tensor, class_names: tuple[str, ...]) -> TrustCheck | None:
    """Return a failed check where all of `predicted` `[N]` are one class though `labels` `[N]` are not; else None.

    Such a model cannot be fooled into another class, and that is no robustness.
    """
    answers, wanted = predicted.unique(), labels.unique()
    if len(answers) != 1 or len(wanted) < 2:
        return None
    name, n = class_names[int(answers[0])], len(labels)
    others = int((labels != answers[0]).sum())
    return TrustCheck(
        name="one-class",
        passed=False,
        value=1.0,
        limit=None,
        n=n,
        finding=f"It answers '{name}' to all {n} images, {others} of which are of other classes: that an attack does "
        "not move such an answer shows no robustness (check mean, std and the order of the classes).",
    )
