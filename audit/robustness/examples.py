"""A few attacked images to look at: what was added, and what the classifier then answers.

They are the first images of the attacked order that the classifier decides rightly and the attack fools, whatever they
look like: nobody chose them. Where minimal distances are measured, the most fragile images come after them: those that
the smallest perturbation fools.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from audit.classifiers.mode import preserve_mode
from audit.data.audit_set import AuditSet
from audit.robustness.attacks.checks import checked_logits

EXAMPLES = 4
"""Attacked images that are kept of every model."""


@dataclass(frozen=True)
class Fooled:
    """One image `[C, H, W]` before and after the attack named `metric`, on the CPU.

    `row` is its place in the attacked order; `label` and `predicted` are class names; `distance` is the size of the
    perturbation of an image that was chosen for it.
    """

    row: int
    image: Tensor
    adversarial: Tensor
    metric: str
    id: str = ""
    label: str = ""
    predicted: str = ""
    distance: float | None = None


def first_fooled(images: Tensor, adversarial: Tensor, fooled: Tensor, rows: Tensor, metric: str) -> list[Fooled]:
    """Return the first images of a batch `[N, C, H, W]` that are `fooled` `[N]` and that the attack has changed.

    An image that comes back as it was is one that the classifier misclassifies anyway. `rows` `[N]` are the places of
    the images in the attacked order.
    """
    changed = (adversarial != images).flatten(1).any(dim=1)
    return [
        Fooled(int(rows[i]), images[i].detach().cpu(), adversarial[i].detach().cpu(), metric)
        for i in (fooled & changed).nonzero().flatten().tolist()[:EXAMPLES]
    ]


def most_fragile(found: Sequence[Fooled]) -> list[Fooled]:
    """Return the few that the smallest perturbations fool, the most fragile first; equal ones in the attacked order."""
    return sorted(found, key=lambda one: (one.distance or 0.0, one.row))[:EXAMPLES]


def still_fooled(
    classifier: nn.Module, found: Sequence[Fooled], chosen: AuditSet, device: torch.device | str
) -> list[Fooled]:
    """Return `found`, rows of `chosen`, with id, label and answer; without those that are answered rightly after all.

    The answer is asked anew on these images alone, where sums may round otherwise than in the attacked batch.
    """
    if not found:
        return []
    with preserve_mode(classifier), torch.no_grad():
        logits = checked_logits(classifier, torch.stack([one.adversarial for one in found]).to(device))
    named = [
        replace(
            one,
            id=chosen.row_ids[one.row],
            label=chosen.class_names[int(chosen.row_labels[one.row])],
            predicted=chosen.class_names[answer],
        )
        for one, answer in zip(found, logits.argmax(dim=1).tolist(), strict=True)
    ]
    return [one for one in named if one.predicted != one.label]
