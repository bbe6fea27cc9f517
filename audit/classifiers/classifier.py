"""A classifier under audit: pixels in [0, 1] to penultimate features and logits, whatever network is inside.

Channels, size and normalisation are bridged inside and differentiably, so that a gradient with respect to the image the
audit works on exists for every network. Grey to RGB repeats the channel; RGB to grey is the luma of ITU-R BT.601.
"""

import copy
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from audit.classifiers.black_box import is_black_box
from audit.classifiers.bridge import bridge_channels, bridge_size, class_order, per_channel, two_classes
from audit.classifiers.feature_networks import HookedNetwork, linear_of
from audit.classifiers.mode import preserve_mode
from audit.classifiers.outputs import AnswerSettings, ToLogits
from audit.classifiers.probe import (
    BATCHES,
    Behaviour,
    behaviour_of,
    first_line,
    is_program,
    run,
    same,
)
from audit.classifiers.slices import Output, Slices
from audit.classifiers.trace import trace_network
from audit.errors import ClassifierError, ModelFault, Terminated
from audit.results import ModelInput, Notice, Origin
from audit.runtime.memory import out_of_memory
from audit.runtime.seeds import stage_generator

PROBE_IMAGES = 4

T = TypeVar("T")


@dataclass(frozen=True)
class LocalHead:
    """What N images' logits do when their features change a little, for networks that do not end in a linear layer.

    `weight` `[N, K, d]` is the gradient of each logit by each feature, at each position of it by the same amount;
    `features` `[N, d]` and `logits` `[N, K]` are the images' own.
    """

    weight: Tensor
    features: Tensor
    logits: Tensor

    def __call__(self, features: Tensor) -> Tensor:
        """Return the logits `[N, K]` at `features` `[N, d]`, to first order."""
        return self.logits + torch.einsum("nkd,nd->nk", self.weight, features - self.features)


def weights_hash(state: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 over the tensors of a state dict in the order of their names: name, type, shape and bytes."""
    digest = hashlib.sha256()
    for key in sorted(state):
        tensor = state[key].detach().cpu().contiguous()
        digest.update(f"{key}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


Head = nn.Linear | LocalHead
"""How logits follow from features; `weight` is `[K, d]`, or `[N, K, d]` where it is another for each of N images."""


class Classifier(nn.Module):
    """A trained network behind the pixel contract: float32 images `[N, 1 or 3, h, w]` in [0, 1], logits `[N, K]`.

    `network` takes normalised images of `input_shape` (C, H, W); `answer` says how to read what it returns.
    `class_names` are those of the data, in the data's order; `order[k]` is the position of class k in the network's
    output (None: the same order), which may hold `left_out` classes more that the data have not.
    `mean` and `std` are in pixel units, one per channel (None: no normalisation).
    `source` and `weights` name architecture, file and entry, `origins` who said so, for `input`.
    `notices` are what a reader of its numbers has to know, found by its loader.
    The network is run on random images to find its logits and features; it keeps its mode and its gradients flags.
    `content` stands for the code that answers, beside the weights, where finished work is kept and found again; None:
    what that is nobody knows, as behind a black box, and nothing may be kept.
    `slices` divides large batches to bound the memory (None: they are taken whole).
    Where an image may have any number of labels, K is their number, and `limits` are the logits from which on each is
    said to be there (empty: 0); `of_label` is the view of one.
    Raises ClassifierError if the network does not fit this.
    """

    mean: Tensor
    std: Tensor
    order: Tensor | None
    label: Tensor | None
    """Of a view of one label: its place among the labels, and the logit from which on the label is said to be there."""

    def __init__(
        self,
        network: nn.Module,
        *,
        name: str,
        class_names: Sequence[str],
        input_shape: tuple[int, int, int],
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        order: Sequence[int] | None = None,
        left_out: int = 0,
        source: str = "memory",
        weights: str = "memory",
        origins: Mapping[str, Origin] | None = None,
        answer: AnswerSettings | None = None,
    ) -> None:
        super().__init__()
        self.slices: Slices | None = None
        self.limits: tuple[float, ...] = ()
        self.name = name
        self.class_names = tuple(class_names)
        self.input_shape = input_shape
        self.left_out = left_out
        self.source = source
        self.notices: tuple[Notice, ...] = ()
        self._weights = weights
        given = {"mean": mean, "std": std, "classes": order}
        # Of a classifier built in memory, what the caller leaves out is the default.
        self._origins: dict[str, Origin] = {
            **dict.fromkeys(("size", "channels", "weights"), "configuration"),
            **{key: "default" if value is None else "configuration" for key, value in given.items()},
            **(origins or {}),
        }
        self.weights_sha256 = weights_hash(network.state_dict())
        channels = input_shape[0]
        self.register_buffer("mean", per_channel(mean, 0.0, channels, "mean", name), persistent=False)
        self.register_buffer("std", per_channel(std, 1.0, channels, "std", name), persistent=False)
        parameter = next(network.parameters(), None)
        if parameter is not None:
            self.mean, self.std = self.mean.to(parameter.device), self.std.to(parameter.device)
        answer = answer or AnswerSettings()
        outputs = self.num_classes + left_out
        traced = trace_network(network, self._probe(), name, answer, outputs)
        self.network = traced.network
        self._channels_last = False
        single = traced.width == 1 and outputs == 2 and not answer.independent
        if not single and traced.width != outputs:
            named = f"{outputs} classes" + (
                f" ({', '.join(self.class_names)})" if not left_out else " named by 'classes'"
            )
            raise ClassifierError(
                f"Classifier '{name}' has {traced.width} outputs for {named}: load a checkpoint for these classes, or "
                "give its own in 'classes', one name for each output; those that the data have not are left out."
            )
        if answer.threshold is not None and (outputs != 2 or answer.independent):
            raise ClassifierError(f"Classifier '{name}' has {outputs} classes, and a threshold is for two: remove it.")
        if not self.differentiable:
            # Its weights are unknown: its answers stand for them.
            with preserve_mode(self.network), torch.no_grad():
                seen = run(self.network, self._probe())
            self.weights_sha256 = weights_hash({**network.state_dict(), "answers": seen})
        self.content: str | None = "" if self.differentiable else None
        self.answer = ToLogits(traced.scale, answer.threshold, single=single, independent=answer.independent)
        self._picked = traced.picked
        self.reversed_channels = False
        self.register_buffer("order", None, persistent=False)
        self.register_buffer("label", None, persistent=False)
        self._set_order(order)

    def _set_order(self, order: Sequence[int] | None) -> None:
        outputs = self.num_classes + self.left_out
        kept = order is None or list(order) == list(range(outputs))
        self.order = None if kept else torch.tensor(order, device=self.mean.device)
        self._own_head: nn.Linear | None = None
        rows = self.order if self.order is not None else torch.arange(self.num_classes, device=self.mean.device)
        found = self.network.head
        if isinstance(self.network, HookedNetwork):
            return
        if found is None:
            self._own_head = linear_of(torch.eye(outputs, device=self.mean.device)[rows], None)
        elif not kept or self.answer.changes:
            weight, bias = self.answer.of_layer(found)
            self._own_head = linear_of(weight[rows], None if bias is None else bias[rows])

    @property
    def is_program(self) -> bool:
        """Whether the network runs outside Python, from a TorchScript or torch.export file."""
        return is_program(self.network.network)

    @property
    def differentiable(self) -> bool:
        """Whether gradients lead through the network; False for a black box."""
        return not is_black_box(self.network)

    @property
    def num_classes(self) -> int:
        """Number of classes K."""
        return len(self.class_names)

    @property
    def input(self) -> ModelInput:
        """How images are given to the network, and where each of these settings came from."""
        order = range(self.num_classes) if self.order is None else self.order.tolist()
        own = dict(zip(order, self.class_names, strict=True))
        return ModelInput(
            size=self.input_shape[1:],
            channels=self.input_shape[0],
            # As they were given, without the digits that float32 adds.
            mean=[round(value, 7) for value in self.mean.flatten().tolist()],
            std=[round(value, 7) for value in self.std.flatten().tolist()],
            classes=[own[place] for place in sorted(own)],
            weights=self._weights,
            origins=self._origins,
            answer=self._answer_in_words(),
            features=self.network.features_of,
        )

    def _answer_in_words(self) -> str:
        """What is read of the network's answer, and what is made of it."""
        picked = [] if not self._picked else [f"'{'.'.join(map(str, self._picked))}' of what it returns"]
        inside = [] if self.network.behind is None else [f"in front of its {self.network.behind}"]
        return ", ".join([*picked, self.answer.in_words, *inside])

    @property
    def head(self) -> nn.Linear | None:
        """The linear layer between features and logits, its rows in the order of `class_names`; None: there is none."""
        return self.network.head if self._own_head is None else self._own_head

    def head_at(self, images: Tensor) -> Head:
        """Return how the logits of `images` `[N, C, h, w]` follow from their features: exactly, else to first order."""
        if self.head is not None:
            return self.head
        assert isinstance(self.network, HookedNetwork)
        with torch.enable_grad():
            features, logits = self.features_and_logits(images)
            shift = torch.zeros_like(features).requires_grad_()
            _, moved = self._call(partial(self.network.features_and_logits, shift=shift), images)
            moved = self._in_order(self.answer(moved))
            rows = [
                torch.autograd.grad(column.sum(), shift, retain_graph=True, materialize_grads=True)[0]
                for column in moved.unbind(dim=1)
            ]
        return LocalHead(torch.stack(rows, dim=1), features.detach(), logits.detach())

    def prepare(self, images: Tensor) -> Tensor:
        """Return `images` `[N, 1 or 3, h, w]` in [0, 1] as the network wants them: channels, size, normalised."""
        if images.ndim != 4 or images.shape[1] not in (1, 3):
            raise ClassifierError(
                f"Classifier '{self.name}' was given images of shape {list(images.shape)}: give [N, 1 or 3, H, W]."
            )
        channels, height, width = self.input_shape
        # Fewer channels first: a grey network on colour images then resizes one plane and not three.
        bridged = bridge_size(bridge_channels(images, channels), (height, width))
        if self.reversed_channels:
            bridged = bridged.flip(1)
        # Expanded and permuted images keep their strides through all of this, and `view` in a network fails on them.
        return ((bridged - self.mean) / self.std).contiguous()

    def _in_order(self, logits: Tensor) -> Tensor:
        ordered = logits if self.order is None else logits.index_select(1, self.order)
        if self.label is None:
            return ordered
        place, limit = self.label
        return two_classes(ordered, int(place), float(limit))

    def forward(self, images: Tensor) -> Tensor:
        """Logits `[N, K]` of `images` `[N, 1 or 3, h, w]` in [0, 1], in the order of `class_names`."""
        return self._sliced(self._logits, images)

    def _logits(self, images: Tensor) -> Tensor:
        return self._in_order(self._call(self.outputs, images))

    def outputs(self, prepared: Tensor) -> Tensor:
        """Logits `[N, K]` of images as `prepare` gives them, in the network's own order."""
        return self.answer(self.network(prepared))

    def _sliced(self, network: Callable[[Tensor], Output], images: Tensor) -> Output:
        # A network in training mode may look at the whole batch.
        if self.slices is None or self.training:
            return network(images)
        graded = images.requires_grad or any(parameter.requires_grad for parameter in self.parameters())
        return self.slices(network, images, graded and torch.is_grad_enabled())

    def features(self, images: Tensor) -> Tensor:
        """Features `[N, d]` of `images`: the input of the final linear layer where there is one (Litsos 2025, §5.1)."""
        return self.features_and_logits(images)[0]

    def features_and_logits(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Features `[N, d]` and logits `[N, K]` of `images`, in one pass."""
        return self._sliced(self._features_and_logits, images)

    def _features_and_logits(self, images: Tensor) -> tuple[Tensor, Tensor]:
        features, values = self._call(self.network.features_and_logits, images)
        logits = self.answer(values)
        # Without a layer the features are the logits, in the network's own order, as the input of a layer is.
        return logits if features is values else features, self._in_order(logits)

    def _call(self, function: Callable[[Tensor], T], images: Tensor) -> T:
        """Run the network on prepared `images`; whatever it raises becomes a ModelFault, except lack of memory."""
        prepared = self.prepare(images)
        try:
            return function(prepared)
        except (Exception, SystemExit) as error:
            if isinstance(error, Terminated) or out_of_memory(error):
                raise
            if self._channels_last:
                self._set_channels_last(False)
                return self._call(function, images)
            raise ModelFault(
                self.name,
                f"Classifier '{self.name}' fails on a batch of shape {list(prepared.shape)} ({first_line(error)}): its "
                "forward has to take any number of images of its size.",
            ) from error

    def _set_channels_last(self, value: bool) -> None:
        self.network.to(memory_format=torch.channels_last if value else torch.contiguous_format)
        self._channels_last = value

    def prefer_channels_last(self) -> bool:
        """Store the weights in channels-last order if the network runs with it; return whether it does.

        Convolutions and poolings run up to 1.7 times faster so on CPUs, and no slower on GPUs. Some networks flatten by
        `view`, which that order does not allow.
        """
        if self.is_program:
            return False
        probe = self._probe()
        with preserve_mode(self):
            before = run(self.network, probe)
            self._set_channels_last(True)
            try:
                fits = same(run(self.network, probe), before)
                for n in BATCHES:
                    given = probe[:n].clone().requires_grad_()
                    logits = run(self.network, given)
                    if logits.requires_grad:
                        torch.autograd.grad(logits.sum(), given, allow_unused=True)
            except Exception as error:
                if out_of_memory(error):
                    raise
                fits = False
            if not fits:
                self._set_channels_last(False)
        return fits

    def behaviour(self) -> Behaviour:
        """Whether the network draws at random, and whether its answer depends on the other images of the batch."""
        with preserve_mode(self), torch.no_grad():
            return behaviour_of(self.network, self._probe())

    def _probe(self) -> Tensor:
        """Normalised random images as the network takes them."""
        probe = torch.rand(PROBE_IMAGES, *self.input_shape, generator=stage_generator(0, "classifier/probe"))
        return (probe.to(self.mean) - self.mean) / self.std

    def _copied(self) -> "Classifier":
        """Return a copy that shares the network, and whose settings can be changed."""
        other = copy.copy(self)
        # A shallow copy shares the dictionaries of submodules and buffers, which are to be changed in the copy only.
        other._modules, other._buffers = dict(self._modules), dict(self._buffers)
        return other

    def with_input(
        self,
        *,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        size: tuple[int, int] | None = None,
        reversed_channels: bool | None = None,
        classes: Sequence[str] | None = None,
    ) -> "Classifier":
        """Return this classifier with other input settings; what is None stays. The network is shared.

        `mean` and `std` are in pixel units, one per channel or one for all (0 and 1: no normalisation; 0 and 1/255:
        pixels from 0 to 255); `size` is (H, W); `reversed_channels` gives blue first; `classes` are the names in the
        order of the network's own outputs. Nothing is run: a network that cannot take the size fails when it is.
        Its features and head are those of the original. Raises ClassifierError for values that do not fit the network.
        """
        other = self._copied()
        channels = self.input_shape[0]
        if size is not None:
            other.input_shape = (channels, *size)
        if mean is not None:
            other.mean = per_channel(mean, 0.0, channels, "mean", self.name).to(self.mean)
        if std is not None:
            other.std = per_channel(std, 1.0, channels, "std", self.name).to(self.std)
        if reversed_channels is not None:
            other.reversed_channels = reversed_channels
        if classes is not None:
            other._set_order(class_order(classes, self.class_names, self.name))
        changed = {"mean": mean, "std": std, "size": size, "classes": classes}
        other._origins = self._origins | {key: "configuration" for key, value in changed.items() if value is not None}
        return other

    def of_label(self, label: int, names: tuple[str, str], limit: float = 0.0) -> "Classifier":
        """Return this classifier of labels as one of two classes called `names`: without `label`, and with it.

        The logit of the first is 0, that of the second the label's own less `limit`, the logit from which on the label
        is said to be there. Network and features are shared.
        """
        other = self._copied()
        other.class_names = names
        other.label = self.mean.new_tensor([label, limit])
        if self.head is not None:
            bias = self.head.weight.new_zeros(self.num_classes) if self.head.bias is None else self.head.bias
            rows = (
                functional.pad(self.head.weight[[label]], (0, 0, 1, 0)),
                functional.pad(bias[[label]] - limit, (1, 0)),
            )
            other._own_head = linear_of(*rows)
        return other
