"""Which images are explained: those of the source classes that every audited model classifies correctly."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from audit.config import QueryConfig
from audit.errors import ConfigError
from audit.runtime.seeds import stage_generator

METHODS = ("nearest", "runner-up")


@dataclass(frozen=True)
class Selection:
    """Positions of the query images, and per model and class how many candidates it misclassifies."""

    indices: Tensor
    left_out: dict[str, dict[str, int]]


def source_classes(config: QueryConfig, class_names: Sequence[str]) -> tuple[int, ...]:
    """Classes whose images are explained: as configured, else all but a fixed target. Raises ConfigError."""
    if config.target not in METHODS and config.target not in class_names:
        raise ConfigError(
            f"Key 'queries.target' names '{config.target}', which is not one of the classes: give 'nearest', "
            f"'runner-up' or one of {', '.join(class_names)}."
        )
    names = config.classes if config.classes is not None else tuple(n for n in class_names if n != config.target)
    for name in names:
        if name not in class_names:
            raise ConfigError(
                f"Key 'queries.classes' names '{name}', which is not one of the classes: {', '.join(class_names)}."
            )
    sources = tuple(class_names.index(name) for name in dict.fromkeys(names) if name != config.target)
    if not sources:
        raise ConfigError("Key 'queries.classes' leaves nothing to explain: name a class other than the target.")
    return sources


def select_queries(
    labels: Tensor, predicted: Mapping[str, Tensor], config: QueryConfig, class_names: Sequence[str], seed: int
) -> Selection:
    """Choose at most `config.n` rows of `labels` `[N]`, equal shares per source class, in a seeded order.

    `predicted` maps a model's name to its decisions `[N]`. A class with too few rows leaves its share to the others.
    """
    sources = source_classes(config, class_names)
    candidate = torch.isin(labels, torch.tensor(sources))
    wrong = {name: candidate & (decision != labels) for name, decision in predicted.items()}
    left_out = {
        name: {class_names[c]: int((mask & (labels == c)).sum()) for c in sources} for name, mask in wrong.items()
    }
    common = candidate.clone()
    for mask in wrong.values():
        common &= ~mask
    order = torch.randperm(len(labels), generator=stage_generator(seed, "queries"))
    queues = [order[common[order] & (labels[order] == c)].tolist() for c in sources]
    chosen: list[int] = []
    while len(chosen) < config.n and any(queues):
        for queue in queues:
            if queue and len(chosen) < config.n:
                chosen.append(queue.pop(0))
    return Selection(torch.tensor(chosen, dtype=torch.int64), left_out)
