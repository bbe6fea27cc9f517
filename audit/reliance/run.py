"""Show every model the same images, as they are and after each intervention, and note how its decisions react.

Every changed image is made once for all models. What is kept of the passes are the probabilities of one intervention at
a time, so that memory is bounded by the batch and not by the number of interventions.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from audit.classifiers.mode import preserve_mode
from audit.classifiers.slices import sparing
from audit.data.audit_set import AuditSet
from audit.embeddings.embedding import check_images
from audit.reliance.interventions import INTERVENTIONS
from audit.reliance.reactions import reaction
from audit.reliance.spec import Intervention, intervene
from audit.results import Intervention as InterventionRow
from audit.robustness.attacks.checks import checked_logits
from audit.runtime.progress import Advance, stage_progress
from audit.runtime.seeds import stage_generator


@dataclass(frozen=True)
class Shown:
    """The images that are changed, and how they are given to the models."""

    dataset: AuditSet
    batch_size: int
    device: torch.device
    seed: int


@dataclass
class Panel:
    """The models that are asked, by position; one that fails is in `failed` and is asked no more."""

    classifiers: Sequence[nn.Module]
    failed: dict[int, Exception] = field(default_factory=dict)

    @property
    def standing(self) -> list[int]:
        return [i for i in range(len(self.classifiers)) if i not in self.failed]

    def answers(self, images: Tensor, ids: Sequence[str]) -> dict[int, Tensor]:
        """Return the probabilities `[N, K]` that every model gives to images, on the CPU; errors name them by `ids`."""
        found = {}
        for i in self.standing:
            classifier = self.classifiers[i]
            try:
                with preserve_mode(classifier), torch.no_grad():
                    logits = sparing(classifier, partial(checked_logits, classifier, images, ids))
            except Exception as error:  # noqa: BLE001 - a network may raise anything
                self.failed[i] = error
            else:
                found[i] = logits.softmax(dim=1).cpu()
        return found


EXAMPLES = 3
"""Interventions, those that hit a model most, of which an image is shown."""
UNCHANGED = Intervention("token", {"": lambda images, strength: images}, (0.0,), "")


@dataclass(frozen=True)
class Changed:
    """An image that an intervention changes the decision on, before and after, `[C, H, W]` in [0, 1]."""

    id: str
    before: str
    after: str
    image: Tensor
    changed: Tensor


@dataclass(frozen=True)
class Reacted:
    """What every intervention does to one model's decisions, those that hit most first, and images of the first few."""

    rows: list[InterventionRow]
    examples: dict[str, Changed]


def reactions(
    classifiers: Sequence[nn.Module], shown: Shown, interventions: Mapping[str, Intervention]
) -> list[Reacted | Exception]:
    """Return what every intervention does to each classifier's decisions.

    A classifier that fails is an error in its place; the others are measured all the same.
    """
    panel = Panel(classifiers)
    rows: list[list[InterventionRow]] = [[] for _ in classifiers]
    most: dict[tuple[int, str], _Flip] = {}
    passes = 1 + sum(len(one.variants) * len(one.strengths) for one in interventions.values())
    with stage_progress("reliance", len(shown.dataset) * passes) as advance:
        before = {i: found[0, 0] for i, found in _passes(panel, shown, UNCHANGED, advance).items()}
        for name, intervention in interventions.items():
            for i, after in _passes(panel, shown, intervention, advance).items():
                row = _row(name, intervention, before[i], after, shown)
                rows[i].append(row)
                place = list(intervention.variants).index(row.worst.variant)
                answers = after[place, intervention.strengths.index(row.worst.strength)]
                most[i, name] = _largest_flip(before[i], answers)
    ranked = [sorted(found, key=lambda row: row.worst.hit_order, reverse=True) for found in rows]
    return [
        panel.failed[i] if i in panel.failed else Reacted(found, _examples(found, i, most, shown, interventions))
        for i, found in enumerate(ranked)
    ]


def _row(name: str, intervention: Intervention, before: Tensor, after: Tensor, shown: Shown) -> InterventionRow:
    rng = stage_generator(shown.seed, f"reliance/{name}")
    names = shown.dataset.class_names
    found = [
        reaction(strength, before, dict(zip(intervention.variants, column, strict=True)), names, rng)
        for strength, column in zip(intervention.strengths, after.unbind(1), strict=True)
    ]
    origin = INTERVENTIONS.origin(name)
    return InterventionRow(name=name, kind=intervention.kind, unit=intervention.unit, source=origin, reactions=found)


class _Flip(NamedTuple):
    """The image, by its position, whose decision changes with the largest fall of its class, and both decisions."""

    position: int
    before: int
    after: int


def _largest_flip(before: Tensor, after: Tensor) -> _Flip:
    """Return the flip in probabilities `[N, K]`; where no decision changes, both decisions are the same."""
    decided, now = before.argmax(dim=1), after.argmax(dim=1)
    fall = (before - after).gather(1, decided[:, None])[:, 0]
    position = int(torch.where(now != decided, fall, -1).argmax())
    return _Flip(position, int(decided[position]), int(now[position]))


def _examples(
    rows: Sequence[InterventionRow],
    model: int,
    most: Mapping[tuple[int, str], _Flip],
    shown: Shown,
    interventions: Mapping[str, Intervention],
) -> dict[str, Changed]:
    found = {}
    for row in rows[:EXAMPLES]:
        flip = most[model, row.name]
        if flip.before != flip.after:
            one = shown.dataset.select([flip.position])
            image = one.images()
            changed = intervene(image, interventions[row.name].variants[row.worst.variant], row.worst.strength)
            names = one.class_names[flip.before], one.class_names[flip.after]
            found[row.name] = Changed(one.row_ids[0], *names, image[0], changed[0])
    return found


def _passes(panel: Panel, shown: Shown, intervention: Intervention, advance: Advance) -> dict[int, Tensor]:
    """Return the probabilities `[variants, strengths, N, K]` of every model that has not failed."""
    cells = [(change, strength) for change in intervention.variants.values() for strength in intervention.strengths]
    found: dict[int, list[list[Tensor]]] = {i: [[] for _ in cells] for i in panel.standing}
    for images, _, indices in shown.dataset.batches(shown.batch_size):
        images = images.to(shown.device)
        check_images(images, f"images of {shown.dataset.source}")
        ids = shown.dataset.select(indices).row_ids
        for place, (change, strength) in enumerate(cells):
            for i, answers in panel.answers(intervene(images, change, strength), ids).items():
                found[i][place].append(answers)
            advance(len(images))
    shape = len(intervention.variants), len(intervention.strengths)
    whole = {i: [torch.cat(parts) for parts in found[i]] for i in panel.standing}
    return {i: torch.stack(parts).unflatten(0, shape) for i, parts in whole.items()}
