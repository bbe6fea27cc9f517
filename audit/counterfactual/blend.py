"""Blend an edit into its inversion: what cannot be seen of it is taken out, and what can be seen stays whole.

A code of the generator changes the whole image: where a marker fades, ribs move by a hair. With x the inversion and
G(w) what the code draws, the edit is

    x + M (G(w) - x)

where M is 1 around the pixels that are changed visibly, 0 far from them, and soft between. Jeanneret et al. 2023 make
the region of a counterfactual in the same way, a threshold and a dilation, and fill the rest by a diffusion model; here
the rest is the inversion's. Free weights of a coarse grid, tried first, cut objects in half (benchmarks/README.md).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, max_pool2d

from audit.generator.held import Held
from audit.generator.protocol import Generator
from audit.metrics.edit import VISIBLE

BASE, MASKS = "blend/base", "blend/masks"
"""Names beside the additions to the generator's weights; no parameter has a slash in its name."""
AROUND, SOFT = 32, 64
"""Parts of the side: by one of the former what is seen reaches out, by one of the latter it fades."""


def blended(inversions: Tensor, drawn: Tensor, masks: Tensor) -> Tensor:
    """Blend images `drawn [N, C, H, W]` into `inversions` by `masks [N, 1, H, W]` in [0, 1]."""
    return inversions + masks * (drawn - inversions)


def around_visible(edits: Tensor) -> Tensor:
    """Return masks `[N, 1, H, W]` in [0, 1] of what is seen of `edits [N, C, H, W]`; 1 where nothing is.

    A pixel is seen where it changes by more than `VISIBLE` in any channel.
    """
    side = edits.shape[-1]
    far, soft = max(1, round(side / AROUND)), max(1, round(side / SOFT))
    seen = (edits.abs().amax(dim=1, keepdim=True) > VISIBLE).to(edits)
    near = max_pool2d(seen, 2 * far + 1, 1, far)
    masks = avg_pool2d(near, 2 * soft + 1, 1, soft, count_include_pad=False)
    return torch.where(seen.flatten(1).any(dim=1).view(-1, 1, 1, 1), masks, torch.ones_like(masks))


def with_blend(additions: Mapping[str, Tensor], base: Tensor, masks: Tensor) -> dict[str, Tensor]:
    """Return what images that are blends are drawn with: `additions`, and what they are blended into and where."""
    return {**additions, BASE: base, MASKS: masks}


@dataclass(frozen=True)
class _Blending:
    """Draws blends where the additions hold what they are blended into; all else is the generator's own."""

    generator: Generator

    def __getattr__(self, name: str) -> Any:
        return getattr(self.generator, name)

    def images(self, ws: Tensor, deltas: Held) -> Tensor:
        own = deltas.without((BASE, MASKS))
        return blended(deltas[BASE], self.generator.images(ws, deltas=own), deltas[MASKS])


def drawing(generator: Generator, additions: Mapping[str, Any]) -> Generator:
    """Return what draws images of codes with `additions`: the generator, or blends of what it draws."""
    return cast(Generator, _Blending(generator)) if MASKS in additions else generator
