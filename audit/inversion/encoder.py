"""Encoder of images into W+ (one code w and a small offset per layer), and the loading of its files.

Source: Tov et al., "Designing an Encoder for StyleGAN Image Manipulation" (e4e, 2021), section 4.1; Litsos 2025 section
5.5.4. The residual trunk ends in 4x4 maps and not in one mean, because positions in the image are part of the code.
"""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.nn import functional as F

from audit.config import is_shipped
from audit.errors import ConfigError, GeneratorError
from audit.generator.protocol import Generator
from audit.storage import shipped
from audit.storage.tensors.tensor_files import fill_weights, read_safetensors

FORMAT = "spruce-audit encoder 1"
GROUPS = 8


class ResidualBlock(nn.Module):
    """Two normalised 3x3 convolutions and a pooled skip; halves the resolution."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.norm0, self.norm1 = nn.GroupNorm(GROUPS, inputs), nn.GroupNorm(GROUPS, outputs)
        self.conv0 = nn.Conv2d(inputs, outputs, 3, stride=2, padding=1)
        self.conv1 = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.skip = nn.Conv2d(inputs, outputs, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv0(F.silu(self.norm0(x)))
        return self.skip(F.avg_pool2d(x, 2)) + self.conv1(F.silu(self.norm1(y)))


class Encoder(nn.Module):
    """Images `[N, C, R, R]` in [0, 1] to codes `[N, L, w_dim]`; R a power of two from 16 to 1024.

    `width` is the number of maps at 16x16 and below (a multiple of 16). The first layer takes w itself, layer i > 0
    takes w + offset i. Codes come out in the generator's units by way of the buffers `mean` `[w_dim]` and `unit` `[]`.
    """

    mean: Tensor
    unit: Tensor

    def __init__(self, resolution: int, channels: int, num_ws: int, w_dim: int, width: int, generator_sha256: str):
        super().__init__()
        self.num_ws, self.w_dim, self.generator_sha256 = num_ws, w_dim, generator_sha256
        self.settings = {
            "resolution": resolution,
            "channels": channels,
            "num_ws": num_ws,
            "w_dim": w_dim,
            "width": width,
            "generator_sha256": generator_sha256,
        }

        def maps(size: int) -> int:
            return min(width, max(16, 16 * width // size))

        self.stem = nn.Conv2d(channels, maps(resolution), 3, padding=1)
        blocks = []
        while resolution > 4:
            blocks.append(ResidualBlock(maps(resolution), maps(resolution // 2)))
            resolution //= 2
        self.trunk = nn.Sequential(*blocks, nn.GroupNorm(GROUPS, width), nn.SiLU(), nn.Flatten())
        self.code = nn.Linear(16 * width, w_dim)
        self.offsets = nn.Linear(16 * width, (num_ws - 1) * w_dim)
        nn.init.zeros_(self.offsets.weight)
        nn.init.zeros_(self.offsets.bias)
        self.register_buffer("mean", torch.zeros(w_dim))
        self.register_buffer("unit", torch.ones([]))

    def forward(self, images: Tensor, unlocked: int | None = None) -> Tensor:
        """Return codes `[N, L, w_dim]`; only the first `unlocked` offsets are used (all when None)."""
        features = self.trunk(self.stem(images * 2 - 1))
        offsets = self.offsets(features).reshape(len(images), self.num_ws - 1, self.w_dim)
        if unlocked is not None:
            used = torch.arange(self.num_ws - 1, device=offsets.device) < unlocked
            offsets = offsets * used[:, None]
        return self.mean + self.unit * (self.code(features)[:, None] + F.pad(offsets, (0, 0, 1, 0)))

    def check_generator(self, generator: Generator) -> None:
        """Raise GeneratorError unless the encoder was trained for exactly this generator."""
        found = generator.weights_sha256
        if found != self.generator_sha256:
            raise GeneratorError(
                f"The encoder belongs to another generator (weights {self.generator_sha256[:12]}) than the audit's "
                f"(weights {found[:12]}): train one with `spruce-audit train encoder`, or leave out inversion.encoder."
            )


def _settings(text: str) -> dict[str, Any]:
    """Read `Encoder`'s arguments; raises ValueError on what is no network of ours."""
    said = json.loads(text)
    keys = ("resolution", "channels", "num_ws", "w_dim", "width")
    counts = [said.get(key) for key in keys] if isinstance(said, dict) else [None]
    if not all(isinstance(n, int) and 1 <= n <= 2**15 for n in counts):
        raise ValueError("its architecture is not one of ours")
    return dict(said)


def load_encoder(path: str | Path, device: torch.device | str = "cpu") -> Encoder:
    """Open `shipped:NAME` or a safetensors file, frozen and in evaluation mode; raises GeneratorError."""
    file = shipped.locate("encoders", path)
    if not file.is_file():
        raise GeneratorError(f"Encoder file '{file}' does not exist: check inversion.encoder.")
    try:
        tensors, metadata = read_safetensors(file)
        settings = _settings(metadata["encoder"])
        with torch.device("meta"):  # shapes only: what a file says of itself allocates nothing
            encoder = Encoder(**settings)
        fill_weights(encoder, tensors)
    except (SafetensorError, OSError, KeyError, TypeError, ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[-1].strip()[:200]
        raise GeneratorError(
            f"Encoder file '{file}' cannot be read ({reason}): train one with `spruce-audit train encoder`."
        ) from None
    for name, value in tensors.items():
        if not torch.isfinite(value).all():
            raise GeneratorError(f"Tensor '{name}' of encoder file '{file}' holds NaN or infinity: train again.")
    return encoder.to(device).eval().requires_grad_(False)


def encoder_beside(generator_path: str) -> str | None:
    """The encoder that comes with a generator: shipped under the same name, or `encoder.safetensors` in its folder."""
    if is_shipped(generator_path):
        try:
            shipped.locate("encoders", generator_path)
        except ConfigError:
            return None
        return generator_path
    file = Path(generator_path).parent / "encoder.safetensors"
    return str(file) if file.is_file() else None
