"""A classifier's passes in 16 bits, by autocast: weights and what goes in and comes out stay in float32.

Micikevicius et al. 2018, "Mixed precision training". What is decided is decided in float32: gradients only say where to
go, and an answer that is near enough to another one to be due to 16 bits is asked for once more.
"""

from typing import Any

import torch
from torch import Tensor, nn

from audit.classifiers.mode import Wrapper


class Autocast(Wrapper):
    """A network whose forward pass runs in `dtype` and whose logits are float32.

    The cast ends with every forward pass: weights may change between two passes, and the casts that autocast keeps
    would be those of the old weights.
    """

    def __init__(self, network: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.network = network
        self.dtype = dtype

    def forward(self, images: Tensor) -> Tensor:
        """Logits `[N, K]` of `images` `[N, C, H, W]`."""
        with torch.autocast(images.device.type, dtype=self.dtype):
            logits: Tensor = self.network(images)
        return logits.float()


class _Lowered(Autocast):
    """A classifier some of whose passes run in 16 bits; its name and settings are the classifier's own."""

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("network"), name)


class LowGradients(_Lowered):
    """A classifier whose passes with a gradient run in 16 bits, and in float32 those without one, which decide."""

    low_gradients = True

    def forward(self, images: Tensor) -> Tensor:
        """Logits `[N, K]` of `images` `[N, C, H, W]`."""
        graded = images.requires_grad and torch.is_grad_enabled()
        logits: Tensor = super().forward(images) if graded else self.network(images)
        return logits


class LowAnswers(_Lowered):
    """A classifier that answers in 16 bits, and in float32 where the two likeliest classes are nearer than `doubt`."""

    def __init__(self, network: nn.Module, dtype: torch.dtype, doubt: float) -> None:
        super().__init__(network, dtype)
        self.doubt = doubt

    def forward(self, images: Tensor) -> Tensor:
        """Logits `[N, K]` of `images` `[N, C, H, W]`."""
        logits = super().forward(images)
        first, second = logits.topk(2, dim=1).values.unbind(1)
        # What is not a number is in doubt as well.
        near = (~(first - second > self.doubt)).nonzero().flatten()
        return logits if len(near) == 0 else logits.index_copy(0, near, self.network(images[near]))


def in_float32(classifier: nn.Module) -> nn.Module:
    """Return `classifier` itself, or the one behind passes in 16 bits."""
    return classifier.network if isinstance(classifier, _Lowered) else classifier
