"""What every attack may be given, checked, with one clear sentence for what it may not."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from audit.classifiers.foreign import foreign_code
from audit.embeddings.embedding import check_images
from audit.errors import ClassifierError, MetricError
from audit.robustness.attacks.ball import Norm


def name_of(classifier: nn.Module) -> str:
    """Return what sentences and progress bars call `classifier`: its own name, else its type's."""
    return str(getattr(classifier, "name", type(classifier).__name__))


def checked_logits(classifier: nn.Module, images: Tensor, ids: Sequence[str] = (), *, fewest: int = 2) -> Tensor:
    """Return the classifier's logits `[N, K]`, K >= `fewest`.

    Raises ClassifierError if the network does not take such images (their channels, size or number), or what it returns
    is no such tensor or not finite; with the `ids` of the images the sentence names the one.
    """
    name = name_of(classifier)
    with foreign_code(name, images):
        logits: Tensor = classifier(images)
    if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != len(images) or logits.shape[1] < fewest:
        found = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise ClassifierError(
            f"Classifier '{name}' returns {found} for {len(images)} images where logits [N, K] of K >= {fewest} are "
            "expected: give the network that ends in its linear layer."
        )
    if not torch.isfinite(logits).all():
        raise ClassifierError(
            f"Classifier '{name}' returns NaN or infinite logits{where_not_finite(logits, images, ids)}"
        )
    return logits


def where_not_finite(values: Tensor, images: Tensor, ids: Sequence[str]) -> str:
    """Return on which of `images` `[N, C, H, W]` the rows of `values` `[N, ...]` are not finite, and what to look at.

    Weights and normalisation are to blame only where every image fails. Without `ids` no image is named.
    """
    bad = (~torch.isfinite(values)).flatten(1).any(dim=1).nonzero().flatten().tolist()
    if not ids or not bad:
        return ": check its weights and mean/std."
    more = f" and {len(bad) - 1} more of {len(values)}" if len(bad) > 1 else ""
    where = f" on image '{ids[bad[0]]}'{more}"
    if len(bad) == len(values) > 1:
        return f"{where}: check its weights and mean/std."
    pixels = images[bad[0]]
    if bool((pixels == pixels.flatten()[0]).all()):
        return (
            f"{where}, whose pixels are all {float(pixels.flatten()[0]):.3g}: a network that divides by an image's own "
            "deviation fails there, so add a small number to its divisor or leave the image out."
        )
    return f"{where}: look at the image, and check the network for a division, a logarithm or an overflow."


def check_labels(labels: Tensor, n: int, num_classes: int) -> None:
    """Raise MetricError unless `labels` are `n` integers in [0, num_classes)."""
    if labels.shape != (n,):
        raise MetricError(f"Labels have shape {tuple(labels.shape)} where one per image, ({n},), is expected.")
    if n and (int(labels.min()) < 0 or int(labels.max()) >= num_classes):
        raise MetricError(
            f"Labels run from {int(labels.min())} to {int(labels.max())} but the classifier has {num_classes} classes, "
            f"0 to {num_classes - 1}: check the order of data.classes."
        )


def float_images(images: Tensor, what: str) -> Tensor:
    """Return `images` detached and in float32, checked to be `[N, C, H, W]` in [0, 1]; raises MetricError.

    In 16 bits the spacing of numbers near 1 is 1/256 (bfloat16), the size of many an eps: no ball could be kept.
    """
    check_images(images, what)
    return images.detach().float()


def check_eps(eps: float, norm: Norm, image_shape: Sequence[int]) -> None:
    """Raise MetricError unless `eps` is in (0, 1] for L-inf, or in (0, sqrt(C * H * W)] for L2: the cube's diagonal."""
    largest = 1.0 if norm == "Linf" else math.sqrt(math.prod(image_shape))
    if not 0 < eps <= largest:
        raise MetricError(
            f"eps is {eps:.6g} where an {norm} radius in pixel units in (0, {largest:.4g}] is expected, for instance "
            + ("8/255." if norm == "Linf" else "0.5.")
        )
