"""The mode of a network: passed on by what wraps it, and put back with its gradient flags after an evaluation."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Self

from torch import nn


class Wrapper(nn.Module):
    """A module around a network, to which it passes its mode on.

    Modules of torch.export have one fixed mode and refuse the call; they keep it.
    """

    def train(self, mode: bool = True) -> Self:
        """Put this module and what is in it in training mode, or in evaluation mode."""
        self.training = mode
        for module in self.children():
            with suppress(NotImplementedError):
                module.train(mode)
        return self


@contextmanager
def preserve_mode(model: nn.Module) -> Iterator[nn.Module]:
    """Put `model` in evaluation mode with frozen parameters, and afterwards every part back as it came.

    Each submodule's training flag and each parameter's `requires_grad` is restored by itself, so that a frozen batch
    norm inside a training network stays frozen. Gradients with respect to the input flow inside the block.
    """
    # A frozen TorchScript module has no mode any more.
    training = [(module, module.training) for module in model.modules() if hasattr(module, "training")]
    gradients = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    # Modules of torch.export have one fixed mode and refuse both calls.
    if training:
        with suppress(NotImplementedError):
            model.eval()
    for parameter, _ in gradients:
        parameter.requires_grad_(False)
    try:
        yield model
    finally:
        if training and training[0][1]:
            # `train()` is called because some networks unmerge adapters or swap buffers in it.
            with suppress(NotImplementedError):
                model.train()
        for module, flag in training:
            if module.training != flag:
                module.training = flag
        for parameter, flag in gradients:
            parameter.requires_grad_(flag)
