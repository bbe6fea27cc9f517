"""Run a user's network on a few random images, and say what keeps it from being audited.

A foreign `forward` may want another number type, draw at random, keep the batch size of its example, lose the batch
dimension of a single image, or look at the other images of its batch. Each is found by running it, never by its code.
"""

import re
from collections.abc import Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from audit.classifiers.architectures import SIDES
from audit.classifiers.mode import Wrapper
from audit.classifiers.outputs import AnswerSettings, Picked, answer_path, at_path, tensors_of
from audit.errors import ClassifierError
from audit.runtime.memory import out_of_memory
from audit.runtime.seeds import lent_randomness, stage_seed

HOW = "return one logit per class."

BATCHES = (3, 1)
"""Batch sizes that are tried beside the probe's own: the last batch of a set may have any size."""

ABOUT_SHAPES = re.compile(
    r"size|shape|channel|dimension|height|width|mat1|expected input|out of range|broadcast|mismatch", re.IGNORECASE
)
HALVES = (torch.float16, torch.bfloat16)


def first_line(error: BaseException) -> str:
    """Return the first line of a foreign error's text, or its type where it has none."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


def is_program(network: nn.Module) -> bool:
    """Whether the network runs outside Python, from a TorchScript or torch.export file."""
    inner: object = network
    while isinstance(inner, InDtype | Picked):
        inner = inner.network
    return isinstance(inner, torch.jit.ScriptModule | GraphModule)


def at_least_float(values: Tensor) -> Tensor:
    """Return `values`, in float32 where they are in 16 bits, which no attack and no metric can work with."""
    return values.float() if values.dtype in HALVES else values


class InDtype(Wrapper):
    """A network that wants its images in another number type than float32; a tensor it returns is float32 again."""

    def __init__(self, network: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.network = network
        self.dtype = dtype

    def forward(self, images: Tensor) -> Tensor:
        """Logits `[N, K]` in float32."""
        out: Tensor = self.network(images.to(self.dtype))
        return out.float() if isinstance(out, Tensor) and out.is_floating_point() else out


def same_draws(images: Tensor, seed: str = "classifier/draws") -> AbstractContextManager[None]:
    """Return a context with the same random numbers each time, which leaves the caller's random state as it was."""
    return lent_randomness(images.device, stage_seed(0, seed))


def run(network: nn.Module, images: Tensor, seed: str = "classifier/draws") -> Tensor:
    """Run `network` with the same random numbers each time, whatever it raises."""
    with same_draws(images, seed):
        out: Tensor = network(images)
        return at_least_float(out) if isinstance(out, Tensor) else out


def same(a: Tensor, b: Tensor, precision: torch.dtype = torch.float32) -> bool:
    """Whether `a` and `b` are equal up to what another order of summation does in numbers of `precision`."""
    relative = 1e-3 if precision not in HALVES else 4 * torch.finfo(precision).eps
    return a.shape == b.shape and bool((a - b).abs().max() <= 1e-5 + relative * b.abs().max())


def _takes(network: nn.Module, images: Tensor) -> bool:
    try:
        out = run(network, images)
    except Exception:  # noqa: BLE001 - foreign code may raise anything
        return False
    return any(one.ndim and len(one) == len(images) for one in tensors_of(out).values())


def in_its_dtype(network: nn.Module, probe: Tensor) -> nn.Module:
    """Return `network`, wrapped in `InDtype` where it runs in the number type of its own weights alone."""
    dtypes = {p.dtype for p in network.parameters() if p.is_floating_point()} - {probe.dtype}
    if not dtypes or _takes(network, probe):
        return network
    return next((InDtype(network, d) for d in sorted(dtypes, key=str) if _takes(InDtype(network, d), probe)), network)


def _other_batch(network: nn.Module, images: Tensor) -> int | None:
    """A batch size that a network takes which does not take that of `images`."""
    return next((n for n in (1, 2, 8, 16, 32, 64) if _takes(network, _cycled(images, n))), None)


def _cycled(images: Tensor, n: int) -> Tensor:
    return images[torch.arange(n, device=images.device) % len(images)]


def _other_shape(network: nn.Module, images: Tensor) -> tuple[int, int, int] | None:
    """A shape (C, H, W) that a network takes which does not take that of `images`; their own sides first."""
    channels, height, width = images.shape[1:]
    sides = [(height, width), *((side, side) for side in SIDES)]
    for size in sides:
        for count in (channels, 4 - channels):
            blank = images.new_full((2, count, *size), 0.5)
            if (count, *size) != (channels, height, width) and _takes(network, blank):
                return count, *size
    return None


def _why_it_fails(network: nn.Module, images: Tensor, name: str, error: Exception) -> str:
    said = f"Classifier '{name}' fails on a batch of shape {list(images.shape)} ({first_line(error)})"
    if is_program(network) and (batch := _other_batch(network, images)) is not None:
        return f"{said} but takes {batch}: export it with a dynamic batch dimension."
    shape = _other_shape(network, images)
    if shape is not None:
        return (
            f"{said} but takes images of {' x '.join(map(str, shape))}: set its input_size and channels to what it was "
            "trained on."
        )
    if ABOUT_SHAPES.search(str(error)):
        batch_too = ", or export it with a dynamic batch dimension" if is_program(network) else ""
        return f"{said}: set its input_size and channels to what it was trained on{batch_too}."
    return (
        f"{said}, a {type(error).__name__} that its own code raises: mend the network, or give one whose forward takes "
        "images alone."
    )


def answering(
    network: nn.Module, images: Tensor, name: str, settings: AnswerSettings, num_classes: int | None
) -> nn.Module:
    """Return `network`, wrapped so that it gives the numbers of the classes `[N, K]` alone where it gives more.

    Raises ClassifierError with the cause where it fails on normalised `images` or answers something else.
    """
    try:
        answer: object = run(network, images)
    except Exception as error:
        if out_of_memory(error):
            raise
        raise ClassifierError(_why_it_fails(network, images, name, error)) from error
    path, n = answer_path(answer, len(images), num_classes, settings, name), len(images)
    values = at_path(answer, path)
    assert isinstance(values, Tensor)
    if values.ndim == 2 and len(values) == n and not path:
        return network
    if values.ndim == 0 or len(values) != n or values.numel() == 0:
        raise ClassifierError(
            f"Classifier '{name}' returns shape {list(values.shape)} for a batch of {n} where [{n}, number of classes] "
            f"is needed: {HOW}"
        )
    if values[0].numel() != (values.shape[1] if values.ndim > 1 else 1):
        raise ClassifierError(
            f"Classifier '{name}' returns shape {list(values.shape)} for a batch of {n}, as a segmentation or a map of "
            "features is, and not one number per class: give a network that classifies whole images."
        )
    if isinstance(network, InDtype):
        return InDtype(Picked(network.network, path), network.dtype)
    return Picked(network, path)


def checked_values(network: nn.Module, images: Tensor, name: str) -> Tensor:
    """Return the finite numbers `[N, K]` that `network` gives to `images`; raises ClassifierError for others."""
    values = run(network, images)
    if not values.is_floating_point():
        raise ClassifierError(f"Classifier '{name}' returns {values.dtype} where logits are needed: {HOW}")
    if not torch.isfinite(values).all():
        raise ClassifierError(
            f"Classifier '{name}' returns NaN or infinite logits on a random image: check its weights, mean and std."
        )
    return values


def check_batches(network: nn.Module, probe: Tensor, name: str, sizes: Iterable[int] = BATCHES) -> None:
    """Raise ClassifierError unless `network` takes batches of `sizes`, which it does those of `probe`."""
    for n in sizes:
        why = ""
        try:
            out = run(network, probe[:n])
            if out.ndim == 2 and len(out) == n:
                continue
            why = f"it returns shape {list(out.shape)}"
        except Exception as error:  # noqa: BLE001 - foreign code may raise anything
            why = first_line(error)
        mend = "keep the batch dimension in its forward, for instance by flatten(1) in the place of squeeze()"
        if is_program(network):
            mend = "export it with a dynamic batch dimension"
        if n == 1:
            raise ClassifierError(f"Classifier '{name}' cannot take a batch of one image: {why}; {mend}.")
        raise ClassifierError(
            f"Classifier '{name}' takes batches of {len(probe)} but not of {n} images ({why}): {mend}."
        )


@dataclass(frozen=True)
class Behaviour:
    """What running the network showed: whether it draws at random, and whether images of a batch affect each other."""

    random: bool
    batch_dependent: bool


def behaviour_of(network: nn.Module, probe: Tensor) -> Behaviour:
    """Compare answers to the same images under other random numbers, and of an image alone and in its batch."""
    together = run(network, probe)
    random = not same(run(network, probe, "classifier/other draws"), together)
    # One draw for a batch is another than for an image alone: what differs then says nothing about the batch.
    alone = together if random else torch.cat([run(network, image[None]) for image in probe])
    return Behaviour(random, not same(alone, together))
