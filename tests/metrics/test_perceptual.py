"""Perceptual distance: a metric-like function of images, against its formula, with gradient."""

import pytest
import torch
from torch import Tensor, nn

from audit.errors import MetricError
from audit.metrics.perceptual import distance_of_maps, perceptual_all, perceptual_distance, unit_channels


class SmallConvolution(nn.Module):
    """A random two-layer convolution as a feature network."""

    name = "small-convolution"
    weights_sha256 = "0" * 64

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.first = nn.Parameter(torch.randn(8, 1, 3, 3, generator=generator), requires_grad=False)
        self.second = nn.Parameter(torch.randn(6, 8, 3, 3, generator=generator), requires_grad=False)

    def maps(self, images: Tensor) -> list[Tensor]:
        first = nn.functional.conv2d(images, self.first, padding=1).relu()
        return [first, nn.functional.conv2d(first, self.second, stride=2, padding=1).relu()]

    def embed(self, images: Tensor) -> Tensor:
        return self.maps(images)[-1].mean((2, 3))


def pair() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    return torch.rand(5, 1, 10, 10, generator=generator), torch.rand(5, 1, 10, 10, generator=generator)


def test_zero_for_equal_images_symmetric_and_positive() -> None:
    network, (a, b) = SmallConvolution(), pair()
    assert torch.equal(perceptual_distance(network, a, a), torch.zeros(5))
    assert torch.allclose(perceptual_distance(network, a, b), perceptual_distance(network, b, a))
    assert (perceptual_distance(network, a, b) > 0).all()


def test_closed_form_of_orthogonal_and_opposite_features() -> None:
    first = torch.tensor([3.0, 0.0])[None, :, None, None].expand(1, 2, 4, 4)
    second = torch.tensor([0.0, 0.2])[None, :, None, None].expand(1, 2, 4, 4)
    assert float(distance_of_maps(unit_channels([first]), unit_channels([second]))) == pytest.approx(2, abs=1e-6)
    assert float(distance_of_maps(unit_channels([first]), unit_channels([-first]))) == pytest.approx(4, abs=1e-6)
    mixed = distance_of_maps(unit_channels([first, first]), unit_channels([second, first]))
    assert float(mixed) == pytest.approx(1, abs=1e-6)


def test_gradient_is_finite_even_where_features_are_all_zero() -> None:
    network = SmallConvolution()
    image = torch.zeros(1, 1, 10, 10, requires_grad=True)
    perceptual_distance(network, image, pair()[1][:1]).sum().backward()
    assert image.grad is not None
    assert torch.isfinite(image.grad).all()


def test_batched_equals_whole() -> None:
    network, (a, b) = SmallConvolution(), pair()
    assert torch.allclose(perceptual_all(network, a, b, batch_size=2), perceptual_distance(network, a, b), atol=1e-6)


def test_bad_pairs_are_refused() -> None:
    network, (a, b) = SmallConvolution(), pair()
    with pytest.raises(MetricError, match="shape"):
        perceptual_distance(network, a, b[:3])
    with pytest.raises(MetricError, match="expected"):
        perceptual_distance(network, a * 2 - 1, b)
    with pytest.raises(MetricError, match="layers"):
        distance_of_maps([], [])
