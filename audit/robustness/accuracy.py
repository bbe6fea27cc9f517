"""Accuracy, recall and calibration on unmodified images.

Expected calibration error: Guo et al. 2017, eq. 3, with 15 equal-width bins.
"""

from collections.abc import Sequence
from functools import partial
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from audit.classifiers.mode import preserve_mode
from audit.classifiers.slices import sparing
from audit.data.audit_set import AuditSet
from audit.embeddings.embedding import check_images
from audit.errors import MetricError
from audit.metrics.intervals import wilson_interval
from audit.metrics.labels import ECE_BINS
from audit.results import Clean, ConfidenceBin, Interval
from audit.robustness.attacks.checks import check_labels, checked_logits, name_of
from audit.runtime.progress import Advance, stage_progress


def expected_calibration_error(probabilities: Tensor, labels: Tensor, bins: int = ECE_BINS) -> float:
    """Return the mean gap between confidence and accuracy, in [0, 1], of `probabilities` `[N, K]` for `labels` `[N]`.

    Bins are of equal width, closed on the right, weighted by the images in them.
    """
    confidence, correct, chosen = _binned(probabilities, labels, bins)
    gap = torch.zeros(bins, dtype=torch.float64, device=confidence.device)
    gap.index_add_(0, chosen, confidence - correct.double())
    return float(gap.abs().sum() / len(labels))


def confidence_bins(probabilities: Tensor, labels: Tensor, bins: int = ECE_BINS) -> list[ConfidenceBin]:
    """Return accuracy and mean confidence in every bin of `expected_calibration_error` that holds an image."""
    confidence, correct, chosen = _binned(probabilities, labels, bins)
    found = []
    for index in chosen.unique().tolist():
        inside = chosen == index
        found.append(
            ConfidenceBin(
                low=index / bins,
                high=(index + 1) / bins,
                confidence=float(confidence[inside].mean()),
                accuracy=wilson_interval(int(correct[inside].sum()), int(inside.sum())),
            )
        )
    return found


def _binned(probabilities: Tensor, labels: Tensor, bins: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return for every image the confidence, whether the answer is right, and the bin of the confidence."""
    confidence, predicted = probabilities.double().max(dim=1)
    edges = torch.linspace(0, 1, bins + 1, dtype=torch.float64, device=confidence.device)
    return confidence, predicted == labels, torch.bucketize(confidence, edges[1:-1])


def predict(classifier: nn.Module, dataset: AuditSet, batch_size: int, device: torch.device | str = "cpu") -> Tensor:
    """Return the logits `[N, K]` (on the CPU) of `classifier` for all images of `dataset`, behind a progress bar.

    Of a multi-label set they are `[N, L]`, one for each label.
    """
    with stage_progress(f"predictions {name_of(classifier)}", len(dataset)) as advance:
        return _logits(classifier, dataset, batch_size, device, advance)


def _logits(
    classifier: nn.Module, dataset: AuditSet, batch_size: int, device: torch.device | str, advance: Advance | None
) -> Tensor:
    parts = []
    ask = partial(checked_logits, fewest=1 if dataset.is_multi_label else 2)
    with preserve_mode(classifier), torch.no_grad():
        for images, labels, rows in dataset.batches(batch_size):
            check_images(images, f"images of {dataset.source}")
            ids = dataset.select(rows).row_ids
            logits = sparing(classifier, partial(ask, classifier, images.to(device), ids)).cpu()
            if not dataset.is_multi_label:
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


def class_scores(answers: Tensor, labels: Tensor, class_names: Sequence[str]) -> dict[str, Any]:
    """Return confusion matrix, precision and F1 of each class and their mean for `answers` and `labels`, int64 `[N]`.

    The keys are those of the results; all is missing where an answer is none of the classes. A class that is never
    answered has no precision, and one that has no image either no F1.
    """
    k = len(class_names)
    if len(answers) == 0 or int(answers.max()) >= k:
        return {}
    return scores_of_counts(torch.bincount(labels * k + answers, minlength=k * k).reshape(k, k), class_names)


def scores_of_counts(counts: Tensor, class_names: Sequence[str]) -> dict[str, Any]:
    """Return the same as `class_scores` of a confusion matrix, int64 `[K, K]`: true classes are rows."""
    hits, given, there = counts.diag().tolist(), counts.sum(0).tolist(), counts.sum(1).tolist()
    f1 = [2 * h / (g + t) if g + t else None for h, g, t in zip(hits, given, there, strict=True)]
    known = [value for value in f1 if value is not None]
    return {
        "confusion": counts.tolist(),
        "precision": {name: h / g if g else None for name, h, g in zip(class_names, hits, given, strict=True)},
        "f1": dict(zip(class_names, f1, strict=True)),
        "macro_f1": sum(known) / len(known),
    }


def standing_recall(standing: Tensor, rows: AuditSet) -> dict[str, Interval]:
    """Return the share of each class's images among `rows` that is `standing`, bool `[n]`."""
    of_class = {name: rows.row_labels == c for c, name in enumerate(rows.class_names)}
    return {name: wilson_interval(int(standing[its].sum()), int(its.sum())) for name, its in of_class.items()}


def clean_of_logits(logits: Tensor, labels: Tensor, class_names: Sequence[str]) -> Clean:
    """Accuracy, calibration, and what is answered to each class: of `logits` `[N, K]` for `labels` `[N]`."""
    predicted = logits.argmax(dim=1)
    correct = predicted == labels
    recall = {
        name: float(correct[labels == c].float().mean()) if bool((labels == c).any()) else None
        for c, name in enumerate(class_names)
    }
    probabilities = logits.softmax(dim=1)
    return Clean(
        accuracy=wilson_interval(int(correct.sum()), len(labels)),
        recall=recall,
        ece=expected_calibration_error(probabilities, labels),
        n=len(labels),
        confidence_bins=confidence_bins(probabilities, labels),
        **(class_scores(predicted, labels, class_names) if logits.shape[1] == len(class_names) else {}),
    )


def clean_metrics(classifier: nn.Module, dataset: AuditSet, batch_size: int = 128) -> Clean:
    """Measure accuracy, recall per class and calibration on all images of `dataset`; raises MetricError if empty.

    Shows no bar, because it is called again and again inside a training, which shows its own.
    """
    logits = _logits(classifier, dataset, batch_size, device_of(classifier), None)
    return clean_of_logits(logits, dataset.row_labels, dataset.class_names)
