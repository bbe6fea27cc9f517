"""Digital processing: brightness, contrast, elastic transform, pixelation and JPEG compression.

Hendrycks & Dietterich 2019, section 3. Elastic displacements follow the image's side;
pixelation is a share of the image's own pixels and JPEG works in blocks of 8x8 pixels, at every size.
"""

from io import BytesIO

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from audit.robustness.corruptions.constants import IMAGENET_C, Constants
from audit.robustness.corruptions.filters import (
    gaussian_blur,
    gaussian_weights,
    length_scale,
    pixel_grid,
    sample,
    uniform,
)

ELASTIC_SMALLEST_SIGMA = 1.0
"""Neighbouring pixels move together; without this floor small images would see pixels jump one by one."""
ELASTIC_WIDE = 0.1
"""Smoothing, as a share of the side, from which a repeated edge would weigh too much in it; then it is mirrored."""


def brightness(images: Tensor, severity: int, generator: torch.Generator, published: Constants = IMAGENET_C) -> Tensor:
    """Raise the value of the HSV colour space; other than three channels are raised each by itself."""
    more = published.brighter[severity - 1]
    if images.shape[1] != 3:
        return images + more
    value = images.amax(dim=1, keepdim=True)
    # At fixed hue and saturation the colour is proportional to the value; black has no hue and turns grey.
    raised = (value + more).clamp_max(1)
    return torch.where(value > 0, images * (raised / value.clamp_min(1e-8)), raised)


def contrast(images: Tensor, severity: int, generator: torch.Generator, published: Constants = IMAGENET_C) -> Tensor:
    """Pull every channel towards its mean over the image."""
    means = images.mean(dim=(2, 3), keepdim=True)
    return (images - means) * published.contrast[severity - 1] + means


def elastic_transform(
    images: Tensor, severity: int, generator: torch.Generator, published: Constants = IMAGENET_C
) -> Tensor:
    """Displace pixels by smoothed random offsets (Simard et al. 2003), in CIFAR-10-C after a random affine map."""
    strength, reach, smoothing, moved = published.elastic[severity - 1]
    side = min(images.shape[-2:])
    if moved:
        images = sample(images, _affine_places(images, moved * side, generator), "reflection")
    if not strength:
        return images
    sigma = max(smoothing * side, ELASTIC_SMALLEST_SIGMA)
    drawn = uniform((len(images), 2, *images.shape[-2:]), -1, 1, generator, images)
    smooth = gaussian_blur(drawn, sigma, truncate=3, edge="reflect" if sigma > ELASTIC_WIDE * side else "replicate")
    # Smoothing white noise keeps the share sum(w^2) of its standard deviation: the size of offsets in units of the
    # side is that of the list's own side for every smoothing.
    kept_there = _kept_by_smoothing(smoothing * published.side)
    reach = reach * published.side * length_scale(images, published.side) * kept_there / _kept_by_smoothing(sigma)
    return sample(images, pixel_grid(images) + smooth * (reach * strength), "reflection")


def _affine_places(images: Tensor, most: float, generator: torch.Generator) -> Tensor:
    """Where `[N, 2, H, W]` each pixel is read from, so that three points around the centre move by up to `most` pixels.

    The points lie a third of the side from the centre, at three corners of a square.
    """
    h, w = images.shape[-2:]
    centre, away = images.new_tensor([h // 2, w // 2]), min(h, w) // 3
    points = centre + away * images.new_tensor([[1, 1], [-1, 1], [-1, -1]])
    moved = points + uniform((len(images), 3, 2), -most, most, generator, images)
    ones = torch.ones_like(moved[..., :1])
    # The map from moved points back to the points: solve [moved, 1] @ map = points.
    back = torch.linalg.solve(torch.cat([moved, ones], dim=2), points.expand_as(moved))
    grid = torch.cat([pixel_grid(images), torch.ones_like(images[0, :1])]).flatten(1)
    return (back.transpose(1, 2) @ grid).reshape(len(images), 2, h, w)


def _kept_by_smoothing(sigma: float) -> float:
    return float((gaussian_weights(sigma, truncate=3) ** 2).sum())


def pixelate(images: Tensor, severity: int, generator: torch.Generator, published: Constants = IMAGENET_C) -> Tensor:
    """Average the image over a coarser grid of cells and show the cells."""
    kept = published.kept[severity - 1]
    h, w = images.shape[-2:]
    row_cells, column_cells = _cells(h, kept, images), _cells(w, kept, images)
    coarse = _averaging(row_cells) @ images @ _averaging(column_cells).T
    return coarse[:, :, row_cells][..., column_cells]


def _cells(side: int, kept: float, images: Tensor) -> Tensor:
    """Index `[side]` of the coarse cell in which each pixel's centre lies."""
    count = max(int(side * kept), 1)
    return ((torch.arange(side, device=images.device) + 0.5) * (count / side)).long()


def _averaging(cells: Tensor) -> Tensor:
    """Matrix `[cells, side]` that averages the pixels of each cell."""
    member = (cells[None] == torch.arange(int(cells[-1]) + 1, device=cells.device)[:, None]).float()
    return member / member.sum(dim=1, keepdim=True)


def jpeg_compression(
    images: Tensor, severity: int, generator: torch.Generator, published: Constants = IMAGENET_C
) -> Tensor:
    """Write and read as JPEG."""
    return jpeg(images, published.quality[severity - 1])


def jpeg(images: Tensor, quality: int) -> Tensor:
    """Write and read as JPEG of `quality` 1 to 100; two and four channels are written each as a grey image."""
    n, c, h, w = images.shape
    planes = images if c == 3 else images.reshape(n * c, 1, h, w)
    pictures = (planes * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
    read = np.stack([_through_jpeg(picture, quality) for picture in pictures])
    return (torch.from_numpy(read).to(images.device).permute(0, 3, 1, 2).float() / 255).reshape(n, c, h, w)


def _through_jpeg(picture: np.ndarray, quality: int) -> np.ndarray:
    """Compress a picture `[H, W, 1 or 3]` of bytes and read it back."""
    file = BytesIO()
    Image.fromarray(picture if picture.shape[2] == 3 else picture[..., 0]).save(file, "JPEG", quality=quality)
    return np.asarray(Image.open(file)).reshape(picture.shape)
