"""Feature networks: the pixel contract at the door, batching, and the protocol."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from audit.data.audit_set import AuditSet
from audit.embeddings.embedding import Embedder, FeatureNetwork, check_embeddings, check_images, embed_all
from audit.errors import MetricError


class SmallConvolution(nn.Module):
    """A random two-layer convolution as a feature network."""

    name = "small-convolution"
    weights_sha256 = "0" * 64

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.first = nn.Parameter(torch.randn(8, 1, 3, 3, generator=generator))
        self.second = nn.Parameter(torch.randn(8, 8, 3, 3, generator=generator) / 5)

    def maps(self, images: Tensor) -> list[Tensor]:
        first = nn.functional.conv2d(images, self.first, padding=1).relu()
        return [first, nn.functional.conv2d(first, self.second, stride=2, padding=1).relu()]

    def embed(self, images: Tensor) -> Tensor:
        return self.maps(images)[-1].mean((2, 3))


def test_embed_all_equals_one_batch_and_keeps_the_network() -> None:
    network = SmallConvolution().train()
    images = torch.rand(7, 1, 12, 12, generator=torch.Generator().manual_seed(1))
    embedded = embed_all(network, images, batch_size=3)
    assert isinstance(network, FeatureNetwork)
    assert isinstance(network, Embedder)
    assert torch.allclose(embedded, network.embed(images).detach(), atol=1e-6)
    assert not embedded.requires_grad
    assert network.training
    assert all(p.requires_grad for p in network.parameters())


def test_embed_all_reads_an_audit_set_in_batches() -> None:
    pixels = (np.random.default_rng(0).random((5, 8, 8)) * 255).astype(np.uint8)
    rows = tuple(map(str, range(5)))
    data = AuditSet(lambda row: pixels[row], np.zeros(5), ("a",), rows, np.array(["test"] * 5), (1, 8, 8))
    network = SmallConvolution()
    assert torch.allclose(embed_all(network, data, 2), embed_all(network, data.images(), 5), atol=1e-6)


@pytest.mark.parametrize(
    "images",
    [
        torch.zeros(2, 8, 8),
        torch.zeros(2, 1, 8, 8, dtype=torch.uint8),
        torch.full((1, 1, 2, 2), 1.1),
        torch.full((1, 1, 2, 2), -0.1),
        torch.full((1, 1, 2, 2), torch.nan),
    ],
)
def test_images_outside_the_contract_are_refused(images: Tensor) -> None:
    with pytest.raises(MetricError):
        check_images(images, "images")


def test_no_images_are_refused() -> None:
    with pytest.raises(MetricError, match="no images"):
        embed_all(SmallConvolution(), torch.zeros(0, 1, 8, 8))


def test_embeddings_must_fit_be_finite_and_enough() -> None:
    a = torch.zeros(5, 3)
    check_embeddings(a, a, 5, "It")
    for other, fewest in ((torch.zeros(5, 4), 2), (a, 6), (a / 0, 2)):
        with pytest.raises(MetricError):
            check_embeddings(a, other, fewest, "It")
