"""The domain embedding: the feature interface at every size, gradients to the pixels, files that are what they say."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from audit.config import load_config
from audit.embeddings.domain import DomainEncoder, default_widths, load_domain, reserved_name
from audit.embeddings.embedding import FeatureNetwork
from audit.errors import MetricError


def encoder(shape: tuple[int, int, int] = (1, 32, 32), name: str = "own") -> DomainEncoder:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return DomainEncoder(name, shape, features=24).eval()


def written(path: Path, network: DomainEncoder, **change: str) -> Path:
    save_file(network.state_dict(), path, metadata=network.metadata() | change)
    return path


@pytest.mark.parametrize("shape", [(1, 16, 16), (3, 64, 64), (4, 48, 80), (2, 128, 128), (1, 256, 256)])
def test_every_size_and_channel_count_has_an_embedding_and_maps(shape: tuple[int, int, int]) -> None:
    network = encoder(shape)
    assert isinstance(network, FeatureNetwork)
    images = torch.rand(2, *shape, generator=torch.Generator().manual_seed(1))
    assert network.embed(images).shape == (2, 24)
    maps = network.maps(images)
    assert [m.shape[1] for m in maps] == list(network.widths)
    sides = [min(m.shape[2:]) for m in maps]
    assert sides == sorted(sides, reverse=True)
    assert 2 <= sides[-1] <= 6
    assert sum(p.numel() for p in network.parameters()) < 1_200_000


def test_default_widths_grow_with_the_size() -> None:
    assert default_widths(64, 64) == (16, 32, 64, 128)
    assert [len(default_widths(side, side)) for side in (8, 16, 32, 64, 128, 256, 1024)] == [2, 2, 3, 4, 5, 6, 6]


def test_an_embedding_is_a_row_of_its_own_and_differentiable() -> None:
    network = encoder()
    images = torch.rand(3, 1, 32, 32, generator=torch.Generator().manual_seed(2)).requires_grad_()
    embedded = network.embed(images)
    assert torch.allclose(embedded[1:2], network.embed(images[1:2]), atol=1e-5)
    (gradient,) = torch.autograd.grad(embedded[0].square().sum() * 0 + embedded[0, 0], images)
    assert gradient[0].abs().sum() > 0
    assert gradient[1:].abs().sum() == 0


def test_normalisation_lies_inside() -> None:
    network = encoder()
    images = torch.rand(2, 1, 32, 32, generator=torch.Generator().manual_seed(3))
    network.mean.fill_(0.1)
    network.std.fill_(0.2)
    shifted = encoder()
    shifted.mean.fill_(0.2)
    shifted.std.fill_(0.4)
    assert torch.allclose(network.embed(images), shifted.embed(images * 2), atol=1e-4)


@pytest.mark.parametrize("shape", [(2, 3, 32, 32), (2, 1, 64, 64), (1, 32, 32)])
def test_other_images_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(MetricError, match=r"'own' reads images.*another embedding"):
        encoder().embed(torch.rand(shape))


def test_a_file_gives_the_same_network_again_frozen_and_hashed(tmp_path: Path) -> None:
    network = encoder((3, 24, 40))
    state = torch.random.get_rng_state()
    loaded = load_domain(written(tmp_path / "own.safetensors", network))
    assert torch.equal(torch.random.get_rng_state(), state), "the global stream is left alone"
    images = torch.rand(2, 3, 24, 40, generator=torch.Generator().manual_seed(4))
    assert torch.equal(loaded.embed(images), network.embed(images))
    assert (loaded.name, len(loaded.weights_sha256)) == ("own", 64)
    assert not loaded.training
    assert not any(p.requires_grad for p in loaded.parameters())


@pytest.mark.parametrize(
    "change",
    [
        {"kind": "classifier"},
        {"name": "clip-like"},
        {"name": "discriminator"},
        {"name": ""},
        {"features": "25"},
        {"features": "many"},
        {"widths": "[16]"},
        {"widths": "[12, 24, 48]"},
        {"widths": "[1000000000]"},
        {"widths": "[16.5]"},
        {"image_shape": "[1, 32]"},
        {"image_shape": "null"},
    ],
    ids=str,
)
def test_files_that_are_something_else_are_refused(tmp_path: Path, change: dict[str, str]) -> None:
    with pytest.raises(MetricError, match=r"own\.safetensors' does not hold a domain embedding"):
        load_domain(written(tmp_path / "own.safetensors", encoder(), **change))


def test_missing_and_broken_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(MetricError, match=r"no domain embedding at.*train embedding"):
        load_domain(tmp_path / "none.safetensors")
    (tmp_path / "broken.safetensors").write_bytes(b"not weights")
    with pytest.raises(MetricError, match="does not hold"):
        load_domain(tmp_path / "broken.safetensors")
    save_file({"a": torch.zeros(1)}, tmp_path / "bare.safetensors")
    with pytest.raises(MetricError, match="does not hold"):
        load_domain(tmp_path / "bare.safetensors")


def test_names_of_other_networks_are_kept_apart() -> None:
    assert reserved_name("CLIP-ViT") == "clip"
    assert reserved_name("pixels") == "pixels"
    assert reserved_name("phantom-domain") is None


def test_a_file_is_found_beside_the_configuration_and_a_word_stays(tmp_path: Path) -> None:
    text = '[data]\npath = "phantom"\n[metrics]\nembedding = {0}\nperceptual = {0}\n[[classifiers]]\nname = "a"\n'
    text += 'checkpoint = "shipped:plain"\n'
    file = tmp_path / "audit.toml"
    for said, meant in (("own.safetensors", str(tmp_path.resolve() / "own.safetensors")), ("auto", "auto")):
        file.write_text(text.format(json.dumps(said)))
        metrics = load_config(file).metrics
        assert (metrics.embedding, metrics.perceptual) == (meant, meant)
