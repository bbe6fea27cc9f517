"""A generator from another package: a linear map of codes to images, through inversion, search and encoder training."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from support_outside import install

from audit.config import AuditConfig, ConfigError, GeneratorConfig, load_config
from audit.data.phantom import phantom_set
from audit.errors import GeneratorError
from audit.generator.readers import read_generator
from audit.pipeline.networks import load_networks
from audit.pipeline.runner import run_audit
from audit.training.encoder.config import run_encoder_training
from audit.training.encoder.train import EncoderTrainConfig

CPU = torch.device("cpu")
EIGENIMAGES = """
from pathlib import Path

import torch
from safetensors.torch import load_file

from audit.generator.protocol import LoadedGenerator
from audit.storage.files import hash_file


class Eigenimages:
    num_ws = 2
    tunable = {}

    def __init__(self, mean, components, sha256):
        self.mean, self.components, self.weights_sha256 = mean, components, sha256
        self.channels, self.resolution, self.w_dim = mean.shape[0], mean.shape[1], len(components)
        self.mean_code = torch.zeros(self.w_dim, device=mean.device)

    def random_codes(self, n, rng):
        return torch.randn(n, self.w_dim, generator=rng, device=rng.device).to(self.mean.device)

    def draw(self, ws, deltas=None):
        return self.mean + torch.einsum("nd,dchw->nchw", ws.mean(1), self.components)

    def images(self, ws, deltas=None):
        return self.draw(ws, deltas).clamp(0, 1)


def read(path, device):
    tensors, sha256 = load_file(path, device=str(device)), hash_file(Path(path))
    return LoadedGenerator(Eigenimages(tensors["mean"], tensors["components"], sha256), sha256)
"""
AUDIT = """
[data]
path = "phantom"
phantom = { calibration = 300, audit = 30 }
[queries]
n = 2
[generator]
format = "eigenimages"
path = "eigen.safetensors"
[inversion]
method = "optimise"
[counterfactual]
steps = 20
[robustness]
n = 4
steps = 2
trust = false
[[classifiers]]
name = "plain"
checkpoint = "shipped:plain"
"""


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AuditConfig:
    """An audit whose generator draws principal components of phantom images."""
    return eigenimages(tmp_path, monkeypatch, EIGENIMAGES)


def eigenimages(folder: Path, monkeypatch: pytest.MonkeyPatch, code: str) -> AuditConfig:
    install(folder, monkeypatch, "spruce_audit.generators: eigenimages = read", code)
    images = phantom_set(calibration=150, audit=1, seed=1).split("calibration").images()
    mean = images.mean(0)
    _, sizes, directions = torch.linalg.svd((images - mean).flatten(1), full_matrices=False)
    components = directions[:24] * sizes[:24, None] / len(images) ** 0.5
    save_file(
        {"mean": mean, "components": components.reshape(-1, *mean.shape).contiguous()}, folder / "eigen.safetensors"
    )
    (folder / "audit.toml").write_text(AUDIT)
    return load_config(folder / "audit.toml")


def changed(config: AuditConfig, section: str, **values: object) -> AuditConfig:
    return config.model_copy(update={section: getattr(config, section).model_copy(update=values)})


def test_an_audit_inverts_and_searches_with_it(config: AuditConfig) -> None:
    result = run_audit(config)
    assert result.generator_package == "outside-part 1.0"
    assert result.complete, result.not_computed
    assert max(query.inversion_mse for query in result.queries) < 0.01
    (model,) = result.models
    assert model.counterfactuals is not None
    assert model.counterfactuals.flip_ratio.value > 0


def test_what_it_cannot_do_is_refused_before_the_long_stages(config: AuditConfig) -> None:
    data = phantom_set(2, 2, 0)
    with pytest.raises(GeneratorError, match=r'nothing that can be changed: set inversion\.method = "optimise"'):
        load_networks(changed(config, "inversion", method="pti"), data, CPU)
    with pytest.raises(GeneratorError, match=r"needs an encoder: set inversion\.encoder"):
        load_networks(changed(config, "inversion", method="encoder"), data, CPU)
    with pytest.raises(GeneratorError, match=r"holds no discriminator.*set metrics\.embedding"):
        load_networks(changed(config, "metrics", embedding="discriminator"), data, CPU)


def test_an_encoder_can_be_trained_for_it(config: AuditConfig, tmp_path: Path) -> None:
    assert config.generator is not None
    values = {"data": config.data, "generator": config.generator.path, "generator_format": "eigenimages", "steps": 2}
    trained = run_encoder_training(EncoderTrainConfig.model_validate(values | {"width": 16}), tmp_path / "encoder")
    with_encoder = changed(config, "inversion", method="encoder", encoder=str(trained))
    assert load_networks(with_encoder, phantom_set(2, 2, 0), CPU).encoder is not None
    shipped = changed(config, "inversion", encoder="shipped:phantom")
    with pytest.raises(GeneratorError, match="belongs to another generator"):
        load_networks(shipped, phantom_set(2, 2, 0), CPU)


def test_an_unknown_reader_is_refused_before_data_are_read(config: AuditConfig) -> None:
    missing = changed(changed(config, "generator", format="eigenimage"), "data", format="folder", path="nowhere")
    with pytest.raises(ConfigError, match=r"'generator\.format' names 'eigenimage'.*none of: auto, eigenimages"):
        run_audit(missing)


def test_another_format_needs_a_path(tmp_path: Path) -> None:
    (tmp_path / "audit.toml").write_text(AUDIT.replace('path = "eigen.safetensors"', ""))
    with pytest.raises(ConfigError, match="format = 'eigenimages' reads a path"):
        load_config(tmp_path / "audit.toml")


@pytest.mark.parametrize(
    ("right", "wrong", "match"),
    [
        ("num_ws = 2", "", "AttributeError.*num_ws"),
        ("return LoadedGenerator(", "return (", "returns tuple and not a LoadedGenerator"),
        ("torch.randn(n, self.w_dim,", "torch.randn(n, 1, self.w_dim,", r"codes have the shape \[2, 1, 24\]"),
        ("torch.zeros(self.w_dim,", "torch.zeros(1,", r"mean code has the shape \[1\]"),
        ("ws.mean(1), self.components", "ws.mean(1), self.components[..., 1:]", "RuntimeError"),
        ("ws.mean(1)", "ws[:1].mean(1)", r"images have the shape \[1, 1, 64, 64\]"),
        ("ws.mean(1)", "ws.mean(1).detach()", "no gradient"),
        ("return self.mean + ", "return self.mean / 0 + ", "NaN or infinity"),
    ],
)
def test_what_breaks_the_protocol_is_said(
    right: str, wrong: str, match: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = eigenimages(tmp_path, monkeypatch, EIGENIMAGES.replace(right, wrong))
    assert config.generator is not None
    with pytest.raises(GeneratorError, match=rf"by the reader 'eigenimages' \(outside-part 1\.0\): .*{match}"):
        read_generator(config.generator, CPU)


def test_a_file_that_is_not_there_is_said(config: AuditConfig) -> None:
    assert config.generator is not None
    gone = GeneratorConfig(path="nowhere.safetensors", format="eigenimages")
    with pytest.raises(GeneratorError, match=r"Generator 'nowhere\.safetensors' cannot be used by the reader"):
        read_generator(gone, CPU)
