"""Mixed precision: the network's forward pass in 16 bits, logits, loss, weights and optimiser in 32.

Micikevicius et al. 2018 ("Mixed precision training"): float16 needs the loss scaled so that small gradients do not
vanish; bfloat16 has the range of float32 and needs none.
"""

from typing import Literal

import torch
from torch import Tensor, nn

from audit.errors import ConfigError

Precision = Literal["float32", "bfloat16", "float16"]


class Autocast(nn.Module):
    """A network whose forward pass runs in `dtype` and whose logits are float32.

    The cast ends with every forward pass: an objective may change weights between two passes, and the casts that
    autocast keeps would be those of the old weights.
    """

    def __init__(self, network: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.network = network
        self.dtype = dtype

    def forward(self, images: Tensor) -> Tensor:
        with torch.autocast(images.device.type, dtype=self.dtype):
            logits: Tensor = self.network(images)
        return logits.float()


def check_precision(precision: Precision, device: torch.device) -> None:
    """Raise ConfigError if `device` cannot train in `precision`."""
    if precision == "float16" and device.type != "cuda":
        raise ConfigError(
            f'optimiser.precision = "float16" needs a CUDA device and this is \'{device.type}\': set it to "bfloat16" '
            'or "float32".'
        )
    if precision == "bfloat16" and device.type == "cuda" and not torch.cuda.is_bf16_supported():
        raise ConfigError("optimiser.precision = 'bfloat16' is not supported by this GPU: set it to 'float16'.")


def in_precision(network: nn.Module, precision: Precision) -> nn.Module:
    """Return `network` itself for float32, else a wrapper that shares its weights and casts its forward pass."""
    return network if precision == "float32" else Autocast(network, getattr(torch, precision))
