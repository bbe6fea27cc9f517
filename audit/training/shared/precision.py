"""Mixed precision: the network's forward pass in 16 bits, logits, loss, weights and optimiser in 32.

Micikevicius et al. 2018 ("Mixed precision training"): float16 needs the loss scaled so that small gradients do not
vanish; bfloat16 has the range of float32 and needs none.
"""

import torch
from torch import nn

from audit.classifiers.precision import Autocast
from audit.config import Precision
from audit.errors import ConfigError


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
