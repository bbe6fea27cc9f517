"""The phantom's own feature network: it regresses the causal factors and never saw an audited model.

Realism and the judge of transfer use its penultimate features, the perceptual distance its feature maps. Results name
it `phantom-factors`.
"""

import json
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from audit.embeddings.layers import convolution
from audit.errors import MetricError
from audit.storage.files import hash_file
from audit.storage.tensors.tensor_files import read_safetensors

NAME = "phantom-factors"
IMAGE_SHAPE = (1, 64, 64)
WIDTHS = (24, 48, 64, 96)
FEATURES = 96


class PhantomFactors(nn.Module):
    """Small convolutional regressor of standardised factors from grey 64x64 images in [0, 1].

    `factor_names` (F) fixes the order of the outputs; the buffers `factor_mean` and `factor_std` `[F]` turn them back
    into the phantom's units. As a feature network it offers `name`, `weights_sha256`, `embed` and `maps`.
    """

    name = NAME
    factor_mean: Tensor
    factor_std: Tensor

    def __init__(self, factor_names: tuple[str, ...]) -> None:
        super().__init__()
        self.factor_names = tuple(factor_names)
        self.weights_sha256 = ""
        first, second, third, fourth = WIDTHS
        self.stages = nn.ModuleList(
            [
                nn.Sequential(convolution(1, first, 2), convolution(first, first, 1)),
                nn.Sequential(convolution(first, second, 2), convolution(second, second, 1)),
                nn.Sequential(convolution(second, third, 2), convolution(third, third, 1)),
                nn.Sequential(convolution(third, fourth, 2), convolution(fourth, fourth, 1)),
            ]
        )
        # Flattened, not pooled: where a thing lies is among the factors.
        self.squeeze = nn.Conv2d(fourth, 24, 1)
        self.penultimate = nn.Sequential(nn.Flatten(), nn.Linear(24 * 16, FEATURES), nn.LayerNorm(FEATURES), nn.SiLU())
        self.head = nn.Linear(FEATURES, len(self.factor_names))
        self.register_buffer("factor_mean", torch.zeros(len(self.factor_names)))
        self.register_buffer("factor_std", torch.ones(len(self.factor_names)))

    def maps(self, images: Tensor) -> list[Tensor]:
        """Return the feature maps of the four stages, `[N, c, h, w]` with h = w = 32, 16, 8, 4."""
        if images.ndim != 4 or tuple(images.shape[1:]) != IMAGE_SHAPE:
            raise MetricError(
                f"'{NAME}' reads grey 64x64 images [N, 1, 64, 64]; given: {tuple(images.shape)}. "
                "Name another embedding for such images."
            )
        out, hidden = [], images * 2 - 1
        for stage in self.stages:
            hidden = stage(hidden)
            out.append(hidden)
        return out

    def embed(self, images: Tensor) -> Tensor:
        """Return the penultimate features `[N, 96]` of images `[N, 1, 64, 64]` in [0, 1]."""
        features: Tensor = self.penultimate(self.squeeze(self.maps(images)[-1]))
        return features

    def forward(self, images: Tensor) -> Tensor:
        """Return standardised factors `[N, F]`."""
        factors: Tensor = self.head(self.embed(images))
        return factors

    def factors(self, images: Tensor) -> Tensor:
        """Return the factors `[N, F]` in the phantom's units."""
        return self(images) * self.factor_std + self.factor_mean


def load_phantom_factors(path: str | Path) -> PhantomFactors:
    """Read the network from safetensors, in evaluation mode and frozen; raises MetricError naming the file."""
    file = Path(path)
    if not file.is_file():
        raise MetricError(f"Weights of '{NAME}' are not at '{file}': check the path or reinstall the package.")
    try:
        tensors, metadata = read_safetensors(file)
        network = PhantomFactors(tuple(json.loads(metadata["factor_names"])))
        network.load_state_dict(tensors)
    except (SafetensorError, KeyError, RuntimeError) as error:
        raise MetricError(f"'{file}' does not hold the weights of '{NAME}' ({error}): train them again.") from None
    network.weights_sha256 = hash_file(file)
    return network.eval().requires_grad_(False)
