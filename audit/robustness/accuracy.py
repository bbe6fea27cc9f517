"""Accuracy, recall and calibration on unmodified images.

Expected calibration error: Guo et al. 2017, eq. 3, with 15 equal-width bins.
"""

from collections.abc import Sequence
from functools import partial
from itertools import chain

import torch
from torch import Tensor, nn

from audit.classifiers.mode import preserve_mode
from audit.classifiers.slices import sparing
from audit.data.audit_set import AuditSet
from audit.embeddings.embedding import check_images
from audit.errors import MetricError
from audit.metrics.intervals import wilson_interval
from audit.results import Clean
from audit.robustness.attacks.checks import check_labels, checked_logits, name_of
from audit.runtime.progress import Advance, stage_progress

ECE_BINS = 15


def expected_calibration_error(probabilities: Tensor, labels: Tensor, bins: int = ECE_BINS) -> float:
    """Return the mean gap between confidence and accuracy, in [0, 1], of `probabilities` `[N, K]` for `labels` `[N]`.

    Bins are of equal width, closed on the right, weighted by the images in them.
    """
    confidence, predicted = probabilities.double().max(dim=1)
    edges = torch.linspace(0, 1, bins + 1, dtype=torch.float64, device=confidence.device)
    chosen = torch.bucketize(confidence, edges[1:-1])
    gap = torch.zeros(bins, dtype=torch.float64, device=confidence.device)
    gap.index_add_(0, chosen, confidence - (predicted == labels).double())
    return float(gap.abs().sum() / len(labels))


def predict(classifier: nn.Module, dataset: AuditSet, batch_size: int, device: torch.device | str = "cpu") -> Tensor:
    """Return the logits `[N, K]` (on the CPU) of `classifier` for all images of `dataset`, behind a progress bar."""
    with stage_progress(f"predictions {name_of(classifier)}", len(dataset)) as advance:
        return _logits(classifier, dataset, batch_size, device, advance)


def _logits(
    classifier: nn.Module, dataset: AuditSet, batch_size: int, device: torch.device | str, advance: Advance | None
) -> Tensor:
    parts = []
    with preserve_mode(classifier), torch.no_grad():
        for images, labels, rows in dataset.batches(batch_size):
            check_images(images, f"images of {dataset.source}")
            ids = dataset.select(rows).row_ids
            logits = sparing(classifier, partial(checked_logits, classifier, images.to(device), ids)).cpu()
            check_labels(labels, len(images), logits.shape[1])
            parts.append(logits)
            if advance is not None:
                advance(len(images))
    if not parts:
        raise MetricError(f"There is no image of {dataset.source} to classify: check data.audit_split.")
    return torch.cat(parts)


def device_of(classifier: nn.Module) -> torch.device:
    """Return the device of the first parameter or buffer, the CPU where there is none."""
    first = next(chain(classifier.parameters(), classifier.buffers()), None)
    return torch.device("cpu") if first is None else first.device


def _confusion(labels: Tensor, predicted: Tensor, k: int) -> list[list[int]]:
    """Count the images by true class (rows) and answer (columns)."""
    counts: list[list[int]] = torch.bincount(labels * k + predicted, minlength=k * k).reshape(k, k).tolist()
    return counts


def clean_of_logits(logits: Tensor, labels: Tensor, class_names: Sequence[str]) -> Clean:
    """Accuracy, recall per class, calibration and confusions of `logits` `[N, K]` for `labels` `[N]`."""
    predicted, k = logits.argmax(dim=1), len(class_names)
    correct = predicted == labels
    recall = {
        name: float(correct[labels == c].float().mean()) if bool((labels == c).any()) else None
        for c, name in enumerate(class_names)
    }
    return Clean(
        accuracy=wilson_interval(int(correct.sum()), len(labels)),
        recall=recall,
        ece=expected_calibration_error(logits.softmax(dim=1), labels),
        n=len(labels),
        confusion=_confusion(labels, predicted, k) if logits.shape[1] == k else None,
    )


def clean_metrics(classifier: nn.Module, dataset: AuditSet, batch_size: int = 128) -> Clean:
    """Measure accuracy, recall per class and calibration on all images of `dataset`; raises MetricError if empty.

    Shows no bar, because it is called again and again inside a training, which shows its own.
    """
    logits = _logits(classifier, dataset, batch_size, device_of(classifier), None)
    return clean_of_logits(logits, dataset.row_labels, dataset.class_names)
