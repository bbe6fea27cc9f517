"""Blend an edit into its inversion, place by place: what it changes where nothing depends on it goes.

A code of the generator changes the whole image. With x the inversion and G(w) what the code draws, the edit is

    x + M (G(w) - x)

with M in [0, 1] interpolated bilinearly from shares on a coarse grid: soft and large beside the pixels, so that it can
leave out a part of an edit but draw none. Other counterfactual methods keep the image outside a region, too, that of a
threshold or of a user (Jeanneret et al. 2023; Sobieski et al. 2025); here the search finds it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

from torch import Tensor
from torch.nn.functional import interpolate

from audit.generator.held import Held
from audit.generator.protocol import Generator

BASE, SHARES = "blend/base", "blend/shares"
"""Names beside the additions to the generator's weights; no parameter has a slash in its name."""


def blended(inversions: Tensor, drawn: Tensor, shares: Tensor) -> Tensor:
    """Blend images `drawn [N, C, H, W]` into `inversions` by `shares [N, 1, g, g]` of cells of a grid, in [0, 1]."""
    return inversions + interpolate(shares, size=drawn.shape[-2:], mode="bilinear") * (drawn - inversions)


def with_blend(additions: Mapping[str, Tensor], base: Tensor, shares: Tensor) -> dict[str, Tensor]:
    """Return what images that are blends are drawn with: `additions`, and what they are blended into and where."""
    return {**additions, BASE: base, SHARES: shares}


@dataclass(frozen=True)
class _Blending:
    """Draws blends where the additions hold what they are blended into; all else is the generator's own."""

    generator: Generator

    def __getattr__(self, name: str) -> Any:
        return getattr(self.generator, name)

    def images(self, ws: Tensor, deltas: Held) -> Tensor:
        own = deltas.without((BASE, SHARES))
        return blended(deltas[BASE], self.generator.images(ws, deltas=own), deltas[SHARES])


def drawing(generator: Generator, additions: Mapping[str, Any]) -> Generator:
    """Return what draws images of codes with `additions`: the generator, or blends of what it draws."""
    return cast(Generator, _Blending(generator)) if SHARES in additions else generator
