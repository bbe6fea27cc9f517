"""A network through `torch.compile`, or as it is where nothing can compile it.

Compiled code has no second derivative: R1, path lengths and whatever else differentiates a gradient take the network
itself. What it gains and costs is measured by `benchmarks/networks.py compiled`; nothing uses it unasked.
"""

import warnings
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch._dynamo.exc import TorchDynamoException


def compiled(network: nn.Module) -> Callable[..., Tensor]:
    """Return `network` as a function that is compiled at its first call and shares the network's parameters.

    Where that fails (no C++ compiler, no Triton), it warns with the reason once and calls the network itself.
    """
    run: Callable[..., Tensor] = torch.compile(network, dynamic=False)

    def call(*args: object, **options: object) -> Tensor:
        nonlocal run
        try:
            return run(*args, **options)
        except TorchDynamoException as error:
            if run is network:
                raise
            out: Tensor = network(*args, **options)  # a defect of the call, not of the machine, shows here
            reason = " ".join(str(error).split())[:200]
            warnings.warn(
                f"{type(network).__name__} runs uncompiled, as torch.compile failed here ({reason}): install a C++ "
                "compiler (on GPUs Triton) to compile it.",
                RuntimeWarning,
                stacklevel=2,
            )
            run = network
            return out

    return call
