"""Run a batch of images through a network in slices that fit in memory, with the same logits and the same gradient.

What an attack draws and decides belongs to the whole batch; only the passes through the network are divided. Where a
batch fits, nothing is done. Where it does not, and a gradient is wanted, a slice keeps no activations and is computed
once more on the way back (Chen et al. 2016, "Training deep nets with sublinear memory cost", arXiv 1604.06174).
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint, set_checkpoint_early_stop

from audit.errors import ClassifierError
from audit.runtime.memory import allowed, fitting, halving, out_of_memory, peak_bytes
from audit.runtime.seeds import lent_randomness

Output = TypeVar("Output", Tensor, tuple[Tensor, Tensor])
Result = TypeVar("Result")

PROBED = 2
"""Images that the cost is measured on: there are networks that do not take a single one."""
STATE = 12
"""Copies of a batch that an attack holds beside the network's own memory: images, iterates, gradients, best ones."""


def _joined(parts: list[Output]) -> Output:
    if isinstance(parts[0], Tensor):
        return torch.cat(parts)
    return tuple(torch.cat(column) for column in zip(*parts, strict=True))  # type: ignore[return-value]


class Slices:
    """Divides the batches of one network, called `name` in errors, so that they take at most `max_memory`.

    `ran` holds, for passes with (True) and without (False) a gradient that had to be divided, the images of the
    smallest slice, those of the largest batch, and the bytes that one image was measured to take.
    """

    def __init__(self, name: str, max_memory: str) -> None:
        self.ran: dict[bool, tuple[int, int, int]] = {}
        self._name, self.max_memory = name, max_memory
        self._each: dict[tuple[bool, bool, torch.Size, torch.device], int] = {}
        self._most: int | None = None
        self._largest = 1

    def __call__(self, network: Callable[[Tensor], Output], images: Tensor, graded: bool) -> Output:
        """Return `network(images)`; `graded` says whether a gradient with respect to the images may be asked for.

        Where memory runs out without one, the pass is done again in halves. With one it may run out on the way back,
        which is begun elsewhere: that is for `sparing`.
        """
        divided = partial(self._divided, network, images, graded)
        return divided() if graded else halving(divided, self._halve)

    def _divided(self, network: Callable[[Tensor], Output], images: Tensor, graded: bool) -> Output:
        n = len(images)
        at_once = n if n < PROBED else self._at_once(network, images, graded)
        self._largest = max(self._largest, min(n, at_once))
        if n <= at_once:
            return network(images)
        parts = images.tensor_split(math.ceil(n / at_once))
        slice_, batch, each = self.ran.get(graded, (n, n, 0))
        cost = self._each[_pass(images, graded)]
        self.ran[graded] = min(slice_, len(parts[0])), max(batch, n), max(each, cost)
        if not graded:
            return _joined([network(part) for part in parts])
        # Stopping early is done by an error, which TorchScript turns into one of its own.
        with set_checkpoint_early_stop(False):
            return _joined([checkpoint(network, part, use_reentrant=False) for part in parts])

    def _at_once(self, network: Callable[[Tensor], Output], images: Tensor, graded: bool) -> int:
        key = _pass(images, graded)
        budget = allowed(images.device, self.max_memory)
        if key not in self._each:
            self._each[key] = _cost(network, images[:PROBED].detach(), graded, budget)
        # What the attack itself holds of a batch of large images must not leave the network a single one.
        left = budget - min(STATE * images.nbytes, budget // 2)
        found = fitting(len(images), self._each[key], left)
        return found if self._most is None else min(found, self._most)

    def sparing(self, work: Callable[[], Result]) -> Result:
        """Return `work()`; if memory runs out, do it again with slices half as large.

        Raises ClassifierError where one image at a time is too much.
        """
        try:
            return halving(work, self._halve)
        except Exception as error:
            if not out_of_memory(error):
                raise
            raise ClassifierError(
                f"Classifier '{self._name}' does not fit in memory even with one image at a time: lower "
                "robustness.batch_size or data.image_size, or audit it on a machine with more memory."
            ) from None

    def during(self, work: Callable[[], Result]) -> tuple[Result, dict[bool, tuple[int, int, int]]]:
        """Return what `work` returns, and how batches were divided meanwhile."""
        before, self.ran = self.ran, {}
        try:
            return work(), self.ran
        finally:
            meanwhile, self.ran = self.ran, before
            self.told(meanwhile)

    def told(self, ran: dict[bool, tuple[int, int, int]]) -> None:
        """Take note of how batches were divided in work that was done earlier."""
        for graded, (slice_, batch, each) in ran.items():
            least, most, cost = self.ran.get(graded, (slice_, batch, each))
            self.ran[graded] = min(least, slice_), max(most, batch), max(cost, each)

    def said(self) -> str | None:
        """Return a sentence on how batches were divided; None if none was."""
        if not self.ran:
            return None
        kinds = {True: "passes with a gradient", False: "passes without a gradient"}
        parts = [f"{kinds[g]} {most} of {n} images at a time" for g, (most, n, _) in sorted(self.ran.items())[::-1]]
        each = max(each for *_, each in self.ran.values())
        return (
            f"To stay within max_memory = {self.max_memory}, batches were divided: {' and '.join(parts)} (one image "
            f"takes {each / 1e6:.0f} MB). That takes longer and moves numbers by rounding at most; raise max_memory to "
            "avoid it."
        )

    def _halve(self) -> bool:
        if self._largest == 1:
            return False
        self._most, self._largest = self._largest // 2, 1
        return True


def _pass(images: Tensor, graded: bool) -> tuple[bool, bool, torch.Size, torch.device]:
    """Return what the memory of an image's pass depends on; in 16 bits it takes less."""
    return graded, torch.is_autocast_enabled(images.device.type), images.shape[1:], images.device


def sparing(classifier: nn.Module, work: Callable[[], Result]) -> Result:
    """Return `work()`; if memory runs out and `classifier` divides its batches, do it again with smaller slices."""
    slices = getattr(classifier, "slices", None)
    return slices.sparing(work) if isinstance(slices, Slices) else work()


@contextmanager
def undivided(classifier: Any) -> Iterator[None]:
    """Let `classifier` take its batches whole within the block, for whom it matters what passes through its layers."""
    slices = getattr(classifier, "slices", None)
    if slices is None:
        yield
        return
    classifier.slices = None
    try:
        yield
    finally:
        classifier.slices = slices


def _cost(network: Callable[[Tensor], Output], images: Tensor, graded: bool, budget: int) -> int:
    """Return the bytes that one of `images` takes: all of the `budget` where memory runs out already.

    0 where the network fails, whose error appears when it is run.
    """

    def work() -> None:
        if not graded:
            with torch.no_grad():
                network(images)
            return
        leaf = images.clone().requires_grad_()
        with torch.enable_grad():
            found = network(leaf)
            logits = found if isinstance(found, Tensor) else found[1]
            if logits.requires_grad:
                torch.autograd.grad(logits.sum(), leaf, allow_unused=True)

    try:
        # Measuring must not change the random numbers that a network draws later.
        with lent_randomness(images.device):
            return peak_bytes(work, images.device) // len(images)
    except Exception as error:  # noqa: BLE001 - foreign code; what it raises appears when it is run
        return budget if out_of_memory(error) else 0
