"""A short look before anything long: would a network do better if it were given its images in another usual way?

Every reading meets the same few labelled images. One is called better where it is right more often than the assumed one
by at least `LEAST_GAIN` and by more than chance: McNemar's exact test on the same images, Bonferroni-corrected for all
readings tried. The mean recall of the classes has to rise as much, for a network that answers the commonest class only
is right often. Nothing is ever switched: what a better reading means, only the owner of the network can know.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from audit.classifiers.bridge import bridge_channels
from audit.classifiers.classifier import Classifier
from audit.classifiers.mode import preserve_mode
from audit.classifiers.probe import first_line
from audit.classifiers.slices import sparing
from audit.data.audit_set import AuditSet
from audit.errors import Terminated
from audit.metrics.exact import mcnemar_p
from audit.metrics.intervals import wilson_interval
from audit.results import Interval, Reading
from audit.robustness.sanity.readings import (
    REFUSED,
    Candidates,
    Normalisation,
    View,
    beyond_settings,
    candidates,
    settings_of,
)
from audit.runtime.progress import stage_progress
from audit.runtime.seeds import lent_randomness, stage_generator

MOST_IMAGES = 200
FIRST_IMAGES = 64
"""So many images tell which readings may turn out best; only those meet the rest."""
FAR_BEHIND = 0.15
"""A reading so far behind the best on the first images, as a share of them, is not tried on the rest."""
BATCH = 32
"""Images given to a network at once: few, for a larger batch would save little on so few images."""
LEAST_GAIN = 0.05
"""A smaller gain in accuracy would not tell a wrong input from a fortunate one."""
ALPHA = 0.05
ASSUMED = "as audited"

Answers = Tensor | str
"""Predicted outputs, int64 `[N]`, or why there are none."""


@dataclass(frozen=True)
class Tried:
    """One reading; `right` is bool `[n]`, its answers on the first n images, None where there are none."""

    name: str
    view: View
    order: tuple[int, ...]
    right: Tensor | None
    why_not: str | None = None


def sample_of(audited: AuditSet, seed: int) -> AuditSet:
    """Return up to MOST_IMAGES images of `audited` in an order drawn by `seed`: any first part is a sample, too."""
    order = torch.randperm(len(audited), generator=stage_generator(seed, "sanity/images"))
    return audited.select(order[:MOST_IMAGES])


def own_normalisation(images: AuditSet, channels: int) -> Normalisation | None:
    """Return mean and standard deviation of the pixels of `images`, by channel; None where a channel is constant."""
    count, total, square = 0, torch.zeros(channels, dtype=torch.float64), torch.zeros(channels, dtype=torch.float64)
    for batch, _, _ in images.batches(BATCH):
        pixels = bridge_channels(batch, channels).double()
        count += pixels[:, 0].numel()
        total += pixels.sum(dim=(0, 2, 3))
        square += pixels.square().sum(dim=(0, 2, 3))
    mean = total / count
    std = (square / count - mean.square()).clamp(min=0).sqrt()
    found = tuple(round(float(v), 4) for v in mean), tuple(round(float(v), 4) for v in std)
    return found if min(found[1]) > 0 else None


def _answers(classifier: Classifier, view: View, images: Tensor) -> Answers:
    """Return which output is the largest for each of `images`; a network may refuse a view, by any exception."""

    def run() -> Tensor:
        pixels = view.of(classifier, images)
        # Past the classifier's own forward, which changes the layout of the weights where a batch fails.
        if classifier.slices is None:
            return classifier.outputs(pixels)
        return classifier.slices(classifier.outputs, pixels, False)

    try:
        logits = sparing(classifier, run)
    except Terminated:
        raise
    except SystemExit:
        return "the network ends the program"
    except Exception as error:  # noqa: BLE001 - foreign code may raise anything
        return f"{REFUSED} ({first_line(error)})"
    if logits.shape != (len(images), classifier.num_classes):
        return f"the network returns {list(logits.shape)} for {len(images)} images"
    if not torch.isfinite(logits).all():
        return "the network returns NaN or infinite logits"
    predicted: Tensor = logits.argmax(dim=1).cpu()
    return predicted


def _all_answers(
    classifier: Classifier, images: AuditSet, views: Sequence[View], device: torch.device
) -> list[Answers]:
    """Return the answers of `classifier` to `images` in every view; every image is read once, in batches."""
    parts: list[list[Tensor]] = [[] for _ in views]
    failed: dict[int, str] = {}
    with stage_progress(f"input of {classifier.name}", len(images)) as advance:
        for batch, _, _ in images.batches(BATCH):
            on_device = batch.to(device)
            for place, view in enumerate(views):
                if place in failed:
                    continue
                found = _answers(classifier, view, on_device)
                if isinstance(found, str):
                    failed[place] = found
                else:
                    parts[place].append(found)
            advance(len(batch))
    return [failed[place] if place in failed else torch.cat(part) for place, part in enumerate(parts)]


def _right(answers: Answers, order: tuple[int, ...], labels: Tensor) -> Tensor | None:
    return None if isinstance(answers, str) else torch.tensor(order)[answers] == labels[: len(answers)]


def _worth_more(answers: Sequence[Answers], listed: Candidates, labels: Tensor) -> list[int]:
    """Return the places of the views that may turn out best: ahead of the first, and not far behind the best of all."""

    def right(found: Answers) -> list[int]:
        if isinstance(found, str):
            return [-1]
        return [int((torch.tensor(order)[found] == labels).sum()) for _, order in listed.orders]

    counts = [right(found) for found in answers]
    ahead, near = counts[0][0], max(map(max, counts)) - FAR_BEHIND * len(labels)
    return [place for place, found in enumerate(counts) if place > 0 and max(found) > ahead and max(found) >= near]


def _answers_to_all(
    classifier: Classifier, images: AuditSet, listed: Candidates, device: torch.device
) -> tuple[list[tuple[str, View]], list[Answers]]:
    """Return the views with the answers to them, the assumed first.

    Every view meets the first images; only those that may turn out best, and the assumed one, meet the rest.
    """
    (base,) = _all_answers(classifier, images, [listed.free[0][1]], device)
    if isinstance(base, str):
        why = "the assumed reading gives no answers"
        return [*listed.free, *listed.dear], [base, *[why] * (len(listed.free) + len(listed.dear) - 1)]
    assumed = _right(base, listed.orders[0][1], images.row_labels)
    room = assumed is not None and float(assumed.double().mean()) <= 1 - LEAST_GAIN
    views = [*listed.free, *(listed.dear if room else ())]
    cut = min(FIRST_IMAGES, len(images))
    first, rest = images.select(range(cut)), images.select(range(cut, len(images)))
    answers = [base[:cut], *_all_answers(classifier, first, [view for _, view in views[1:]], device)]
    more = _worth_more(answers, listed, first.row_labels) if len(rest) else []
    later = _all_answers(classifier, rest, [views[place][1] for place in more], device) if more else []
    for place, found in zip(more, later, strict=True):
        early = answers[place]
        answers[place] = found if isinstance(found, str) or isinstance(early, str) else torch.cat([early, found])
    answers[0] = base
    if not room:
        views += listed.dear
        answers += ["it could not be better by enough to matter"] * len(listed.dear)
    return views, answers


def _try(classifier: Classifier, images: AuditSet, listed: Candidates, device: torch.device) -> list[Tried]:
    labels = images.row_labels
    # A network that draws at random must not move another stage's stream.
    with preserve_mode(classifier), torch.no_grad(), lent_randomness(device):
        views, answers = _answers_to_all(classifier, images, listed, device)
    return [
        Tried(
            ", ".join(part for part in (name, order_name) if part) or ASSUMED,
            view,
            order,
            _right(found, order, labels),
            found if isinstance(found, str) else None,
        )
        for (name, view), found in zip(views, answers, strict=True)
        for order_name, order in listed.orders
    ]


def read_otherwise(
    classifier: Classifier, images: AuditSet, architecture: str | None, device: torch.device
) -> list[Reading]:
    """Return the accuracy of `classifier` on `images` under the assumed and every other usual reading, assumed first.

    `architecture` is the timm name that the configuration gives. A reading that the network refuses is kept with the
    reason. Nothing of the network or of any random stream is changed.
    """
    own = own_normalisation(images, classifier.input_shape[0])
    listed = candidates(classifier, images.image_shape, architecture, own)
    return _judged(_try(classifier, images, listed, device), images.row_labels, classifier.class_names)


def _mean_recall(right: Tensor, labels: Tensor) -> float:
    """Mean share of right answers over the classes that there are."""
    own = labels[: len(right)]
    return float(torch.stack([right[own == k].double().mean() for k in own.unique()]).mean())


def _judged(tried: Sequence[Tried], labels: Tensor, names: Sequence[str]) -> list[Reading]:
    base = tried[0]
    compared = sum(one.right is not None for one in tried[1:])
    rows = []
    for one in tried:
        p, better = None, False
        if one is not base and one.right is not None and base.right is not None:
            same_images = base.right[: len(one.right)]
            p = min(1.0, compared * mcnemar_p(one.right, same_images))
            gain = float(one.right.double().mean() - same_images.double().mean())
            # A hair of slack: 0.85 - 0.80 is a little less than 0.05 in binary numbers.
            least = LEAST_GAIN - 1e-9
            recalled = _mean_recall(one.right, labels) - _mean_recall(same_images, labels)
            better = p <= ALPHA and gain >= least and recalled >= least
        rows.append(
            Reading(
                name=one.name,
                assumed=one is base,
                accuracy=Interval(value=None) if one.right is None else _share(one.right),
                p_value=p,
                better=better,
                settings=settings_of(one.view, one.order, base.view, base.order, names),
                beyond_settings=beyond_settings(one.view, base.view),
                not_tried=one.why_not,
            )
        )
    return rows


def _share(right: Tensor) -> Interval:
    return wilson_interval(int(right.sum()), len(right))
