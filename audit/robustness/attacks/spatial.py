"""The worst rotation and translation of a grid (Engstrom et al. 2019, arXiv 1712.02779, section 3.2: grid search).

No norm bounds these images: a shift by one pixel may change every pixel. What bounds them is the grid, which is tried
whole, from the smallest transformation to the largest, so that the image that comes back is the least transformed one
of the grid that fools. The loss is so far from concave in the angle and the shifts that gradient ascent finds less
than a grid does (section 5.1 there).
"""

import math
from itertools import product
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from audit.classifiers.mode import preserve_mode
from audit.config import Section, parse_config
from audit.robustness.attacks.ball import Norm
from audit.robustness.attacks.checks import checked_logits

NAME = "rotation-translation"


class SpatialGrid(Section):
    """The grid; its defaults are those of the paper."""

    degrees: float = Field(30, ge=0, le=180)
    shift: float = Field(0.1, ge=0, le=1)
    angles: int = Field(31, ge=1)
    shifts: int = Field(5, ge=1)
    padding: Literal["zeros", "border", "reflection"] = "zeros"

    @property
    def extent(self) -> str:
        """How far the grid reaches: the text that stands where a radius stands."""
        return f"{self.degrees:g}deg,{100 * self.shift:g}%"

    def transformations(self) -> list[tuple[float, float, float]]:
        """Return (angle in degrees, shift down, shift right) of every point, the smallest transformation first."""
        angles, shifts = _values(self.degrees, self.angles), _values(self.shift, self.shifts)

        def size(point: tuple[float, float, float]) -> float:
            angle, down, right = point
            return math.hypot(angle / (self.degrees or 1), down / (self.shift or 1), right / (self.shift or 1))

        return sorted(product(angles, shifts, shifts), key=size)


def _values(limit: float, n: int) -> list[float]:
    return torch.linspace(-limit, limit, n).tolist() if n > 1 else [0.0]


def grid_of(options: dict[str, Any]) -> SpatialGrid:
    """Return the grid that the options of the attack ask for; raises ConfigError."""
    return parse_config(SpatialGrid, options, f'[robustness.options."{NAME}"]')


def transformed(images: Tensor, point: tuple[float, float, float], padding: str) -> Tensor:
    """Return `images` `[N, C, H, W]` turned anticlockwise about their middle, then moved; bilinear, in [0, 1].

    `point` is (angle in degrees, shift down, shift right), the shifts as shares of height and width.
    """
    angle, down, right = point
    height, width = images.shape[2:]
    cos, sin = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    # Where each pixel comes from, in units of half the image's sides, so that an angle needs their ratio.
    matrix = torch.tensor([[cos, -sin * height / width, 0.0], [sin * width / height, cos, 0.0]], dtype=torch.float64)
    matrix[:, 2] = -matrix[:, :2] @ torch.tensor([2 * right, 2 * down], dtype=torch.float64)
    return resampled(images, matrix.tolist(), padding).clamp(0, 1)


def resampled(images: Tensor, rows: list[list[float]], padding: str) -> Tensor:
    """Read `images` `[N, C, H, W]` at the places that `rows` `[2, 3]` maps the output's to; bilinear.

    Places are (x, y) in units of half a side, from the middle.
    """
    theta = images.new_tensor(rows).expand(len(images), 2, 3)
    grid = functional.affine_grid(theta, list(images.shape), align_corners=False)
    return functional.grid_sample(images, grid, padding_mode=padding, align_corners=False)


def spatial_attack(
    classifier: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    eps: float,
    norm: Norm,
    generator: torch.Generator,
    **options: Any,
) -> Tensor:
    """Return for each of `images` `[N, C, H, W]` the least transformed one of the grid that fools, else the image.

    `options` are those of `SpatialGrid`. The classifier keeps its mode; neither `eps` nor `generator` plays a part.
    """
    grid = grid_of(options)
    result, left = images.clone(), torch.arange(len(images), device=images.device)
    with preserve_mode(classifier), torch.no_grad():
        for point in grid.transformations():
            if not len(left):
                break
            candidates = transformed(images[left], point, grid.padding)
            wrong = checked_logits(classifier, candidates).argmax(dim=1) != labels[left]
            result[left[wrong]] = candidates[wrong]
            left = left[~wrong]
    return result
