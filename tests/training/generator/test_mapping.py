"""Fitting the mapping network: the gap closes, what draws stays, a killed run goes on, the card says what was done."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from support_kills import survives_every_kill
from typer.testing import CliRunner

from audit.cli import app
from audit.data.audit_set import AuditSet
from audit.embeddings.domain import DomainEncoder
from audit.embeddings.embedding import Pixels
from audit.errors import ConfigError, DataError, GeneratorError
from audit.generator.files.load import load_generator, save_generator
from audit.generator.stylegan2.discriminator import Discriminator
from audit.generator.stylegan2.networks import Generator
from audit.training.generator import mapping as module
from audit.training.generator.mapping import PIXELS_SIDE, fit_mapping
from audit.training.generator.mapping_config import FitMappingConfig, load_fit_mapping_config

CPU = torch.device("cpu")


class Means:
    """A judge small enough to follow by hand."""

    name, weights_sha256 = "means", "0" * 64

    def embed(self, batch):
        return torch.nn.functional.adaptive_avg_pool2d(batch, 2).flatten(1)


def images(n=640, size=16, classes=1):
    """Bright blobs of all strengths, a class's in its own half of the image."""
    rng = np.random.default_rng(0)
    labels = np.arange(n) % classes
    pixels = rng.normal(40, 8, (n, size, size)) + rng.normal(60, 20, (n, 1, 1))
    pixels[labels == 1, : size // 2] += 60
    pixels = pixels.clip(0, 255).astype(np.uint8)
    names, ids, splits = tuple("ab"[:classes]), tuple(map(str, range(n))), np.full(n, "train")
    return AuditSet(pixels.__getitem__, labels, names, ids, splits, (1, size, size))


def weights(path):
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping


def config(**changes):
    base = {
        "data": {"path": "phantom"}, "generator": "g.safetensors", "kimg": 2.56, "batch_size": 32, "lr": 0.05,
        "window_kimg": 0.5, "snapshot_kimg": 1.28, "fid_images": 50,
    }  # fmt: skip
    return FitMappingConfig(**(base | changes))


@pytest.fixture
def file(tmp_path, monkeypatch):
    """An untrained generator's file; gaps are measured on few images."""
    monkeypatch.setattr(module, "MEASURED", 400)
    return saved(tmp_path / "g.safetensors")


def saved(path, classes=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        g, d = Generator(8, 8, 16, 1, 64, 8, c_dim=classes), Discriminator(16, 1, 64, 8, c_dim=classes)
    save_generator(path, g, d, {"card": {"kimg": 3.0, "data": "toy", "fid": {"value": 9.0}}})
    return path


def fitted(file, out, data=None, networks=None, judge=None, **changes):
    """Path and card of a fit."""
    networks = networks or [Pixels(PIXELS_SIDE)]
    path = fit_mapping(config(**changes), load_generator(file), data or images(), out, networks, judge)
    return path, json.loads((out / "generator.json").read_text())


def test_a_kill_behind_any_file_is_survived(file, tmp_path, monkeypatch):
    short = {"kimg": 0.256, "snapshot_kimg": 0.128, "window_kimg": 0.1}
    survives_every_kill(lambda out: fitted(file, out, **short)[0], tmp_path, monkeypatch)


def test_the_gap_closes_and_all_but_the_mapping_network_stays(file, tmp_path):
    path, card = fitted(file, tmp_path / "out", judge=Means())
    before, after = card["mapping"]["before"], card["mapping"]["after"]
    assert after["mean_gap"] + after["covariance_gap"] < 0.8 * (before["mean_gap"] + before["covariance_gap"])
    assert card["fid"] == after["fid"] != before["fid"]
    old, new = weights(file), weights(path)
    changed = {name for name in old if not torch.equal(old[name], new[name])}
    assert changed == {name for name in old if name.startswith("G.mapping.")}


def test_an_anchor_keeps_the_codes_nearer_to_what_they_were(file, tmp_path):
    z = torch.randn(500, 8, generator=torch.Generator().manual_seed(1))
    old = load_generator(file).generator.mapping(z)

    def moved(anchor):
        path, _ = fitted(file, tmp_path / str(anchor), anchor=anchor)
        return (load_generator(path).generator.mapping(z) - old).square().mean()

    # An untrained generator is so far away that only a heavy anchor weighs against the gap.
    assert moved(1e6) < 0.5 * moved(0.0)


def test_the_card_keeps_the_trainings_and_says_what_was_fitted_to_what(file, tmp_path):
    _, card = fitted(file, tmp_path / "out")
    assert (card["kimg"], card["data"]) == (3.0, "toy")
    said = card["mapping"]
    assert said["generator_sha256"] == load_generator(file).sha256
    assert [(f["name"], f["directions"] > 0) for f in said["features"]] == [("pixels", True)]
    assert said["config"]["generator"] == "g.safetensors"
    assert "fid" not in said["after"], "no judge, no number"
    assert "fid" not in card, "what was measured before says nothing of it now"
    assert "torch" in card.pop("versions")
    assert load_generator(tmp_path / "out" / "generator.safetensors").metadata["card"] == json.dumps(card)


def test_the_mean_code_is_that_of_the_new_mapping_network(file, tmp_path):
    g = load_generator(fitted(file, tmp_path / "out")[0]).generator
    z = torch.randn(20_000, 8, generator=torch.Generator().manual_seed(3))
    w = g.mapping(z)[:, 0]
    assert (w.mean(0) - g.mapping.w_avg).abs().max() < 5 * w.std(0).max() / 10_000**0.5


def test_a_killed_run_goes_on_to_the_same_weights(file, tmp_path, monkeypatch):
    class Killed(Exception):
        pass

    whole, _ = fitted(file, tmp_path / "whole")
    update = module._Fit.update

    def killing(fit, *rest):
        if fit.step == 50:
            raise Killed
        update(fit, *rest)

    monkeypatch.setattr(module._Fit, "update", killing)
    with pytest.raises(Killed):
        fitted(file, tmp_path / "killed")
    assert not (tmp_path / "killed" / "generator.safetensors").exists(), "nothing half-fitted is left as a result"
    monkeypatch.setattr(module._Fit, "update", update)
    again, _ = fitted(file, tmp_path / "killed")
    old, new = weights(whole), weights(again)
    assert all(torch.equal(old[name], new[name]) for name in old)
    with pytest.raises(ConfigError, match="another configuration"):
        fitted(file, tmp_path / "killed", lr=0.02)


def test_classes_are_drawn_as_often_as_the_data_have_them(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "MEASURED", 400)
    file = saved(tmp_path / "c.safetensors", classes=2)
    _, card = fitted(file, tmp_path / "out", images(classes=2))
    before, after = card["mapping"]["before"], card["mapping"]["after"]
    assert after["mean_gap"] + after["covariance_gap"] < before["mean_gap"] + before["covariance_gap"]


def test_images_of_another_size_are_refused_before_anything_is_written(file, tmp_path):
    with pytest.raises(GeneratorError, match=r"set data\.image_size = 16"):
        fitted(file, tmp_path / "out", images(size=32))
    assert not (tmp_path / "out").exists()


def test_features_of_an_absent_discriminator_are_refused(file):
    loaded = replace(load_generator(file), discriminator=None)
    with pytest.raises(GeneratorError, match="holds no discriminator"):
        module._network("discriminator", loaded, CPU)


def test_too_few_images_for_the_directions_say_how_many_are_needed(file, tmp_path):
    with pytest.raises(DataError, match=r"has 50 images, .* raise least_share"):
        fitted(file, tmp_path / "out", images(50), least_share=0.0)
    assert not (tmp_path / "out").exists()


def test_a_judge_with_the_weights_of_a_feature_is_refused(file, tmp_path):
    with pytest.raises(ConfigError, match="weights of one of the features"):
        fitted(file, tmp_path / "out", networks=[Means()], judge=Means())


def test_a_run_that_diverges_says_so(file, tmp_path):
    with pytest.raises(ConfigError, match=r"no longer finite after .* lower lr"):
        fitted(file, tmp_path / "out", lr=1e30)
    assert not (tmp_path / "out" / "generator.safetensors").exists()


def test_files_are_found_beside_the_configuration_and_the_judge_is_another_network(tmp_path):
    toml = tmp_path / "m.toml"
    toml.write_text('generator = "g.safetensors"\nfeatures = ["pixels", "a.safetensors"]\n[data]\npath = "images"\n')
    read = load_fit_mapping_config(toml)
    assert read.features == ("pixels", str(tmp_path / "a.safetensors"))
    assert read.generator == str(tmp_path / "g.safetensors")
    toml.write_text(
        'generator = "g.safetensors"\nfeatures = ["a.safetensors"]\nfid_embedding = "a.safetensors"\n'
        '[data]\npath = "images"\n'
    )
    with pytest.raises(ConfigError, match="among the features"):
        load_fit_mapping_config(toml)
    toml.write_text('generator = "g.safetensors"\nfeatures = ["pixel"]\n[data]\npath = "images"\n')
    with pytest.raises(ConfigError, match="did you mean 'pixels'"):
        load_fit_mapping_config(toml)


def test_the_command_fits_the_shipped_generator_to_networks_of_every_kind(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "MEASURED", 100)
    network = DomainEncoder("other", (1, 64, 64), (8, 8), 8)
    save_file(network.state_dict(), tmp_path / "other.safetensors", metadata=network.metadata())
    (tmp_path / "m.toml").write_text(
        'generator = "shipped:phantom"\nfeatures = ["pixels", "discriminator", "other.safetensors"]\n'
        "least_share = 0.2\nkimg = 0.064\nbatch_size = 16\nwindow_kimg = 0.1\nfid_images = 60\n"
        '[data]\npath = "phantom"\n[data.phantom]\ncalibration = 700\n'
    )
    done = CliRunner().invoke(app, ["train", "mapping", str(tmp_path / "m.toml"), "--out", str(tmp_path / "out")])
    assert done.exit_code == 0, done.output
    card = json.loads((tmp_path / "out" / "generator.json").read_text())
    assert [f["name"] for f in card["mapping"]["features"]] == ["pixels", "discriminator", "other"]
    assert card["fid"]["embedding"]["name"] == "phantom-factors"
    assert card["mapping"]["config"]["features"] == ["pixels", "discriminator", "other.safetensors"]
    assert load_generator(tmp_path / "out" / "generator.safetensors").generator.resolution == 64
