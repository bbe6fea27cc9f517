"""Training moves, keeps its promises about resuming and leaves complete files."""

import json
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file
from support_kills import survives_every_kill
from torch.testing import assert_close

from audit.config import parse_config
from audit.data.audit_set import AuditSet
from audit.embeddings.domain import DomainEncoder
from audit.errors import ConfigError, DataError, GeneratorError, MetricError
from audit.generator.files.load import load_generator
from audit.generator.grid import sample_grid
from audit.training.generator import step, train
from audit.training.generator.config import GeneratorTrainConfig, load_generator_train_config, portable, r1_heuristic
from audit.training.generator.snapshot import embed_drawn, fid_network
from audit.training.generator.state import State
from audit.training.generator.stream import read_uint8
from audit.training.generator.train import run_generator_training, train_generator

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


def weights(path):
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_an_interrupted_run_ends_with_the_same_weights_to_the_bit(tmp_path):
    data, settings = images(), {"ada_kimg": 0.05, "ada_target": 0.001, "lr": 0.01, "r1_gamma": 1e-3}
    whole = train_generator(config(**settings), data, tmp_path / "whole", None, CPU)
    train_generator(config(kimg=0.032, **settings), data, tmp_path / "parts", None, CPU)
    parts = train_generator(config(**settings), data, tmp_path / "parts", None, CPU)
    assert same(weights(whole), weights(parts))
    row = json.loads((tmp_path / "parts" / "history.jsonl").read_text().splitlines()[-1])
    assert row["p"] > 0, "augmentation took part"
    start = train_generator(config(kimg=0.008, snapshot_kimg=0.008), data, tmp_path / "s", None, CPU)
    assert not same(weights(start), weights(whole))


def test_a_run_killed_within_a_step_goes_on_to_the_same_weights(tmp_path, monkeypatch):
    class Killed(Exception):
        pass

    def killing(state, *rest):
        if state.step == 6:
            raise Killed
        step.train_step(state, *rest)

    whole = train_generator(config(), images(), tmp_path / "whole", None, CPU)
    monkeypatch.setattr(train, "train_step", killing)
    with pytest.raises(Killed):
        train_generator(config(), images(), tmp_path / "killed", None, CPU)
    monkeypatch.undo()
    assert same(weights(train_generator(config(), images(), tmp_path / "killed", None, CPU)), weights(whole))


def test_a_kill_behind_any_file_is_survived(tmp_path, monkeypatch):
    short = config(kimg=0.016, snapshot_kimg=0.008)
    survives_every_kill(lambda out: train_generator(short, images(), out, None, CPU), tmp_path, monkeypatch)


def test_streamed_images_train_to_the_same_weights(tmp_path):
    kept = train_generator(config(), images(), tmp_path / "kept", None, CPU)
    streamed = train_generator(config(cache_mb=0), images(), tmp_path / "streamed", None, CPU)
    assert same(weights(kept), weights(streamed))


def two_classes(n=40):
    """Black images of class 0 and white ones of class 1."""
    labels = np.arange(n) % 2
    pixels = np.repeat(labels.astype(np.uint8) * 255, 256).reshape(n, 16, 16)
    return AuditSet(pixels.__getitem__, labels, ("a", "b"), tuple(map(str, range(n))), np.full(n, "train"), (1, 16, 16))


def test_a_conditional_training_tells_both_networks_the_class(tmp_path):
    settings = {"conditional": True, "path_length_weight": 0}
    start = train_generator(config(kimg=0.008, **settings), two_classes(), tmp_path / "start", Means(), CPU)
    path = train_generator(config(**settings), two_classes(), tmp_path / "out", Means(), CPU)
    loaded = load_generator(path)
    assert (loaded.generator.c_dim, loaded.discriminator.c_dim) == (2, 2)
    before, after = weights(start), weights(path)
    assert not torch.equal(before["G.mapping.embed.weight"], after["G.mapping.embed.weight"])
    assert not torch.equal(before["D.mapping.embed.weight"], after["D.mapping.embed.weight"])
    z = torch.ones(1, 8)
    first, second = (loaded.generator(z, c=c[None]) for c in torch.eye(2))
    assert not torch.allclose(first, second)
    assert json.loads((tmp_path / "out" / "generator.json").read_text())["classes"] == ["a", "b"]
    with pytest.raises(GeneratorError, match="draws 2 classes where this training has none: set conditional"):
        train_generator(config(start_from=str(path)), images(), tmp_path / "b", None, CPU)
    with pytest.raises(ConfigError, match="conditional = true needs two classes"):
        train_generator(config(conditional=True), images(), tmp_path / "c", None, CPU)


def test_r1_follows_the_heuristic_and_the_card_says_so(tmp_path, trained):
    assert r1_heuristic(64, 32) == pytest.approx(0.0256)
    card = json.loads((trained / "generator.json").read_text())
    assert card["config"]["r1_gamma"] == pytest.approx(2e-4 * 16**2 / 8)
    assert config(r1_gamma=0.3).resolved(16).r1_gamma == 0.3
    assert config(r1_gamma=0).resolved(16).r1_gamma == 0
    assert config(ema_rampup=False).ema_rampup is None


def test_tensorboard_holds_scalars_and_pictures(tmp_path):
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator", reason="an extra")
    train_generator(config(kimg=0.032, snapshot_kimg=0.016, tensorboard=True), images(120), tmp_path, Means(), CPU)
    found = events.EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert {"d_loss", "g_loss", "r_t", "p", "fid", "recall", "kimg_per_second"} <= set(found.Tags()["scalars"])
    assert [event.step for event in found.Scalars("fid")] == [16, 32]
    assert found.Tags()["images"] == ["samples"]


def test_tensorboard_that_is_not_installed_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ConfigError, match=r"pip install 'spruce-audit\[tensorboard\]'"):
        train_generator(config(tensorboard=True), images(), tmp_path, None, CPU)


def test_the_latest_pictures_are_kept(tmp_path):
    train_generator(config(snapshot_kimg=0.016, sample_grids=2), images(), tmp_path, None, CPU)
    assert sorted(p.name for p in (tmp_path / "samples").iterdir()) == ["0000000048.png", "0000000064.png"]


def test_loose_images_in_a_folder_train_a_generator(tmp_path):
    folder = tmp_path / "loose"
    folder.mkdir()
    for index, picture in enumerate(np.random.default_rng(0).integers(0, 256, (12, 16, 16), dtype=np.uint8)):
        Image.fromarray(picture).save(folder / f"{index}.png")
    settings = config(kimg=0.008, data={"path": str(folder)}, device="cpu", fid_embedding="none")
    assert load_generator(run_generator_training(settings, tmp_path / "out")).generator.resolution == 16


def test_low_precision_trains(tmp_path):
    path = train_generator(config(kimg=0.032, precision="bfloat16"), images(), tmp_path, None, CPU)
    assert all(torch.isfinite(value).all() for value in weights(path).values())


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
    best = min(rows, key=lambda r: r["fid"])
    assert card["precision_recall"]["recall"] == pytest.approx(best["recall"], abs=1e-5)
    assert card["fid"]["floor_n"] == card["precision_recall"]["floor_n"] == 50
    assert card["seed"] == 0


def test_snapshots_are_chosen_in_a_domain_embedding_beside_the_configuration(tmp_path):
    network = DomainEncoder("chest", (1, 16, 16), (8, 8), 8)
    save_file(network.state_dict(), tmp_path / "chest.safetensors", metadata=network.metadata())
    (tmp_path / "g.toml").write_text('fid_embedding = "chest.safetensors"\n[data]\npath = "images"\n')
    read = load_generator_train_config(tmp_path / "g.toml")
    assert fid_network(read.fid_embedding, False, CPU).name == "chest"
    assert portable(read, "fid_embedding")["fid_embedding"] == "chest.safetensors"
    (tmp_path / "g.toml").write_text('fid_embedding = "inceptoin"\n[data]\npath = "images"\n')
    with pytest.raises(ConfigError, match="did you mean 'inception'"):
        load_generator_train_config(tmp_path / "g.toml")


def test_a_set_too_small_for_two_halves_says_how_small(tmp_path):
    train_generator(config(kimg=0.008), images(60), tmp_path, Means(), CPU)
    card = json.loads((tmp_path / "generator.json").read_text())
    assert (card["fid"]["n"], card["fid"]["n_real"], card["fid"]["floor_n"]) == (50, 50, 30)


def test_drawn_images_are_embedded_in_full_precision(trained):
    class Low(Means):
        def embed(self, batch):
            return super().embed(batch).bfloat16()

    g = load_generator(trained / "generator.safetensors").generator
    labels = torch.zeros(60, dtype=torch.long)
    low = embed_drawn(g, Low(), labels, 0)
    assert low.dtype == torch.float32
    assert_close(low, embed_drawn(g, Means(), labels, 0), atol=0.01, rtol=0.01)


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
    grid = sample_grid(g, 48, 8, seed=0)
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
    named = portable(config(start_from="shipped:phantom"), "start_from")
    assert (named["data"]["path"], named["start_from"]) == ("phantom", "shipped:phantom")
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


def test_fine_tuning_widens_both_networks(tmp_path):
    first = train_generator(config(kimg=0.008), images(), tmp_path / "a", None, CPU)
    wider = train_generator(
        config(kimg=0.016, start_from=str(first), channel_max=16), images(), tmp_path / "b", None, CPU
    )
    second, before = load_generator(wider), load_generator(first)
    for network in (second.generator, second.discriminator):
        assert network.settings["channel_max"] == 16
    assert second.generator.synthesis.b4.conv1.weight.shape[0] == 16
    z = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))
    assert (second.generator(z) - before.generator(z)).abs().mean() < before.generator(z).std()


def test_the_discriminator_may_be_wider(tmp_path):
    wide = {"discriminator_channel_max": 16, "discriminator_channel_base": 256}
    first = train_generator(config(kimg=0.008, **wide), images(), tmp_path / "a", None, CPU)
    onwards = config(kimg=0.008, start_from=str(first), channel_base=192)
    second = train_generator(onwards, images(), tmp_path / "b", None, CPU)
    widths = []
    for file in (first, second):
        loaded = load_generator(file)
        widths.append([n.settings["channel_base"] for n in (loaded.generator, loaded.discriminator)])
    assert widths == [[config().channel_base, 256], [192, 256]]
    assert load_generator(second).discriminator.settings["channel_max"] == 16
    with pytest.raises(GeneratorError, match="discriminator_channel_max = 8 is less than the 16"):
        State(config(start_from=str(first), discriminator_channel_max=8).resolved(16), (1, 16, 16), 0, CPU)


def test_learning_rates_fall():
    falling = config(lr_decay_from=0.008, lr_half_life=0.016).resolved(16)
    state = State(falling, (1, 16, 16), 0, CPU)
    first = [group["lr"] for group in state.g_opt.param_groups + state.d_opt.param_groups]
    for factor in (1, 1, 0.5**0.5, 0.5):
        step.train_step(
            state, falling, torch.zeros(8, 1, 16, 16, dtype=torch.uint8), torch.zeros(8).long(), step.Means()
        )
        now = [group["lr"] for group in state.g_opt.param_groups + state.d_opt.param_groups]
        assert now == pytest.approx([rate * factor for rate in first])
    with pytest.raises(ConfigError, match="lr_half_life"):
        parse_config(GeneratorTrainConfig, {"data": {"path": "phantom"}, "lr_decay_from": 5}, "a test")


def test_a_key_of_an_earlier_version_names_what_replaces_it():
    with pytest.raises(ConfigError, match=r"'widen' in a test is of an earlier version: channel_max .* channel_base"):
        parse_config(GeneratorTrainConfig, {"data": {"path": "phantom"}, "widen": 64}, "a test")
    with pytest.raises(ConfigError, match="Unknown key 'chanel_max' in a test: did you mean 'channel_max'"):
        parse_config(GeneratorTrainConfig, {"data": {"path": "phantom"}, "chanel_max": 64}, "a test")


def test_the_discriminator_may_learn_faster():
    state = State(config(discriminator_lr=0.01).resolved(16), (1, 16, 16), 0, CPU)
    rates = [optimiser.param_groups[0]["lr"] for optimiser in (state.g_opt, state.d_opt)]
    assert rates[1] / rates[0] == pytest.approx(4)


@pytest.fixture(scope="module")
def frozen(tmp_path_factory):
    """The file of a domain embedding of images of 16 pixels, not trained."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = DomainEncoder("chest", (1, 16, 16), (8, 8), 8)
    path = tmp_path_factory.mktemp("frozen") / "chest.safetensors"
    save_file(network.state_dict(), path, metadata=network.metadata())
    return path


@pytest.mark.parametrize("second", ["scales", "scales-spread", "frozen"])
def test_a_second_discriminator_teaches_and_resumes_and_is_not_kept(tmp_path, frozen, second):
    two = {"second_discriminator": str(frozen) if second == "frozen" else second}
    whole = train_generator(config(**two), images(), tmp_path / "whole", None, CPU)
    train_generator(config(kimg=0.032, **two), images(), tmp_path / "cut", None, CPU)
    resumed = train_generator(config(**two), images(), tmp_path / "cut", None, CPU)
    alone = train_generator(config(), images(), tmp_path / "alone", None, CPU)
    assert same(weights(whole), weights(resumed))
    assert weights(whole).keys() == weights(alone).keys()
    assert not same(weights(whole), weights(alone))


def test_a_frozen_network_counts_by_what_it_holds(tmp_path, frozen):
    short = {"kimg": 0.008, "snapshot_kimg": 0.008}
    train_generator(config(second_discriminator=str(frozen), **short), images(), tmp_path / "out", None, CPU)
    card = json.loads((tmp_path / "out" / "generator.json").read_text())
    assert card["config"]["second_discriminator"] == "chest.safetensors"
    moved = frozen.rename(tmp_path / "moved.safetensors")
    train_generator(config(second_discriminator=str(moved), **short), images(), tmp_path / "out", None, CPU)
    moved.rename(frozen)
    for other in ("scales", "scales-spread", "none"):
        with pytest.raises(ConfigError, match="another configuration"):
            train_generator(config(second_discriminator=other, **short), images(), tmp_path / "out", None, CPU)


def test_a_second_discriminator_is_found_and_its_absence_told(tmp_path, frozen, monkeypatch):
    monkeypatch.setenv("SPRUCE_AUDIT_WEIGHTS", str(tmp_path))
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    (tmp_path / "g.toml").write_text('second_discriminator = "lpips-alex"\n[data]\npath = "images"\n')
    read = load_generator_train_config(tmp_path / "g.toml")
    assert read.second_discriminator == "lpips-alex"
    with pytest.raises(MetricError, match=r"run `spruce-audit weights pull lpips-v0.1-alex"):
        train_generator(read, images(), tmp_path / "out", None, CPU)
    assert not (tmp_path / "out").exists()
    (tmp_path / "g.toml").write_text('second_discriminator = "chest.safetensors"\n[data]\npath = "images"\n')
    assert load_generator_train_config(tmp_path / "g.toml").second_discriminator == str(tmp_path / "chest.safetensors")
    with pytest.raises(MetricError, match="reads images"):
        train_generator(config(second_discriminator=str(frozen)), images(size=32), tmp_path / "out", None, CPU)
    with pytest.raises(ConfigError, match="did you mean 'scales'"):
        parse_config(GeneratorTrainConfig, {"data": {"path": "phantom"}, "second_discriminator": "scale"}, "a test")
    both = {"second_discriminator": "a.safetensors", "fid_embedding": "a.safetensors"}
    with pytest.raises(ConfigError, match="learns to please"):
        parse_config(GeneratorTrainConfig, {"data": {"path": "phantom"}, **both}, "a test")


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
    grid = sample_grid(load_generator(path).generator, 6, 3, seed=0)
    assert grid.shape == (1, 128, 192)


def test_reading_keeps_bytes():
    data = images(5)
    assert torch.equal(read_uint8(data, 2)[3, 0], torch.from_numpy(data.read_image(3)))
