"""What inversion, search and the training of encoders need of a generator; StyleGAN2 is one, a package may add another.

A generator draws an image from `num_ws` codes of `w_dim` numbers each (w+; one code repeated is a point of W, the space
that random codes are drawn from). It comes in evaluation mode, and its own parameters take no gradient.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

import torch
from torch import Tensor

from audit.errors import GeneratorError
from audit.generator.stylegan2.discriminator import Discriminator


class Generator(Protocol):
    """Draws square images from codes."""

    @property
    def resolution(self) -> int:
        """Side of the images in pixels."""
        ...

    @property
    def channels(self) -> int:
        """Channels of the images: 1 (grey) or 3 (RGB)."""
        ...

    @property
    def num_ws(self) -> int:
        """Codes that draw one image."""
        ...

    @property
    def w_dim(self) -> int:
        """Numbers of a code."""
        ...

    @property
    def mean_code(self) -> Tensor:
        """Mean `[w_dim]` of random codes, on the device on which the generator works."""
        ...

    @property
    def tunable(self) -> Mapping[str, torch.Size]:
        """Names and shapes of the parameters that can be changed for every image; empty if there are none."""
        ...

    @property
    def weights_sha256(self) -> str:
        """Hash of the weights, hexadecimal, by which an encoder knows the generator that it was trained for."""
        ...

    def random_codes(self, n: int, rng: torch.Generator) -> Tensor:
        """Draw `n` codes of W, float32 `[n, w_dim]`; all randomness comes from `rng`, which may be on the CPU."""
        ...

    def draw(self, ws: Tensor, deltas: Mapping[str, Tensor] | None = None) -> Tensor:
        """Draw float32 `[N, channels, resolution, resolution]` from codes `[N, num_ws, w_dim]`, black 0 and white 1.

        Values out of [0, 1] are not clamped, so that they have a gradient back. `deltas` hold an addition
        `[N, *shape]` to each of some `tunable` parameters. An image does not depend on the others of the batch.
        """
        ...

    def images(self, ws: Tensor, deltas: Mapping[str, Tensor] | None = None) -> Tensor:
        """Draw as `draw` does, clamped to [0, 1]."""
        ...


G = TypeVar("G", bound=Generator, covariant=True)


@dataclass(frozen=True)
class Loaded(Generic[G]):
    """A generator ready to draw, and where it came from.

    `sha256` stands for it in caches and results; for a file it is the file's hash. `notes` say in words what the source
    left open, and become notices of the results; `metadata` are the source's own words. Only StyleGAN2's discriminator
    serves as an embedding. `package` gives the reader; None if it is built in.
    """

    generator: G
    sha256: str
    discriminator: Discriminator | None = None
    metadata: dict[str, str] = field(default_factory=dict)
    format: str = ""
    notes: tuple[str, ...] = ()
    package: str | None = None


LoadedGenerator = Loaded[Generator]
"""What an audit works with: a generator of any kind."""


def check_fits(generator: Generator, image_shape: tuple[int, int, int]) -> None:
    """Raise GeneratorError unless the generator draws images of `image_shape` (channels, height, width)."""
    drawn = (generator.channels, generator.resolution, generator.resolution)
    if drawn != tuple(image_shape):
        raise GeneratorError(
            f"The generator draws images of shape {drawn} (channels, height, width) but the data has "
            f"{tuple(image_shape)}: set data.image_size = {generator.resolution} and data.channels = "
            f"{generator.channels}, or train a generator on these data."
        )
