"""Canonical networks: found only where they are, never fetched unasked, refused when they are not canonical."""

from pathlib import Path

import pytest
import torch

from audit.errors import MetricError
from audit.metrics import canonical

lpips = pytest.importorskip("lpips", reason="the extra 'canonical' is not installed")


@pytest.fixture
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine without any weights, on which a download fails the test."""

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a download was attempted")

    monkeypatch.setenv("SPRUCE_AUDIT_WEIGHTS", str(tmp_path))
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)
    monkeypatch.setattr(canonical, "_find_script", lambda: None)
    return tmp_path


def test_without_weights_everything_has_a_reason(empty: Path) -> None:
    found = canonical.available()
    assert set(found) == {"inception-v3-fid", "lpips-v0.1-alex", "lpips-v0.1-vgg", "clip"}
    for reason in found.values():
        assert isinstance(reason, str)
    assert "alexnet-owt-7be5be79.pth" in str(found["lpips-v0.1-alex"])


def test_nothing_is_fetched_unasked(empty: Path) -> None:
    for load in (canonical.load_inception, canonical.load_lpips):
        with pytest.raises(MetricError, match="neither in"):
            load()


def test_other_weights_under_the_canonical_name_are_refused(empty: Path) -> None:
    file = empty / "alexnet-owt-7be5be79.pth"
    torch.save({}, file)
    assert canonical.available()["lpips-v0.1-alex"] == file
    with pytest.raises(MetricError, match="is canonical: replace the file"):
        canonical.load_lpips("alex")


def test_lpips_range_channels_and_global_generator() -> None:
    generator = torch.Generator().manual_seed(0)
    shapes = {
        "features.0": (64, 3, 11, 11),
        "features.3": (192, 64, 5, 5),
        "features.6": (384, 192, 3, 3),
        "features.8": (256, 384, 3, 3),
        "features.10": (256, 256, 3, 3),
    }
    backbone = {f"{k}.weight": torch.randn(s, generator=generator) / s[1] for k, s in shapes.items()}
    backbone |= {f"{k}.bias": torch.zeros(s[0]) for k, s in shapes.items()}
    before = torch.random.get_rng_state()
    network = canonical.lpips_from_backbone(backbone, "alex", "0" * 64)
    assert torch.equal(before, torch.random.get_rng_state())
    assert torch.equal(network.network.net.slice2[1].weight, backbone["features.3.weight"])
    assert network.name == "lpips-v0.1-alex"
    grey = torch.rand(3, 1, 32, 32, generator=generator)
    other = torch.rand(3, 1, 32, 32, generator=generator)
    colour = network.distance(grey.expand(-1, 3, -1, -1), other.expand(-1, 3, -1, -1))
    reference = network.network(grey.expand(-1, 3, -1, -1), other.expand(-1, 3, -1, -1), normalize=True).flatten()
    assert torch.allclose(network.distance(grey, other), colour)
    assert torch.allclose(colour, reference)
    assert torch.allclose(network.distance_all(grey, other, batch_size=2), colour)
    assert torch.equal(network.distance(grey, grey), torch.zeros(3))
    with pytest.raises(MetricError, match="at least 31"):
        network.distance(grey[..., :28, :28], other[..., :28, :28])
    with pytest.raises(MetricError, match="expected"):
        network.distance(2 * grey - 1, other)


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
