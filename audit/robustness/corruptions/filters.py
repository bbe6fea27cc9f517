"""What several corruptions share: scale of lengths, seeded draws, blurs, displacement of pixels, resizing.

Published lengths are pixels of an image of 224 (ImageNet-C) or 32 pixels (CIFAR-10-C). A length of `l` pixels there is
`l * side / 224` (`/ 32`) pixels here, with `side` the shorter side, so that a corruption destroys the same part of the
scene at every size. Kernels are antialiased, so a length below one pixel still acts and severities stay in order on
small images.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from audit.data.colour import luma


def length_scale(images: Tensor, reference: int) -> float:
    """Return how many pixels of `images` `[N, C, H, W]` make one pixel of an image of `reference` pixels."""
    return min(images.shape[-2:]) / reference


def uniform(shape: tuple[int, ...], low: float, high: float, generator: torch.Generator, like: Tensor) -> Tensor:
    """Draw `shape` uniformly from [low, high) on the generator's device; the result lies on the device of `like`."""
    drawn = torch.rand(shape, generator=generator, device=generator.device)
    return (drawn * (high - low) + low).to(like.device)


def normal(shape: tuple[int, ...], generator: torch.Generator, like: Tensor) -> Tensor:
    """Draw `shape` from the standard normal on the generator's device; the result lies on the device of `like`."""
    return torch.randn(shape, generator=generator, device=generator.device).to(like.device)


def gaussian_weights(sigma: float, truncate: float = 4.0) -> Tensor:
    """Return the sampled, normalised Gaussian `[2r + 1]` of `sigma` pixels, cut at `truncate` standard deviations."""
    radius = max(int(truncate * sigma + 0.5), 1)
    offsets = torch.arange(-radius, radius + 1, dtype=torch.float64)
    weights = torch.exp(-(offsets**2) / (2 * sigma**2))
    return (weights / weights.sum()).float()


def gaussian_blur(images: Tensor, sigma: float, truncate: float = 4.0, edge: str = "replicate") -> Tensor:
    """Blur `[N, C, H, W]` with a Gaussian of `sigma` pixels, rows then columns; `edge` as in F.pad."""
    n, c, h, w = images.shape
    weights = gaussian_weights(sigma, truncate).to(images.device)
    radius = len(weights) // 2
    planes = F.pad(images.reshape(n * c, 1, h, w), (radius,) * 4, mode=edge)
    planes = F.conv2d(planes, weights[None, None, None, :])
    return F.conv2d(planes, weights[None, None, :, None]).reshape(n, c, h, w)


def convolve(images: Tensor, kernels: Tensor, edge: str) -> Tensor:
    """Convolve `[N, C, H, W]` with kernels `[N or 1, k, k]`, k odd, in the Fourier domain; `edge` as in F.pad.

    Cost does not grow with the kernel's area, and every image may have its own kernel.
    """
    h, w = images.shape[-2:]
    size = kernels.shape[-1]
    radius = size // 2
    padded = F.pad(images, (radius,) * 4, mode=edge)
    shape = (h + 2 * radius, w + 2 * radius)
    # The padded image holds every pixel a kernel reaches, so the circular wrap falls outside the crop below.
    spectrum = torch.fft.rfft2(padded) * torch.fft.rfft2(kernels, s=shape)[:, None]
    return torch.fft.irfft2(spectrum, s=shape)[..., 2 * radius :, 2 * radius :]


def pixel_grid(images: Tensor) -> Tensor:
    """Return the coordinates `[2, H, W]` (row, column) of the pixels of `[N, C, H, W]`."""
    h, w = images.shape[-2:]
    rows = torch.arange(h, device=images.device, dtype=images.dtype)
    columns = torch.arange(w, device=images.device, dtype=images.dtype)
    return torch.stack(torch.meshgrid(rows, columns, indexing="ij"))


def sample(images: Tensor, places: Tensor, edge: str) -> Tensor:
    """Read `[N, C, H, W]` bilinearly at `places` `[N, 2, h, w]` (row, column; pixels); `edge` as in F.grid_sample."""
    h, w = images.shape[-2:]
    rows = (places[:, 0] * 2 + 1) / h - 1
    columns = (places[:, 1] * 2 + 1) / w - 1
    return F.grid_sample(images, torch.stack([columns, rows], dim=-1), padding_mode=edge, align_corners=False)


def luminance(images: Tensor) -> Tensor:
    """Return the grey image `[N, 1, H, W]`: Rec. 601 luma of three channels, otherwise the mean of the channels."""
    return luma(images) if images.shape[1] == 3 else images.mean(dim=1, keepdim=True)
