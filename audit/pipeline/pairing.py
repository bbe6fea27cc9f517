"""Which models are explained on the same images, and on which.

On the same images models are compared more sharply, since what makes an image hard or easy then cancels. But the images
that all models share are few where one of them allows few, and one weak model must not take them from the others. The
rule is greedy and depends on nothing but the answers: models are taken in the order of the images that can be explained
of them, and each joins the ones before it where every one of them, itself included, keeps at least half of the images
that it has alone. A model that does not join is explained on images of its own.

"Half" is the harmonic mean over the classes, each of which counts up to an equal share of what is asked for: nobody
loses by a model that allows fewer of many images, and a model that would all but empty a class does not join.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

LEAST = 2
"""Images that a model is explained on at least."""
KEPT = 0.5
"""Share of its images that every model has to keep when another one joins."""


@dataclass(frozen=True)
class Group:
    """Models that are explained on the same images, at `places` `[n]` in a list of images."""

    models: tuple[str, ...]
    places: Tensor


def pair_models(usable: Mapping[str, Tensor], labels: Tensor, n: int) -> list[tuple[str, ...]]:
    """Divide the models into those explained on common images, which come first, and each of the others by itself.

    `usable` says by model which images of the classes `labels` `[N]` it may be explained on, bool `[N]`; `n` are to be
    explained. Each of them has at least one. Within each part models keep their order.
    """
    if not usable:
        return []
    classes, size = labels.unique(), int(labels.max()) + 1
    total = torch.bincount(labels, minlength=size)[classes]

    def by_class(rows: Tensor) -> Tensor:
        return torch.bincount(labels[rows], minlength=size)[classes].double()

    def keeps(alone: Tensor, common: Tensor) -> bool:
        there = alone > 0
        share = math.ceil(n / int(there.sum()))
        kept = (common.clamp(max=share) / alone.clamp(max=share))[there]
        return 1 / float((1 / kept).mean()) >= KEPT

    alone = {name: by_class(rows) for name, rows in usable.items()}
    # What counts is what can be explained in equal shares, then all; of equals the first in the configuration.
    equal = math.ceil(n / len(classes))
    rank = {name: (-float(one.clamp(max=equal).sum()), -float((one / total).sum())) for name, one in alone.items()}
    first, *others = sorted(usable, key=lambda name: rank[name])
    common, together = usable[first], [first]
    for name in others:
        rest = common & usable[name]
        if int(rest.sum()) >= LEAST and all(keeps(alone[one], by_class(rest)) for one in (*together, name)):
            common = rest
            together.append(name)
    return [tuple(one for one in usable if one in together), *((one,) for one in usable if one not in together)]


def balanced(labels: Tensor, order: Tensor, classes: Sequence[int], n: int) -> Tensor:
    """Return at most `n` of the places `order`, equal shares per class in turn, int64.

    A class with too few images leaves its share to the others.
    """
    queues = [order[labels[order] == c].tolist() for c in classes]
    chosen: list[int] = []
    while len(chosen) < n and any(queues):
        for queue in queues:
            if queue and len(chosen) < n:
                chosen.append(queue.pop(0))
    return torch.tensor(chosen, dtype=torch.int64)
