"""RayS: the nearest adversarial image in L-inf by decisions alone (Chen and Gu 2020, arXiv 2006.12792, algorithms 1-3).

An image is moved along a direction of signs, and how far it must go to be misclassified is found by bisection. Signs of
ever smaller blocks of pixels are flipped one after the other, and a flip stays if the way is shorter with it. It sees
neither gradients nor logits, so that nothing that a model does to these can mislead it.
"""

from collections.abc import Iterator
from itertools import pairwise

import torch
from torch import Tensor, nn

from audit.robustness.attacks.ball import Norm
from audit.robustness.attacks.target import Target

TOLERANCE = 1e-3
"""Bisection ends at this distance, a quarter of a grey level of 8 bits."""


def rays_attack(
    classifier: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    eps: float,
    norm: Norm = "Linf",
    generator: torch.Generator | None = None,
    queries: int = 1000,
) -> Tensor:
    """Return the nearest misclassified images found within `eps`, and the originals where there are none.

    At most `queries` decisions are asked for each image. Nothing is drawn: `generator` is not used.
    """
    del generator
    target = Target("the attack 'rays'", classifier, images, labels, norm)
    target.check_eps(eps)
    with target.attacked() as logits, torch.no_grad():
        result = target.images.clone()
        rows = (logits.argmax(dim=1) == target.labels).nonzero().flatten()
        if len(rows):
            radius, signs = _search(target, rows, eps, queries)
            moved = _moved(target.images[rows], signs, radius.clamp_max(eps))
            found = radius <= eps
            result[rows[found]] = moved[found]
    return target.within(result, eps)


def _moved(images: Tensor, signs: Tensor, radius: Tensor) -> Tensor:
    return (images.flatten(1) + radius[:, None] * signs).clamp(0, 1).view_as(images)


def _search(target: Target, rows: Tensor, eps: float, queries: int) -> tuple[Tensor, Tensor]:
    """Return how far the images `rows` `[n]` must go (inf: no way found within `eps`), and the directions `[n, d]`."""
    images, labels = target.images[rows], target.labels[rows]
    signs = torch.ones_like(images).flatten(1)
    radius = torch.full((len(rows),), torch.inf, device=images.device)
    left = torch.full_like(rows, queries)

    def wrong(which: Tensor, directions: Tensor, far: Tensor) -> Tensor:
        left[which] -= 1
        return target.logits(_moved(images[which], directions, far)).argmax(dim=1) != labels[which]

    def shorten(which: Tensor, directions: Tensor) -> None:
        """Take the `directions` in which the images `which` need less far to go, and find how far."""
        high = radius[which].clamp_max(eps)
        ahead = wrong(which, directions, high)
        which, directions, high = which[ahead], directions[ahead], high[ahead]
        low = torch.zeros_like(high)
        signs[which], radius[which] = directions, high
        while True:
            open_ = ((high - low) > TOLERANCE) & (left[which] > 0)
            if not bool(open_.any()):
                return
            middle = (low[open_] + high[open_]) / 2
            found = wrong(which[open_], directions[open_], middle)
            low[open_] = torch.where(found, low[open_], middle)
            high[open_] = torch.where(found, middle, high[open_])
            radius[which] = high

    everyone = torch.arange(len(rows), device=images.device)
    shorten(everyone, signs)
    for block in _blocks(signs.shape[1]):
        which = everyone[left > 0]
        if not len(which):
            break
        turned = signs[which].clone()
        turned[:, block] *= -1
        shorten(which, turned)
    return radius, signs


def _blocks(size: int) -> Iterator[slice]:
    """Yield blocks of `size` numbers: all, halves, quarters, down to single ones, which come again and again."""
    count = 1
    while True:
        edges = torch.linspace(0, size, count + 1).round().long().tolist()
        yield from (slice(start, end) for start, end in pairwise(edges) if end > start)
        count = min(2 * count, size)
