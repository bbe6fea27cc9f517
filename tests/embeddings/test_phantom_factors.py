"""The phantom's feature network: its interface, and what the shipped weights know about the phantom."""

from pathlib import Path

import pytest
import torch

import audit
from audit.data import phantom
from audit.embeddings.embedding import FeatureNetwork
from audit.embeddings.phantom_factors import PhantomFactors, load_phantom_factors
from audit.errors import MetricError

WEIGHTS = Path(audit.__file__).parent / "assets" / "embeddings" / "phantom-factors.safetensors"


def shipped() -> PhantomFactors:
    return load_phantom_factors(WEIGHTS)


def test_interface() -> None:
    network = shipped()
    assert isinstance(network, FeatureNetwork)
    assert network.name == "phantom-factors"
    assert len(network.weights_sha256) == 64
    images = torch.rand(2, 1, 64, 64)
    assert network.embed(images).shape == (2, 96)
    assert [tuple(m.shape[2:]) for m in network.maps(images)] == [(32, 32), (16, 16), (8, 8), (4, 4)]
    assert set(network.factor_names) <= set(phantom.FACTOR_NAMES)
    assert not network.training


def test_gradients_reach_the_pixels() -> None:
    images = torch.rand(1, 1, 64, 64, requires_grad=True)
    shipped().embed(images).sum().backward()
    assert images.grad is not None
    assert images.grad.abs().sum() > 0


def test_shipped_weights_explain_the_findings() -> None:
    network, batch = shipped(), phantom.sample(200, seed=987)
    predicted = network.factors(batch.images)
    for name in (*phantom.FINDING_FACTORS, "marker_presence"):
        truth = batch.factor(name)
        unexplained = (predicted[:, network.factor_names.index(name)] - truth).square().mean() / truth.var()
        assert unexplained < 0.2, name


def test_removing_the_finding_moves_the_embedding_to_the_healthy_and_noise_does_not() -> None:
    network = shipped()
    with_finding, healthy_twin = phantom.twins(150, seed=988)
    healthy = network.embed(phantom.sample(150, seed=989, labels=torch.zeros(150, dtype=torch.int64)).images).mean(
        dim=0
    )
    noise = 0.03 * torch.randn(with_finding.images.shape, generator=torch.Generator().manual_seed(0)).sign()

    def gap(images: torch.Tensor) -> float:
        return float((network.embed(images).mean(dim=0) - healthy).norm())

    factual = gap(with_finding.images)
    assert gap(healthy_twin.images) < 0.25 * factual
    assert gap((with_finding.images + noise).clamp(0, 1)) > 0.8 * factual


@pytest.mark.parametrize("shape", [(2, 3, 64, 64), (2, 1, 32, 32), (1, 64, 64)])
def test_other_images_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(MetricError, match="grey 64x64"):
        PhantomFactors(("a",)).embed(torch.rand(shape))


def test_missing_or_foreign_weights_are_refused(tmp_path: Path) -> None:
    with pytest.raises(MetricError, match="check the path"):
        load_phantom_factors(tmp_path / "none.safetensors")
    (tmp_path / "broken.safetensors").write_bytes(b"not weights")
    with pytest.raises(MetricError, match="does not hold"):
        load_phantom_factors(tmp_path / "broken.safetensors")
