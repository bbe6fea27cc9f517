"""Show every model the same images, as they are and after each intervention, and note how its decisions react.

Every changed image is made once for all models. What is kept of the passes are the probabilities of one intervention at
a time, so that memory is bounded by the batch and not by the number of interventions.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from audit.classifiers.mode import preserve_mode
from audit.classifiers.slices import sparing
from audit.data.audit_set import AuditSet
from audit.embeddings.embedding import check_images
from audit.reliance.interventions import INTERVENTIONS
from audit.reliance.reactions import reaction
from audit.reliance.spec import Change, Intervention, intervene
from audit.results import Intervention as InterventionRow
from audit.robustness.attacks.checks import checked_logits
from audit.robustness.panel import Panel
from audit.runtime.progress import Advance, stage_progress
from audit.runtime.seeds import stage_generator


@dataclass(frozen=True)
class Shown:
    """The images that are changed, and how they are given to the models."""

    dataset: AuditSet
    batch_size: int
    device: torch.device
    seed: int


CODE = ("audit.reliance",)
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


def probabilities(
    panel: Panel, show: Callable[[], Tensor], rows: AuditSet, made: Mapping[str, object] | None
) -> dict[str, Tensor]:
    """Return the probabilities `[N, K]` that every model gives to images that are made of `rows`, on the CPU.

    `made` says how; None: nothing stands for the code that makes them, and no answer is kept.
    """
    ids = rows.row_ids

    def answer(classifier: nn.Module, images: Tensor) -> Tensor:
        with preserve_mode(classifier), torch.no_grad():
            return sparing(classifier, partial(checked_logits, classifier, images, ids)).softmax(dim=1).cpu()

    asked = replace(panel, stages={}) if made is None else panel
    return asked.ask("reliance", show, answer, CODE, images=rows.content, made=made)


def reactions(panel: Panel, shown: Shown, interventions: Mapping[str, Intervention]) -> dict[str, Reacted]:
    """Return by name what every intervention does to the decisions of each model of `panel` that does not fail."""
    rows: dict[str, list[InterventionRow]] = {name: [] for name in panel.standing}
    most: dict[tuple[str, str], _Flip] = {}
    passes = 1 + sum(len(one.variants) * len(one.strengths) for one in interventions.values())
    with stage_progress("reliance", len(shown.dataset) * passes) as advance:
        before = {model: found[0, 0] for model, found in _passes(panel, shown, ("", UNCHANGED), advance).items()}
        for name, intervention in interventions.items():
            for model, after in _passes(panel, shown, (name, intervention), advance).items():
                row = _row(name, intervention, before[model], after, shown)
                rows[model].append(row)
                place = list(intervention.variants).index(row.worst.variant)
                answers = after[place, intervention.strengths.index(row.worst.strength)]
                most[model, name] = _largest_flip(before[model], answers)
    found = {}
    for model in panel.standing:
        ranked = sorted(rows[model], key=lambda row: row.worst.hit_order, reverse=True)
        found[model] = Reacted(ranked, _examples(ranked, model, most, shown, interventions))
    return found


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
    model: str,
    most: Mapping[tuple[str, str], _Flip],
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


def _passes(panel: Panel, shown: Shown, named: tuple[str, Intervention], advance: Advance) -> dict[str, Tensor]:
    """Return the probabilities `[variants, strengths, N, K]` of every model that has not failed."""
    name, intervention = named
    cells = [(variant, strength) for variant in intervention.variants for strength in intervention.strengths]
    ours = not name or INTERVENTIONS.origin(name) is None
    found: dict[str, list[list[Tensor]]] = {model: [[] for _ in cells] for model in panel.standing}
    for indices in shown.dataset.places(shown.batch_size):
        images = cache(partial(_read, shown, indices))  # not read where all answers are kept
        rows = shown.dataset.select(indices)
        for place, (variant, strength) in enumerate(cells):
            change = partial(_changed, images, intervention.variants[variant], strength)
            made = {"intervention": name, "variant": variant, "strength": strength} if ours else None
            for model, answers in probabilities(panel, change, rows, made).items():
                found[model][place].append(answers)
            advance(len(rows))
    shape = len(intervention.variants), len(intervention.strengths)
    whole = {model: [torch.cat(parts) for parts in found[model]] for model in panel.standing}
    return {model: torch.stack(parts).unflatten(0, shape) for model, parts in whole.items()}


def _read(shown: Shown, indices: Tensor) -> Tensor:
    images = shown.dataset.images(indices).to(shown.device)
    check_images(images, f"images of {shown.dataset.source}")
    return images


def _changed(images: Callable[[], Tensor], change: Change, strength: float) -> Tensor:
    return intervene(images(), change, strength)
