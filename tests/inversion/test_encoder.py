"""The encoder: shapes, files, the generator that it belongs to, and a short training that can be interrupted."""

import copy
import itertools
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from safetensors import safe_open
from support_kills import survives_every_kill
from torch import Tensor
from torch.testing import assert_close

from audit.config import ConfigError, parse_config
from audit.data.audit_set import AuditSet
from audit.embeddings.lpips import Lpips
from audit.errors import DataError, GeneratorError
from audit.generator.features import DiscriminatorFeatures
from audit.generator.files.load import load_generator, save_generator
from audit.generator.stylegan2.discriminator import Discriminator
from audit.generator.stylegan2.networks import Generator
from audit.inversion.encoder import Encoder, encoder_beside, load_encoder
from audit.training.encoder.config import _similarity, load_encoder_train_config
from audit.training.encoder.train import EncoderTrainConfig, train_encoder

CPU = torch.device("cpu")


def config(**values: object) -> EncoderTrainConfig:
    base = {"data": {"path": "unused"}, "width": 16, "steps": 6, "batch_size": 4, "snapshot_steps": 3}
    return EncoderTrainConfig.model_validate(base | values)


@pytest.fixture(scope="module")
def dataset(draw_images: Callable[[int, int], Tensor]) -> AuditSet:
    array = (draw_images(40, 1)[:, 0] * 255).round().to(torch.uint8).numpy()
    return AuditSet(
        read_image=lambda row: array[row],
        labels=np.zeros(40, dtype=np.int64),
        class_names=("one",),
        ids=tuple(str(i) for i in range(40)),
        splits=np.array(["train"] * 40),
        image_shape=(1, 16, 16),
    )


@pytest.mark.parametrize(("resolution", "channels"), [(16, 1), (32, 3), (64, 4), (1024, 2)])
def test_codes_have_the_generators_shape(resolution: int, channels: int) -> None:
    layers = 2 * resolution.bit_length() - 4
    encoder = Encoder(resolution, channels, layers, 12, 16, "")
    assert encoder(torch.rand(1, channels, resolution, resolution)).shape == (1, layers, 12)


def test_locked_offsets_leave_one_code() -> None:
    encoder = Encoder(16, 1, 6, 8, 16, "")
    torch.nn.init.normal_(encoder.offsets.weight)
    images = torch.rand(2, 1, 16, 16)
    codes = encoder(images, 0)
    assert_close(codes, codes[:, :1].expand_as(codes))
    codes, whole = encoder(images, 2), encoder(images)
    assert_close(codes[:, :3], whole[:, :3])
    assert_close(codes[:, 3:], codes[:, :1].expand(-1, 3, -1))
    assert not torch.allclose(whole[:, 3:], codes[:, 3:])


def test_offsets_unlock_one_after_another() -> None:
    plan = config(steps=100, progressive_from=0.2, progressive_to=0.6)
    counts = [plan.unlocked(step, 9) for step in range(100)]
    assert counts[19] == 0
    assert counts[60:] == [9] * 40
    assert all(0 <= b - a <= 1 for a, b in itertools.pairwise(counts))
    with pytest.raises(ConfigError, match="progressive_from"):
        parse_config(
            EncoderTrainConfig, {"data": {"path": "x"}, "progressive_from": 0.7, "progressive_to": 0.6}, "a test"
        )


def test_training_learns_resumes_and_writes_its_card(
    generator: Generator, discriminator: Discriminator, dataset: AuditSet, tmp_path: Path
) -> None:
    network = DiscriminatorFeatures(discriminator)
    whole = train_encoder(config(), generator, dataset, tmp_path / "whole", network, CPU)
    train_encoder(config(), generator, dataset, tmp_path / "parts", network, CPU)
    first = torch.load(tmp_path / "parts/checkpoint.pt", weights_only=True)
    assert first["step"] == 6

    # Interrupted after the first snapshot: the same configuration, cut off by an error in the fourth step.
    calls = 0

    class Interrupted(DiscriminatorFeatures):
        def embed(self, images: Tensor) -> Tensor:
            nonlocal calls
            calls += 1
            if calls > 7:
                raise KeyboardInterrupt
            return super().embed(images)

    with pytest.raises(KeyboardInterrupt):
        train_encoder(config(), generator, dataset, tmp_path / "cut", Interrupted(discriminator), CPU)
    assert torch.load(tmp_path / "cut/checkpoint.pt", weights_only=True)["step"] == 3
    resumed = train_encoder(config(), generator, dataset, tmp_path / "cut", network, CPU)
    a, b = load_encoder(whole), load_encoder(resumed)
    for name, value in a.state_dict().items():
        assert_close(b.state_dict()[name], value)

    card = json.loads((tmp_path / "whole/encoder.json").read_text())
    assert card["generator_sha256"] == generator.weights_sha256
    assert card["held_out"]["n"] == 2
    assert card["steps"] == 6
    with safe_open(whole, framework="pt") as file:
        assert file.metadata()["generator_sha256"] == generator.weights_sha256
    assert len((tmp_path / "whole/history.jsonl").read_text().splitlines()) == 2


def test_a_kill_behind_any_file_is_survived(
    generator: Generator, dataset: AuditSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    survives_every_kill(
        lambda out: train_encoder(config(steps=2, snapshot_steps=1), generator, dataset, out, None, CPU),
        tmp_path,
        monkeypatch,
    )


def test_a_checkpoint_of_another_configuration_is_refused(
    generator: Generator, dataset: AuditSet, tmp_path: Path
) -> None:
    path = train_encoder(config(steps=2), generator, dataset, tmp_path, None, CPU)
    before = path.read_bytes()
    retrained = copy.deepcopy(generator)
    retrained.mapping.w_avg.add_(0.1)
    for changed, of, seen in (
        (config(steps=2, width=32), generator, dataset),
        (config(steps=2, seed=1), generator, dataset),
        (config(steps=2, lr=1e-4), generator, dataset),
        (config(steps=4), generator, dataset),  # steps set the schedule of learning rate and offsets
        (config(steps=2), retrained, dataset),
        (config(steps=2), generator, dataset.select(range(30))),
    ):
        with pytest.raises(ConfigError, match="another configuration: name another --out or delete it"):
            train_encoder(changed, of, seen, tmp_path, None, CPU)
    assert path.read_bytes() == before
    moved = config(steps=2, data={"path": "/elsewhere/unused"}, generator="elsewhere.safetensors", device="cpu")
    assert train_encoder(moved, generator, dataset, tmp_path, None, CPU).read_bytes() == before


def test_card_and_metadata_name_files_without_their_folders(
    generator: Generator, dataset: AuditSet, tmp_path: Path
) -> None:
    away = config(steps=1, data={"path": "/home/someone/chest"}, generator="/home/someone/runs/generator.safetensors")
    path = train_encoder(away, generator, dataset, tmp_path, None, CPU)
    with safe_open(path, framework="pt") as file:
        texts = [file.metadata()["card"], (tmp_path / "encoder.json").read_text()]
    for text in texts:
        card = json.loads(text)
        assert "someone" not in text
        assert card["data"] == card["config"]["data"]["path"] == "chest"
        assert card["config"]["generator"] == "generator.safetensors"


def test_training_lowers_the_error(generator: Generator, dataset: AuditSet, tmp_path: Path) -> None:
    train_encoder(config(steps=90, snapshot_steps=30, batch_size=8, lr=3e-3), generator, dataset, tmp_path, None, CPU)
    rows = [json.loads(line) for line in (tmp_path / "history.jsonl").read_text().splitlines()]
    assert rows[-1]["mse"] < 0.8 * rows[0]["mse"]


def test_training_leaves_generator_and_global_stream_alone(
    generator: Generator, dataset: AuditSet, tmp_path: Path
) -> None:
    before, state = generator.weights_sha256, torch.get_rng_state()
    train_encoder(config(steps=2, generated=0.0), generator, dataset, tmp_path, None, CPU)
    assert generator.weights_sha256 == before
    assert torch.equal(torch.get_rng_state(), state)


def test_user_errors_say_how_to_mend(generator: Generator, dataset: AuditSet, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="at least"):
        train_encoder(config(), generator, dataset.select(range(10)), tmp_path, None, CPU)
    with pytest.raises(GeneratorError, match="does not exist"):
        load_encoder(tmp_path / "none.safetensors")
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(b"not a file of weights")
    with pytest.raises(GeneratorError, match="cannot be read"):
        load_encoder(broken)
    with pytest.raises(ConfigError, match="encoders"):
        load_encoder("shipped:nothing")


def test_the_encoder_beside_a_generator(tmp_path: Path) -> None:
    assert encoder_beside(str(tmp_path / "generator.safetensors")) is None
    (tmp_path / "encoder.safetensors").touch()
    assert encoder_beside(str(tmp_path / "generator.safetensors")) == str(tmp_path / "encoder.safetensors")
    assert encoder_beside("shipped:nothing") is None


@pytest.fixture(scope="module")
def conditional() -> Generator:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        network = Generator(z_dim=8, w_dim=8, resolution=16, channel_base=128, channel_max=8, c_dim=3)
    return network.eval().requires_grad_(False)


def test_an_encoder_of_a_conditional_generator(conditional: Generator, dataset: AuditSet, tmp_path: Path) -> None:
    path = train_encoder(config(steps=3), conditional, dataset, tmp_path, None, CPU)
    encoder = load_encoder(path)
    encoder.check_generator(conditional)
    assert torch.isfinite(encoder(torch.rand(2, 1, 16, 16))).all()
    assert json.loads((tmp_path / "encoder.json").read_text())["similarity"] is None


def lpips_of_random_weights() -> Lpips:
    with torch.random.fork_rng():
        torch.manual_seed(4)
        layers = torchvision.models.vgg16(weights=None).features
        for layer in layers:
            if isinstance(layer, torch.nn.ReLU):
                layer.inplace = False
        return Lpips(layers, [torch.rand(c) for c in (64, 128, 256, 512, 512)], "vgg", "0" * 64)


def test_lpips_takes_the_place_of_both_terms(generator: Generator, dataset: AuditSet, tmp_path: Path) -> None:
    train_encoder(config(steps=2, snapshot_steps=2), generator, dataset, tmp_path, lpips_of_random_weights(), CPU)
    (row,) = [json.loads(line) for line in (tmp_path / "history.jsonl").read_text().splitlines()]
    assert row["lpips"] > 0
    assert "similarity" not in row
    assert json.loads((tmp_path / "encoder.json").read_text())["similarity"]["name"] == "lpips-v0.1-vgg"


def test_the_similarity_network_is_chosen_by_name(
    generator: Generator, discriminator: Discriminator, tmp_path: Path
) -> None:
    save_generator(tmp_path / "generator.safetensors", generator, discriminator, {})
    loaded = load_generator(tmp_path / "generator.safetensors")
    chosen = {name: _similarity(config(similarity=name), loaded, CPU) for name in ("auto", "discriminator", "none")}
    assert chosen["none"] is None
    for name in ("auto", "discriminator"):
        assert isinstance(chosen[name], DiscriminatorFeatures)
    with pytest.raises(ConfigError, match=r"similarity.*lpips"):
        parse_config(EncoderTrainConfig, {"data": {"path": "x"}, "similarity": "lpisp"}, "a test")
    (tmp_path / "encoder.toml").write_text('similarity = "own.safetensors"\n[data]\npath = "phantom"\n')
    assert load_encoder_train_config(tmp_path / "encoder.toml").similarity == str(tmp_path / "own.safetensors")
