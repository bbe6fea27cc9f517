"""Training moves, keeps its promises about resuming and leaves complete files."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from torch.testing import assert_close

from audit.config import parse_config
from audit.data.audit_set import AuditSet
from audit.errors import ConfigError, DataError, GeneratorError
from audit.generator.grid import sample_grid
from audit.generator.load import load_generator
from audit.generator.snapshot import generator_fid
from audit.generator.stream import read_uint8
from audit.generator.train import run_generator_training, train_generator
from audit.generator.train_config import GeneratorTrainConfig, load_generator_train_config, portable

CPU = torch.device("cpu")


def images(n=40, size=16):
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (n, size, size), dtype=np.uint8)
    labels, splits = np.zeros(n, dtype=np.int64), np.full(n, "train")
    return AuditSet(pixels.__getitem__, labels, ("a",), tuple(map(str, range(n))), splits, (1, size, size))


def config(**changes):
    base = {
        "data": {"path": "phantom"}, "kimg": 0.064, "batch_size": 8, "z_dim": 8, "w_dim": 8, "channel_base": 64,
        "channel_max": 8, "snapshot_kimg": 0.032, "r1_interval": 2, "path_length_interval": 2, "ada_kimg": 0.1,
        "fid_images": 50,
    }  # fmt: skip
    return GeneratorTrainConfig(**(base | changes))


def test_an_interrupted_run_ends_with_the_same_weights(tmp_path):
    data = images()
    whole = load_generator(train_generator(config(), data, tmp_path / "whole", None, CPU))
    train_generator(config(kimg=0.032), data, tmp_path / "parts", None, CPU)
    parts = load_generator(train_generator(config(), data, tmp_path / "parts", None, CPU))
    z = torch.ones(2, 8)
    assert_close(parts.generator(z), whole.generator(z))
    start = load_generator(train_generator(config(kimg=0.008, snapshot_kimg=0.008), data, tmp_path / "s", None, CPU))
    assert not torch.allclose(start.generator(z), whole.generator(z))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A finished short run on `images()`: its folder, copied by whoever writes to it."""
    out = tmp_path_factory.mktemp("trained")
    train_generator(config(kimg=0.008, snapshot_kimg=0.008), images(), out, None, CPU)
    return out


@pytest.mark.parametrize("change", [{"channel_max": 16}, {"seed": 1}, {"lr": 1e-3}, {"style_mixing": 0.0}])
def test_a_checkpoint_of_other_settings_is_refused(trained, change):
    before = (trained / "generator.safetensors").read_bytes()
    with pytest.raises(ConfigError, match="holds a checkpoint of another configuration: name another --out or delete"):
        train_generator(config(kimg=0.016, snapshot_kimg=0.008, **change), images(), trained, None, CPU)
    assert (trained / "generator.safetensors").read_bytes() == before


def test_a_checkpoint_of_other_images_or_start_or_embedding_is_refused(trained, tmp_path):
    same = {"kimg": 0.008, "snapshot_kimg": 0.008}
    with pytest.raises(ConfigError, match="another configuration"):
        train_generator(config(**same), images(41), trained, None, CPU)
    with pytest.raises(ConfigError, match="another configuration"):
        train_generator(config(**same), images(), trained, Means(), CPU)
    first = str(trained / "generator.safetensors")
    train_generator(config(**same, start_from=first), images(), tmp_path / "a", None, CPU)
    other = str(tmp_path / "a" / "generator.safetensors")
    with pytest.raises(ConfigError, match="another configuration"):
        train_generator(config(**same, start_from=other), images(), tmp_path / "a", None, CPU)


def test_moved_files_are_still_the_same_run(trained):
    moved = config(kimg=0.008, snapshot_kimg=0.008, data={"path": "/elsewhere/set"}, device="cpu", split="train")
    assert train_generator(moved, images(), trained, None, CPU) == trained / "generator.safetensors"


class Means:
    """An embedding small enough to follow by hand."""

    name, weights_sha256 = "means", "0" * 64

    def embed(self, batch):
        return torch.nn.functional.adaptive_avg_pool2d(batch, 2).flatten(1)


def test_snapshots_are_chosen_by_fid_and_the_card_says_in_which_embedding(tmp_path):
    out = tmp_path / "out"
    train_generator(config(), images(120), out, Means(), CPU)
    card = json.loads((out / "generator.json").read_text())
    rows = [json.loads(line) for line in (out / "history.jsonl").read_text().splitlines()]
    assert card["fid"]["embedding"]["name"] == "means"
    assert card["fid"]["value"] == pytest.approx(min(r["fid"] for r in rows), abs=1e-4)
    assert card["seed"] == 0


def test_fid_takes_embeddings_of_low_precision(trained):
    class Low(Means):
        def embed(self, batch):
            return super().embed(batch).bfloat16()

    g = load_generator(trained / "generator.safetensors").generator
    reals = torch.rand(60, 4, generator=torch.Generator().manual_seed(0))
    fid = generator_fid(g, reals, Low(), 60, 0)
    assert fid == pytest.approx(generator_fid(g, reals, Means(), 60, 0), rel=0.05)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device: FID across devices, resuming on one")
def test_training_with_an_embedding_runs_and_resumes_on_cuda(tmp_path):
    class Linear(Means):
        def __init__(self):
            self.weight = torch.eye(4, device="cuda")

        def embed(self, batch):
            return super().embed(batch) @ self.weight

    cuda = torch.device("cuda")
    train_generator(config(kimg=0.032), images(120), tmp_path, Linear(), cuda)
    train_generator(config(), images(120), tmp_path, Linear(), cuda)
    assert len((tmp_path / "history.jsonl").read_text().splitlines()) == 2
    with pytest.raises(ConfigError, match="another configuration"):
        train_generator(config(), images(120), tmp_path, Means(), CPU)


def test_a_kept_snapshot_leaves_a_picture_of_its_images(trained):
    with Image.open(trained / "samples.png") as picture:
        assert (picture.size, picture.mode, picture.format) == ((8 * 16, 6 * 16), "L", "PNG")
        seen = torch.from_numpy(np.array(picture)).float() / 255
    g = load_generator(trained / "generator.safetensors").generator
    grid = sample_grid(g, 6, 8, seed=0)
    assert_close(seen, grid[0], atol=0.5 / 255 + 1e-6, rtol=0)
    assert {f.name for f in trained.iterdir()} == {
        "checkpoint.pt", "generator.json", "generator.safetensors", "history.jsonl", "samples", "samples.png",
    }  # fmt: skip


def test_cards_name_files_without_their_folders(tmp_path, trained):
    start = str(trained / "generator.safetensors")
    away = config(kimg=0.008, snapshot_kimg=0.008, data={"path": "/home/someone/chest"}, start_from=start)
    path = train_generator(away, images(), tmp_path, None, CPU)
    with safe_open(path, framework="pt") as file:
        texts = [file.metadata()["card"], (tmp_path / "generator.json").read_text()]
    for text in texts:
        assert "someone" not in text
        assert str(trained) not in text
        card = json.loads(text)
        assert card["data"] == card["config"]["data"]["path"] == "chest"
        assert card["config"]["start_from"] == "generator.safetensors"
    named = portable(config(start_from="embedded:phantom"), "start_from")
    assert (named["data"]["path"], named["start_from"]) == ("phantom", "embedded:phantom")
    assert portable(config(), "start_from")["start_from"] is None


def test_the_global_random_stream_is_untouched(tmp_path):
    before = torch.get_rng_state()
    train_generator(config(kimg=0.016, snapshot_kimg=0.016), images(), tmp_path, None, CPU)
    assert torch.equal(before, torch.get_rng_state())


def test_fine_tuning_keeps_the_finest_discriminator_blocks(tmp_path):
    first = train_generator(config(kimg=0.008), images(), tmp_path / "a", None, CPU)
    changed = config(kimg=0.024, start_from=str(first), freeze_discriminator=1)
    second = load_generator(train_generator(changed, images(), tmp_path / "b", None, CPU)).discriminator
    before = load_generator(first).discriminator
    assert_close(second.b16.conv0.weight, before.b16.conv0.weight, rtol=0, atol=0)
    assert not torch.equal(second.b8.conv0.weight, before.b8.conv0.weight)


def test_bad_input_is_named(tmp_path):
    with pytest.raises(GeneratorError, match="power of two"):
        train_generator(config(), images(size=24), tmp_path, None, CPU)
    with pytest.raises(DataError, match="batch needs 8"):
        train_generator(config(), images(n=4), tmp_path, None, CPU)
    with pytest.raises(ConfigError, match="start_from"):
        parse_config(GeneratorTrainConfig, {"data": {"path": "phantom"}, "freeze_discriminator": 2}, "a test")
    file = tmp_path / "g.toml"
    file.write_text('kimgs = 1\n[data]\npath = "phantom"\n')
    with pytest.raises(ConfigError, match="did you mean 'kimg'"):
        load_generator_train_config(file)


def test_the_configuration_file_runs_on_the_phantom(tmp_path):
    file = tmp_path / "g.toml"
    file.write_text(
        "kimg = 0.016\nbatch_size = 8\nz_dim = 8\nw_dim = 8\nchannel_base = 128\nchannel_max = 8\n"
        "snapshot_kimg = 0.016\n"
        'fid_embedding = "none"\n[data]\npath = "phantom"\n[data.phantom]\ncalibration = 30\naudit = 6\n'
    )
    path = run_generator_training(load_generator_train_config(file), tmp_path / "out")
    grid = sample_grid(load_generator(path).generator, 2, 3, seed=0)
    assert grid.shape == (1, 128, 192)


def test_reading_keeps_bytes():
    data = images(5)
    assert torch.equal(read_uint8(data, 2)[3, 0], torch.from_numpy(data.read_image(3)))
