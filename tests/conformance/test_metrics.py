"""Agreement with public references: closed forms of CMMD, other FID codes, LPIPS and Inception where they are."""

import json
import math
import pathlib
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import energy_distance
from torch import Tensor, nn

from audit.embeddings.canonical import available, load_inception, load_lpips
from audit.embeddings.embedding import embed_all
from audit.errors import MetricError
from audit.metrics.cmmd import mmd
from audit.metrics.fid import frechet_distance
from audit.metrics.kernels import energy_kernel


@pytest.fixture(scope="module")
def shared() -> pathlib.Path:
    return pathlib.Path(__file__).parents[2].parent / "shared"


@pytest.fixture(scope="module")
def reference(shared: pathlib.Path) -> dict[str, Any]:
    file = shared / "conformance" / "perceptual_reference.json"
    if not file.is_file():
        pytest.skip(f"the reference numbers are not beside the repository: {file}")
    return json.loads(file.read_text())


def formula_image(k: float) -> Tensor:
    i, j = torch.meshgrid(*2 * (torch.arange(64, dtype=torch.float64),), indexing="ij")
    waves = [torch.sin(0.11 * k * (c + 1) * i + 0.07 * ((c + 1) + k) * j + 0.3 * k) for c in range(3)]
    return (0.5 + 0.5 * torch.stack(waves)).float()


def needs(name: str) -> None:
    where = available()[name]
    if isinstance(where, str):
        pytest.skip(f"{name}: {where}")


def test_cmmd_closed_forms() -> None:
    eye = torch.eye(2)
    assert mmd(eye[:1].repeat(5, 1), eye[1:].repeat(7, 1)) == pytest.approx(2000 * (1 - math.exp(-0.01)), abs=1e-9)
    assert mmd(eye[:1].repeat(5, 1), eye[1:].repeat(7, 1)) == pytest.approx(19.900333, abs=1e-6)
    assert mmd(eye[:1].repeat(5, 1), -eye[:1].repeat(7, 1)) == pytest.approx(39.602653, abs=1e-6)
    assert mmd(eye, eye) == 0


def test_energy_distance_agrees_with_scipy() -> None:
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(60, 1, generator=generator, dtype=torch.float64)
    b = 0.7 + 1.6 * torch.randn(75, 1, generator=generator, dtype=torch.float64)
    ours = energy_kernel(a, a).mean() + energy_kernel(b, b).mean() - 2 * energy_kernel(a, b).mean()
    # scipy 1.17 takes the root, of the integral of the squared difference of the two distribution functions.
    assert float(ours) == pytest.approx(energy_distance(a[:, 0].numpy(), b[:, 0].numpy()) ** 2, rel=1e-9)


def test_energy_distance_of_gaussians_in_closed_form() -> None:
    # E|X - Y| = s sqrt(2) gamma((d + 1) / 2) / gamma(d / 2) for X - Y ~ N(0, s^2 I); equal means, other spread.
    d, n, first, second = 5, 4000, 1.0, 2.0
    generator = torch.Generator().manual_seed(0)
    a, b = (s * torch.randn(n, d, generator=generator, dtype=torch.float64) for s in (first, second))
    unit = 2**0.5 * math.exp(math.lgamma((d + 1) / 2) - math.lgamma(d / 2))
    expected = unit * (2 * math.hypot(first, second) - 2**0.5 * (first + second))
    ours = energy_kernel(a, a).mean() + energy_kernel(b, b).mean() - 2 * energy_kernel(a, b).mean()
    # The biased estimate adds E|X - X'| / n of both sets; the rest is chance.
    assert float(ours) == pytest.approx(expected + unit * 2**0.5 * (first + second) / n, abs=0.03 * expected)


class Flat(nn.Module):
    """Pixels as features, so that torchmetrics' FID runs without Inception."""

    num_features = 48

    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1)


def test_frechet_distance_agrees_with_torchmetrics() -> None:
    fid = pytest.importorskip("torchmetrics.image.fid", reason="the extra 'canonical' is not installed")
    generator = torch.Generator().manual_seed(0)
    real, fake = torch.rand(120, 3, 4, 4, generator=generator), torch.rand(100, 3, 4, 4, generator=generator) ** 1.5
    peer = fid.FrechetInceptionDistance(feature=Flat(), normalize=True, input_img_size=(3, 4, 4)).set_dtype(
        torch.float64
    )
    peer.update(real.double(), real=True)
    peer.update(fake.double(), real=False)
    assert frechet_distance(real.flatten(1), fake.flatten(1)) == pytest.approx(float(peer.compute()), rel=1e-5)


def test_frechet_distance_agrees_with_torch_fidelity() -> None:
    peer = pytest.importorskip("torch_fidelity.metric_fid", reason="the extra 'canonical' is not installed")
    generator = torch.Generator().manual_seed(1)
    a = torch.randn(90, 20, generator=generator, dtype=torch.float64)
    b = torch.randn(80, 20, generator=generator, dtype=torch.float64) * 1.3 + 0.2
    statistics = [{"mu": x.numpy().mean(0), "sigma": np.cov(x.numpy(), rowvar=False)} for x in (a, b)]
    value = peer.fid_statistics_to_metric(*statistics, verbose=False)["frechet_inception_distance"]
    assert frechet_distance(a, b) == pytest.approx(float(value), rel=1e-6)


@pytest.mark.parametrize("net", ["alex", "vgg"])
def test_lpips(net: Any, reference: dict[str, Any]) -> None:
    needs(f"lpips-v0.1-{net}")
    a = torch.stack([formula_image(1), formula_image(2), formula_image(3)])
    b = torch.stack([formula_image(1.05), formula_image(2.5), formula_image(3).flip(-1)])
    assert load_lpips(net).distance_all(a, b).tolist() == pytest.approx(reference[f"lpips_v0.1_{net}"], abs=2e-5)


def test_inception_features(reference: dict[str, Any]) -> None:
    needs("inception-v3-fid")
    expected = reference["inception_pool3"]
    features = embed_all(load_inception(), torch.stack([formula_image(k) for k in (1, 2, 3)]))
    assert features.norm(dim=1).tolist() == pytest.approx(expected["norm"], rel=1e-4)
    assert features[0, :5].tolist() == pytest.approx(expected["first5_of_k1"], abs=1e-4)


@pytest.mark.slow
def test_fid_and_mmd_of_pneumoniamnist(shared: pathlib.Path, reference: dict[str, Any]) -> None:
    needs("inception-v3-fid")
    expected = reference["pneumoniamnist_test"]
    data = np.load(shared / "data" / "pneumoniamnist.npz")
    images = torch.from_numpy(data["test_images"])[:, None].float() / 255
    labels = torch.from_numpy(data["test_labels"]).flatten()
    features = embed_all(load_inception(), images, batch_size=32)
    normal, pneumonia = features[labels == 0], features[labels == 1]
    assert frechet_distance(normal, pneumonia) == pytest.approx(expected["fid_normal_vs_pneumonia"], rel=1e-3)
    even_odd = frechet_distance(normal[::2], normal[1::2])
    assert even_odd == pytest.approx(expected["fid_normal_even_vs_odd"], rel=1e-3)
    value = mmd(normal, pneumonia)
    assert value == pytest.approx(expected["mmd_rbf_sigma10_x1000_biased_on_l2_normalised_inception"], rel=1e-3)


def test_absent_weights_are_an_error_with_the_reason_not_a_fall_back() -> None:
    where = available()["lpips-v0.1-alex"]
    if not isinstance(where, str):
        pytest.skip("the LPIPS weights are on this machine")
    with pytest.raises(MetricError, match="cannot be computed"):
        load_lpips("alex")
