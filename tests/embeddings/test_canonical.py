"""Canonical networks: found only where they are, never fetched unasked, refused when they are not canonical."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from audit.embeddings import canonical
from audit.embeddings import lpips as ours
from audit.errors import MetricError, WeightsError
from audit.storage import download as fetch
from audit.storage import pretrained as weights

SHAPES = {
    "features.0": (64, 3, 11, 11),
    "features.3": (192, 64, 5, 5),
    "features.6": (384, 192, 3, 3),
    "features.8": (256, 384, 3, 3),
    "features.10": (256, 256, 3, 3),
}


@pytest.fixture
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine without any weights, on which a download fails the test."""

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a download was attempted")

    monkeypatch.setenv("SPRUCE_AUDIT_WEIGHTS", str(tmp_path))
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    monkeypatch.setattr(fetch, "_open", refuse)
    monkeypatch.setattr(weights.importlib.util, "find_spec", lambda name: None)
    return tmp_path


@pytest.fixture(scope="module")
def backbone() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    given = {f"{k}.weight": torch.randn(s, generator=generator) / s[1] for k, s in SHAPES.items()}
    return given | {f"{k}.bias": torch.randn(s[0], generator=generator) / 10 for k, s in SHAPES.items()}


@pytest.fixture(scope="module")
def heads() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    widths = [s[0] for s in SHAPES.values()]
    return {f"lin{i}.model.1.weight": torch.rand(1, c, 1, 1, generator=generator) for i, c in enumerate(widths)}


def test_without_weights_everything_has_a_reason_that_names_the_remedy(empty: Path) -> None:
    found = canonical.available()
    assert set(found) == {"inception-v3-fid", "lpips-v0.1-alex", "lpips-v0.1-vgg", "clip-vit-large-patch14-336"}
    for name, reason in found.items():
        assert f"spruce-audit weights pull {name}" in str(reason)
        assert str(empty) not in str(reason)
    assert "alexnet-owt-7be5be79.pth" in str(found["lpips-v0.1-alex"])


@pytest.mark.parametrize("load", [canonical.load_inception, canonical.load_lpips, canonical.load_clip])
def test_nothing_is_fetched_unasked(empty: Path, load: object) -> None:
    with pytest.raises(MetricError, match=r"neither in .* run `spruce-audit weights pull"):
        load()  # type: ignore[operator]


def test_other_weights_under_the_canonical_name_are_refused(empty: Path) -> None:
    for name in ("alexnet-owt-7be5be79.pth", "lpips-v0.1-alex.pth"):
        torch.save({}, empty / name)
    assert canonical.available()["lpips-v0.1-alex"] == empty / "alexnet-owt-7be5be79.pth"
    with pytest.raises(WeightsError, match="is canonical: remove the file"):
        canonical.load_lpips("alex")


def test_lpips_agrees_with_the_package_of_its_authors(backbone: dict[str, Tensor], heads: dict[str, Tensor]) -> None:
    peer_module = pytest.importorskip("lpips", reason="the extra 'canonical' is not installed")
    before = torch.random.get_rng_state()
    network = ours.from_torch(backbone, heads, "alex", "0" * 64)
    assert torch.equal(before, torch.random.get_rng_state())
    with torch.random.fork_rng(devices=[]):
        peer = peer_module.LPIPS(net="alex", version="0.1", pnet_rand=True, pretrained=False, verbose=False).eval()
    names = {key: "features." + key.split(".", 1)[1] for key in peer.net.state_dict()}
    peer.net.load_state_dict({key: backbone[name] for key, name in names.items()})
    peer.load_state_dict(heads, strict=False)
    generator = torch.Generator().manual_seed(2)
    a, b = torch.rand(2, 3, 3, 40, 40, generator=generator)
    with torch.no_grad():
        assert torch.allclose(network.distance(a, b), peer(a, b, normalize=True).flatten(), rtol=1e-5)


def test_lpips_range_channels_and_batches(backbone: dict[str, Tensor], heads: dict[str, Tensor]) -> None:
    network = ours.from_torch(backbone, heads, "alex", "0" * 64)
    assert network.name == "lpips-v0.1-alex"
    grey, other = torch.rand(2, 3, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    colour = network.distance(grey.expand(-1, 3, -1, -1), other.expand(-1, 3, -1, -1))
    assert (colour > 0).all()
    assert torch.allclose(network.distance(grey, other), colour)
    assert torch.allclose(network.distance_all(grey, other, batch_size=2), colour)
    assert torch.equal(network.distance(grey, grey), torch.zeros(3))
    with pytest.raises(MetricError, match="at least 31"):
        network.distance(grey[..., :28, :28], other[..., :28, :28])
    with pytest.raises(MetricError, match="expected"):
        network.distance(2 * grey - 1, other)


def test_the_gradient_of_lpips_is_finite_where_every_channel_is_zero(heads: dict[str, Tensor]) -> None:
    dead = {f"{k}.weight": torch.zeros(s) for k, s in SHAPES.items()}
    dead |= {f"{k}.bias": torch.zeros(s[0]) for k, s in SHAPES.items()}
    image = torch.full((1, 1, 32, 32), 0.5, requires_grad=True)
    ours.from_torch(dead, heads, "alex", "").distance(image, torch.zeros(1, 1, 32, 32)).sum().backward()
    assert image.grad is not None
    assert image.grad.isfinite().all()


def test_both_layouts_are_the_same_network(backbone: dict[str, Tensor], heads: dict[str, Tensor]) -> None:
    arrays = {}
    for i, layer in enumerate(SHAPES):
        arrays[f"AlexNet_0/Conv_{i}/kernel"] = backbone[f"{layer}.weight"].permute(2, 3, 1, 0)
        arrays[f"AlexNet_0/Conv_{i}/bias"] = backbone[f"{layer}.bias"]
        arrays[f"NetLinLayer_{i}/Conv_0/kernel"] = heads[f"lin{i}.model.1.weight"].permute(2, 3, 1, 0)
    one, other = ours.from_torch(backbone, heads, "alex", ""), ours.from_flax(arrays, "alex", "")
    assert one.state_dict().keys() == other.state_dict().keys()
    for key, value in one.state_dict().items():
        assert torch.equal(value, other.state_dict()[key]), key


def test_inception_layers_run_in_the_order_of_the_reference() -> None:
    inception = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3", reason="torch-fidelity is missing")
    with torch.random.fork_rng(devices=[]), pytest.MonkeyPatch.context() as patch:
        torch.manual_seed(0)
        patch.setattr(inception, "load_state_dict_from_url", lambda *_, **__: {})
        patch.setattr(inception.FeatureExtractorInceptionV3, "load_state_dict", lambda *_, **__: None)
        whole = inception.FeatureExtractorInceptionV3("inception", ["2048"])
    network = canonical.InceptionFeatures(torch.nn.Sequential(*list(whole.children())[:-1]), "0" * 64)
    # At 299 x 299 both resize to the same image, so only the layers are compared.
    levels = (torch.rand(1, 3, 299, 299, generator=torch.Generator().manual_seed(0)) * 255).round()
    with torch.no_grad():
        assert torch.allclose(network.embed(levels / 255), whole(levels.byte())[0], atol=1e-5)
        assert network.embed(levels[:, :1, :32, :32] / 255).shape == (1, 2048)
