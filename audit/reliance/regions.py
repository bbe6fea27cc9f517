"""Necessity and sufficiency of a region: what becomes of the decisions without it, and without everything else.

A model that stays right without the region does not decide by it. Pixels are taken away in three ways, because each
leaves traces of its own (Hooker et al. 2019, "A benchmark for interpretability methods"): they are blurred, filled in
from what lies around (pull-push, Gortler et al. 1996, section 3.4), or exchanged with those of an image of another
class.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, interpolate, pad

from audit.data.audit_set import AuditSet
from audit.embeddings.embedding import check_images
from audit.metrics.intervals import bootstrap_mean, wilson_interval
from audit.reliance.run import Shown, probabilities
from audit.results import Interval, Treated
from audit.robustness.corruptions.filters import gaussian_blur
from audit.robustness.panel import Panel
from audit.runtime.progress import stage_progress
from audit.runtime.seeds import stage_generator

BLUR = 0.1
"""Standard deviation of the blur, as a share of the shorter side."""


def inpaint(images: Tensor, holes: Tensor) -> Tensor:
    """Fill `holes` `[N, H, W]` of `images` `[N, C, H, W]` smoothly from the pixels around; an image of holes stays."""
    known = (~holes)[:, None].to(images)
    filled = _filled(images * known, known)
    return torch.where(holes[:, None] & known.amax(dim=(2, 3), keepdim=True).bool(), filled, images)


def _filled(values: Tensor, weights: Tensor) -> Tensor:
    """Return `values` (zero where unknown) completed by coarser and coarser means of what is known."""
    height, width = values.shape[-2:]
    if max(height, width) == 1:
        return values
    both = pad(torch.cat([values, weights], dim=1), (0, width % 2, 0, height % 2))
    coarse = 4 * avg_pool2d(both, 2)
    # A coarse pixel counts in full as soon as one of its four is known.
    scale = coarse[:, -1:].clamp_min(1)
    lower = _filled(coarse[:, :-1] / scale, coarse[:, -1:] / scale)
    upper = interpolate(lower, scale_factor=2, mode="bilinear")[..., :height, :width]
    return values + (1 - weights) * upper


def _blurred(images: Tensor, where: Tensor, others: Tensor) -> Tensor:
    blurred = gaussian_blur(images, BLUR * min(images.shape[-2:]))
    return torch.where(where[:, None], blurred, images)


def _inpainted(images: Tensor, where: Tensor, others: Tensor) -> Tensor:
    return inpaint(images, where)


def _exchanged(images: Tensor, where: Tensor, others: Tensor) -> Tensor:
    return torch.where(where[:, None], others, images)


TREATMENTS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "blurred": _blurred,
    "in-painted": _inpainted,
    "exchanged": _exchanged,
}
"""Ways to take the pixels `where` `[N, H, W]` away from images; `others` are images of another class."""
PARTS = ("region", "rest")


def treated(panel: Panel, shown: Shown, region: str) -> dict[str, list[Treated]]:
    """Return by name what becomes of each model's answers when `region`, or all but it, is taken away.

    Images whose region is empty or all of them are left out; where none is left the lists are empty.
    """
    masks = shown.dataset.region(region)
    usable = (masks.flatten(1).any(1) & ~masks.flatten(1).all(1)).nonzero()[:, 0]
    dataset = shown.dataset.select(usable)
    if len(dataset) == 0:
        return {model: [] for model in panel.standing}
    donors = _donors(dataset, shown)
    cells = [(part, name) for part in PARTS for name in TREATMENTS]
    found: dict[str, list[list[Tensor]]] = {model: [[] for _ in range(len(cells) + 1)] for model in panel.standing}
    with stage_progress(f"reliance on {region}", len(dataset)) as advance:
        for images, _, rows in dataset.batches(shown.batch_size):
            images = images.to(shown.device)
            check_images(images, f"images of {dataset.source}")
            where, others = masks[usable[rows]].to(shown.device), donors.images(rows).to(shown.device)

            def change(
                cell: tuple[str, str] | None, images: Tensor = images, where: Tensor = where, others: Tensor = others
            ) -> Tensor:
                if cell is None:
                    return images.clamp(0, 1)
                part, name = cell
                return TREATMENTS[name](images, where if part == "region" else ~where, others).clamp(0, 1)

            for place, cell in enumerate((None, *cells)):
                made = {} if cell is None else {"cell": cell, "where": where, "others": others}
                answers = probabilities(panel, partial(change, cell), dataset.select(rows), made)
                for model, given in answers.items():
                    found[model][place].append(given)
            advance(len(images))
    told: dict[str, list[Treated]] = {}
    for model in panel.standing:
        before, *after = (torch.cat(parts) for parts in found[model])
        rng = stage_generator(shown.seed, f"reliance/{region}")
        told[model] = [
            _told(region, cell, before, answers, dataset.row_labels, donors.row_labels, rng=rng)
            for cell, answers in zip(cells, after, strict=True)
        ]
    return told


def _donors(dataset: AuditSet, shown: Shown) -> AuditSet:
    """Return for every image another one, of another class where there is one, drawn by the seed."""
    labels, rng = dataset.row_labels, stage_generator(shown.seed, "reliance/donors")
    other = labels[:, None] != shown.dataset.row_labels[None]
    other[~other.any(1)] = True
    return shown.dataset.select(torch.multinomial(other.double(), 1, generator=rng)[:, 0])


def _told(
    region: str,
    cell: tuple[str, str],
    before: Tensor,
    after: Tensor,
    labels: Tensor,
    others: Tensor,
    *,
    rng: torch.Generator,
) -> Treated:
    part, treatment = cell
    was, now = before.argmax(1), after.argmax(1)
    right, n = was == labels, len(labels)
    fall = (before - after).gather(1, labels[:, None])[:, 0]
    return Treated(
        region=region,
        part="region" if part == "region" else "rest",
        treatment=treatment,
        n=n,
        accuracy=wilson_interval(int((now == labels).sum()), n),
        clean_accuracy=wilson_interval(int(right.sum()), n),
        stay_right=wilson_interval(int((now == labels)[right].sum()), int(right.sum())),
        fall=bootstrap_mean(fall.double(), rng),
        follow=wilson_interval(int((now == others).sum()), n) if treatment == "exchanged" else Interval(value=None),
    )
