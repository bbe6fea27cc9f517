"""Random augmentation of training images, drawn for each image and applied to the whole batch at once.

The set is that of the SPRUCE thesis (section 6.2.1): resized crop, mirroring, affine map, brightness and contrast.
Crop and affine map are one resampling and not two, so that an image is blurred once. Draws and their application are
apart: a process that works on a part of the batch draws for all of it and applies its own rows.
"""

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional

from audit.data.colour import luma
from audit.training.classifier.config import AugmentationConfig

CROP_RATIO = 4 / 3
"""Most that a crop's sides may differ, either way (the default of torchvision's RandomResizedCrop)."""

Draws = Mapping[str, Tensor]
"""Random parameters by name, `[N, ...]` each; absent where the configuration leaves a change out."""


def _uniform(low: float | Tensor, high: float | Tensor, n: int, generator: torch.Generator) -> Tensor:
    return low + (high - low) * torch.rand(n, generator=generator)


def _crop(smallest: float, n: int, generator: torch.Generator) -> Tensor:
    """Draw crops `[N, 4]`: width and height as shares of the image, and their centre in [-1, 1] coordinates.

    The area is uniform in [smallest, 1]; the ratio of the sides log-uniform among those that fit into the image.
    """
    area = _uniform(smallest, 1.0, n, generator)
    widest = torch.minimum(torch.full_like(area, CROP_RATIO), 1 / area).log()
    root = _uniform(-widest, widest, n, generator).div(2).exp()
    width, height = (area.sqrt() * root).clamp(max=1), (area.sqrt() / root).clamp(max=1)
    x, y = _uniform(width - 1, 1 - width, n, generator), _uniform(height - 1, 1 - height, n, generator)
    return torch.stack([width, height, x, y], dim=1)


def draw(config: AugmentationConfig, n: int, generator: torch.Generator) -> Draws:
    """Draw the parameters of `n` images from `generator` (on the CPU) alone.

    The order of the draws is fixed, and a change that is off draws nothing.
    """
    out: dict[str, Tensor] = {}
    if config.shift:
        out["shift"] = torch.randint(-config.shift, config.shift + 1, (2, n), generator=generator).T
    if config.flip:
        out["flip"] = torch.rand(n, generator=generator) < config.flip
    if config.crop < 1:
        out["crop"] = _crop(config.crop, n, generator)
    limits = (config.rotation, config.shear, config.scaling, config.translation, config.translation)
    if any(limits):
        names = ("angle", "shear", "scale", "x", "y")
        out |= {f"affine_{k}": _uniform(-v, v, n, generator) for k, v in zip(names, limits, strict=True)}
    for name, width in (("brightness", config.brightness), ("contrast", config.contrast)):
        if width:
            out[name] = _uniform(1 - width, 1 + width, n, generator)
    return out


def _shifted(images: Tensor, moves: Tensor) -> Tensor:
    n, _, height, width = images.shape
    rows = (torch.arange(height) + moves[:, :1]).clamp(0, height - 1)
    columns = (torch.arange(width) + moves[:, 1:]).clamp(0, width - 1)
    picked = images.permute(0, 2, 3, 1)[torch.arange(n)[:, None, None], rows[:, :, None], columns[:, None, :]]
    return picked.permute(0, 3, 1, 2)


def _matrices(rows: list[list[Tensor]]) -> Tensor:
    return torch.stack([torch.stack(row, dim=1) for row in rows], dim=1)


def affine_maps(draws: Draws, n: int, height: int, width: int) -> Tensor:
    """Return the maps `[N, 2, 3]` from output to input coordinates in [-1, 1], as `affine_grid` wants them.

    The affine map is that of torchvision: about the centre, first x-shear, then scaling, rotation and translation, in
    pixels, so that an image that is not square is turned and not sheared. The crop is applied before it.
    """
    one, none = torch.ones(n), torch.zeros(n)
    total = _matrices([[one, none, none], [none, one, none], [none, none, one]])
    if "affine_angle" in draws:
        angle, shear = (torch.deg2rad(draws[f"affine_{k}"]) for k in ("angle", "shear"))
        scale = 1 + draws["affine_scale"]
        sin, cos, tan = angle.sin() * scale, angle.cos() * scale, shear.tan()
        x, y = draws["affine_x"] * width, draws["affine_y"] * height
        forward = _matrices([[cos, -cos * tan - sin, x], [sin, -sin * tan + cos, y], [none, none, one]])
        pixels = torch.diag(torch.tensor([width / 2, height / 2, 1.0]))
        total = torch.linalg.inv(pixels) @ torch.linalg.inv(forward) @ pixels
    if "crop" in draws:
        across, down, x, y = draws["crop"].unbind(dim=1)
        total = _matrices([[across, none, x], [none, down, y], [none, none, one]]) @ total
    return total[:, :2]


def apply(images: Tensor, draws: Draws) -> Tensor:
    """Change `images` `[N, C, H, W]` in [0, 1] by `draws` of as many rows; the result lies in [0, 1] again.

    What comes into view from outside the image repeats its edge.
    """
    n, channels, height, width = images.shape
    if "shift" in draws:
        images = _shifted(images, draws["shift"])
    if "flip" in draws:
        images = torch.where(draws["flip"][:, None, None, None], images.flip(3), images)
    if "crop" in draws or "affine_angle" in draws:
        grid = functional.affine_grid(affine_maps(draws, n, height, width), [*images.shape], align_corners=False)
        images = functional.grid_sample(images, grid, padding_mode="border", align_corners=False).clamp(0, 1)
    if "brightness" in draws:
        images = (images * draws["brightness"][:, None, None, None]).clamp(0, 1)
    if "contrast" in draws:
        grey = luma(images) if channels == 3 else images.mean(dim=1, keepdim=True)
        middle = grey.mean(dim=(1, 2, 3), keepdim=True)
        images = torch.lerp(middle, images, draws["contrast"][:, None, None, None]).clamp(0, 1)
    return images.contiguous()


def augment(images: Tensor, config: AugmentationConfig, generator: torch.Generator) -> Tensor:
    """Draw and apply the changes that `config` asks for to a whole batch `[N, C, H, W]` in [0, 1]."""
    return apply(images, draw(config, len(images), generator))
