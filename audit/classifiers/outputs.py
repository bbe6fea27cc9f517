"""Read a network's answer: which tensor of it says how sure the network is of each class, and logits of these numbers.

A forward may return a tensor, or tuples, lists, dicts, dataclasses and a Hugging Face `ModelOutput` that hold several.
Its numbers may be logits, one logit z of a binary classifier (as `[0, z]`), or probabilities. Whatever they are, the
classifier under audit gives logits `[N, K]`, whose largest is its decision.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from audit.classifiers.mode import Wrapper
from audit.errors import ClassifierError

Scale = Literal["logits", "probabilities"]

LARGEST_PROBABILITY = 1 - 2**-24
"""Next to 1 in float32: a sigmoid cannot say more, and the logarithm of what is left must be finite."""

ROWS_SUM_TO = 1e-3
"""How far rows of probabilities in 16 bits may be from 1."""


@dataclass(frozen=True)
class AnswerSettings:
    """What a configuration says of a network's answer; None: it is found by running the network.

    `output` and `head` are names or places in what the forward returns, the one inside the other; `scale` says what its
    numbers are, `threshold` from which probability of the second output a binary classifier decides for it, and
    `features` which module's output are the features. `independent` outputs are those of labels of which an image may
    have any number.
    """

    output: str | int | None = None
    head: str | None = None
    scale: Scale | None = None
    threshold: float | None = None
    features: str | None = None
    independent: bool = False

    @property
    def path(self) -> tuple[str | int, ...]:
        """Names and places to follow, from the outside in."""
        return tuple(step for step in (self.output, self.head) if step is not None)


def _parts(answer: object) -> dict[str | int, object]:
    """What an answer consists of, by name or place; nothing for a tensor and for what is no container."""
    if isinstance(answer, Mapping):
        return dict(answer)
    if isinstance(answer, tuple) and hasattr(answer, "_asdict"):
        return dict(answer._asdict())
    if isinstance(answer, list | tuple):
        return dict(enumerate(answer))
    if is_dataclass(answer) and not isinstance(answer, type):
        return {one.name: getattr(answer, one.name) for one in fields(answer)}
    return {}


def tensors_of(answer: object, path: tuple[str | int, ...] = ()) -> dict[tuple[str | int, ...], Tensor]:
    """Return every tensor in `answer` by its path."""
    if isinstance(answer, Tensor):
        return {path: answer}
    return {p: t for step, part in _parts(answer).items() for p, t in tensors_of(part, (*path, step)).items()}


def at_path(answer: object, path: tuple[str | int, ...]) -> object:
    """Follow `path` through `answer`; a number also counts the parts of what has names. Raises KeyError if it ends."""
    for step in path:
        parts = _parts(answer)
        if isinstance(step, int) and step not in parts:
            parts = dict(enumerate(parts.values()))
            step %= max(1, len(parts))
        answer = parts[step]
    return answer


class Picked(Wrapper):
    """A network of whose answer one tensor is taken, as `[N, K]`."""

    def __init__(self, network: nn.Module, path: tuple[str | int, ...]) -> None:
        super().__init__()
        self.network = network
        self.path = path

    def forward(self, images: Tensor) -> Tensor:
        """The chosen numbers `[N, K]` of normalised images."""
        found = at_path(self.network(images), self.path)
        assert isinstance(found, Tensor)
        # A network that gives one number an image often squeezes, and of one image even the batch dimension.
        return found.reshape(len(images), -1)


def _said(path: tuple[str | int, ...]) -> str:
    return f"'{'.'.join(map(str, path))}'"


def _is_answer(values: Tensor, n: int, num_classes: int | None) -> bool:
    if not values.is_floating_point() or values.ndim == 0 or len(values) != n or values.numel() == 0:
        return False
    width = values.numel() // n
    wide = values.ndim == 1 or max(values.shape[2:], default=1) == 1
    return wide and (num_classes is None or width == num_classes or (num_classes == 2 and width == 1))


def answer_path(
    answer: object, n: int, num_classes: int | None, settings: AnswerSettings, name: str
) -> tuple[str | int, ...]:
    """Return where in `answer`, to `n` images, the numbers of the classes are; () where it is that tensor itself.

    Without a setting it is the one tensor `[n, K]` or, of two classes, `[n]` or `[n, 1]`; of several the one called
    'logits'. Raises ClassifierError where there is none, or several that differ.
    """
    try:
        inner = at_path(answer, settings.path)
    except KeyError as error:
        there = ", ".join(_said(path) for path in tensors_of(answer)) or f"a {type(answer).__name__}"
        raise ClassifierError(
            f"Classifier '{name}' has nothing under {error} in what it returns, which holds {there}: check output and "
            "head."
        ) from None
    found = tensors_of(inner, settings.path)
    if isinstance(inner, Tensor):
        return settings.path
    if not found:
        kind = type(inner).__name__
        raise ClassifierError(f"Classifier '{name}' returns a {kind} without tensors: return one logit per class.")
    fitting = {path: t for path, t in found.items() if _is_answer(t, n, num_classes)}
    if not fitting:
        fitting = {path: t for path, t in found.items() if _is_answer(t, n, None)}
    named = [path for path in fitting if path[-1] == "logits"]
    paths = named if len(named) == 1 else list(fitting)
    if not paths:
        shapes = ", ".join(f"{_said(path)} {list(t.shape)}" for path, t in found.items())
        raise ClassifierError(
            f"Classifier '{name}' returns no tensor [{n}, number of classes] for {n} images but {shapes}: return one "
            "logit per class."
        )
    first = fitting[paths[0]]
    if not all(fitting[path].shape == first.shape and torch.equal(fitting[path], first) for path in paths[1:]):
        raise ClassifierError(
            f"Classifier '{name}' returns several tensors that may be its logits, {', '.join(map(_said, paths))}: name "
            f"the right one by output, for instance output = {_literal(paths[0][0])}."
        )
    return paths[0]


def _literal(step: str | int) -> str:
    return f'"{step}"' if isinstance(step, str) else str(step)


def are_probabilities(values: Tensor, independent: bool = False) -> bool:
    """Whether rows `[n, K]` are probabilities of classes that exclude each other.

    Of one number, and of `independent` labels, whether all are in [0, 1].
    """
    if not bool(((values >= 0) & (values <= 1)).all()):
        return False
    return independent or values.shape[1] == 1 or bool(((values.sum(dim=1) - 1).abs() <= ROWS_SUM_TO).all())


@dataclass(frozen=True)
class ToLogits:
    """Makes logits `[N, K]` of a network's values: `scale` is what they are, `single` whether they are one an image.

    Those of `independent` labels are log-odds, each for itself.

    Where `threshold` is given, the second of two logits is moved by its log-odds, so that the larger one decides.
    """

    scale: Scale = "logits"
    threshold: float | None = None
    single: bool = field(default=False, kw_only=True)
    independent: bool = field(default=False, kw_only=True)

    @property
    def shift(self) -> float:
        """What is added to the second of two logits."""
        return 0.0 if self.threshold is None else math.log1p(-self.threshold) - math.log(self.threshold)

    @property
    def changes(self) -> bool:
        """Whether logits are other numbers than those the network gives."""
        return self.single or self.scale != "logits" or self.shift != 0

    @property
    def in_words(self) -> str:
        """What the network gives, and what is made of it."""
        if self.single:
            given = "one probability p as [0, log(p / (1 - p))]" if self.scale != "logits" else "one logit z as [0, z]"
        elif self.independent:
            given = "log-odds of its probabilities" if self.scale != "logits" else "logits"
        else:
            given = "logarithms of its probabilities" if self.scale != "logits" else "logits"
        return (
            given
            if self.threshold is None
            else f"{given}, the second one moved by {self.shift:+.3g} for the threshold {self.threshold:g}"
        )

    def of_layer(self, layer: nn.Linear) -> tuple[Tensor, Tensor | None]:
        """Return weight `[K, d]` and bias of a linear layer that gives the logits where `layer` gives the values."""
        weight, bias = layer.weight.detach(), None if layer.bias is None else layer.bias.detach()
        if self.single:
            weight = functional.pad(weight, (0, 0, 1, 0))
            bias = None if bias is None else functional.pad(bias, (1, 0))
        if self.shift:
            bias = (weight.new_zeros(len(weight)) if bias is None else bias) + weight.new_tensor([0.0, self.shift])
        return weight, bias

    def __call__(self, values: Tensor) -> Tensor:
        """Return the logits of `values` `[N, K]`, or of `[N, 1]` for two classes."""
        logits = values
        if self.scale == "probabilities":
            smallest = torch.finfo(torch.float32).tiny
            logits = values.clamp_min(smallest).log()
            if self.single or self.independent:
                logits = logits - torch.log1p(-values.clamp(smallest, LARGEST_PROBABILITY))
        if self.single:
            logits = functional.pad(logits, (1, 0))
        return logits + logits.new_tensor([0.0, self.shift]) if self.shift else logits
