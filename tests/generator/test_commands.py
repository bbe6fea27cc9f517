"""What the commands say of a file, write and draw."""

import json
import pickle
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image
from support_generators import rosinality_networks, snapshot, tiny
from torch.testing import assert_close
from typer.testing import CliRunner

from audit.cli import app
from audit.config import load_config
from audit.data.load import load_data
from audit.errors import GeneratorError
from audit.generator.commands import convert_generator, inspect_generator, sample_generator
from audit.generator.features import DiscriminatorFeatures
from audit.generator.files.load import load_generator, save_generator
from audit.generator.grid import sample_grid, save_grid, square_columns
from audit.pipeline.networks import load_networks


@pytest.fixture
def snapshot_file(tmp_path):
    g, d = tiny(c_dim=3)
    (tmp_path / "s.pkl").write_bytes(snapshot(g.state_dict(), d.state_dict(), g_kwargs={"z_dim": 6}))
    return tmp_path / "s.pkl"


def test_inspect_says_what_a_file_is(snapshot_file):
    found = inspect_generator(snapshot_file)
    g = load_generator(snapshot_file).generator
    assert (found["format"], found["resolution"], found["channels"], found["classes"]) == ("stylegan2-ada", 16, 1, 3)
    assert found["generator"]["parameters"] == sum(p.numel() for p in g.parameters())
    assert found["metadata"]["init_kwargs"] == {"z_dim": 6}
    assert "refused" not in found
    result = CliRunner().invoke(app, ["generator", "inspect", str(snapshot_file), "--json"])
    assert json.loads(result.output) == json.loads(json.dumps(found))
    text = CliRunner().invoke(app, ["generator", "inspect", "shipped:phantom"]).output
    assert "format: spruce-audit\n" in text
    assert "discriminator: parameters = " in text


def test_inspect_names_what_a_hostile_pickle_asks_for(tmp_path):
    file = tmp_path / "x.pkl"
    file.write_bytes(pickle.dumps({"G_ema": Counter("ab"), "D": print}))
    found = inspect_generator(file)
    assert found["globals_refused"] == ["builtins.print"]
    assert "asks for" in found["refused"]
    file.write_bytes(b"\x80\x04\x8c\x05o\x1b[2Js\x8c\x01x\x93.")
    assert "\x1b" not in CliRunner().invoke(app, ["generator", "inspect", str(file)]).output
    file.write_bytes(b"nothing known")
    assert "neither" in inspect_generator(file)["refused"]
    with pytest.raises(GeneratorError, match="does not exist"):
        inspect_generator(tmp_path / "none")


def test_convert_keeps_images_discriminator_and_origin(snapshot_file, tmp_path):
    out = tmp_path / "new" / "g.safetensors"
    result = CliRunner().invoke(app, ["generator", "convert", str(snapshot_file), "--out", str(out)])
    assert result.exit_code == 0, result.output
    before, after = load_generator(snapshot_file), load_generator(out)
    z, c = torch.randn(3, 6, generator=torch.Generator().manual_seed(0)), torch.eye(3)
    images = before.generator(z, c=c)
    assert_close(after.generator(z, c=c), images, rtol=0, atol=0)
    assert_close(after.discriminator(images, c), before.discriminator(images, c), rtol=0, atol=0)
    assert after.format == "spruce-audit"
    assert json.loads(after.metadata["converted_from"])["sha256"] == before.sha256
    again = convert_generator(out, tmp_path / "again.safetensors")
    assert json.loads(load_generator(again).metadata["converted_from"])["format"] == "spruce-audit"
    with pytest.raises(GeneratorError, match="safetensors"):
        convert_generator(out, tmp_path / "g.pt")


def test_sample_draws_a_grid(snapshot_file, tmp_path):
    def drawn(*more):
        out = tmp_path / "grid.png"
        result = CliRunner().invoke(app, ["generator", "sample", str(snapshot_file), "--out", str(out), *more])
        assert result.exit_code == 0, result.output
        return torch.from_numpy(np.array(Image.open(out).convert("L")))

    five = drawn("--n", "5")
    assert five.shape == (32, 48)
    assert (five[16:, 32:] == 255).all()  # the sixth place is empty
    assert torch.equal(five, drawn("--n", "5", "--seed", "0"))
    assert not torch.equal(five, drawn("--n", "5", "--seed", "1"))
    first, second = drawn("--n", "2", "--truncation", "0", "--class", "1").split(16, dim=1)
    assert torch.equal(first, second)  # truncated wholly: the mean image
    assert not torch.equal(drawn("--class", "0"), drawn("--class", "2"))
    for wrong, said in ((3, "classes are 0 to 2"), (-1, "classes are 0 to 2")):
        with pytest.raises(GeneratorError, match=said):
            sample_generator(snapshot_file, tmp_path / "x.png", label=wrong)
    with pytest.raises(GeneratorError, match="no classes"):
        sample_generator("shipped:phantom", tmp_path / "x.png", label=0)
    with pytest.raises(GeneratorError, match="--n"):
        sample_generator(snapshot_file, tmp_path / "x.png", n=0)


@pytest.mark.parametrize("n", [1, 2, 3, 4, 7, 16, 17, 100])
def test_grids_are_nearly_square(n):
    columns = square_columns(n)
    rows = -(-n // columns)
    assert rows * columns >= n > (rows - 1) * columns
    assert 0 <= columns - rows <= 1


def test_colour_grids_round_to_the_nearest_level(tmp_path):
    g, _ = tiny(channels=3)
    grid = sample_grid(g, 2, 2, seed=0)
    save_grid(grid, tmp_path / "g.png")
    read = torch.from_numpy(np.array(Image.open(tmp_path / "g.png"))).permute(2, 0, 1)
    assert (read / 255 - grid).abs().max() <= 0.5 / 255 + 1e-6


def test_an_audit_stands_on_a_snapshot_as_on_the_same_weights_of_ours(tmp_path):
    shipped = load_generator("shipped:phantom")
    file = tmp_path / "s.pkl"
    file.write_bytes(snapshot(shipped.generator.state_dict(), shipped.discriminator.state_dict()))
    (tmp_path / "c.toml").write_text(
        'name = "x"\n[data]\npath = "phantom"\n[data.phantom]\ncalibration = 60\naudit = 6\n'
        '[generator]\npath = "s.pkl"\n'
        '[inversion]\nencoder = "shipped:phantom"\n[metrics]\ncanonical = "off"\nembedding = "discriminator"\n'
        '[[classifiers]]\nname = "plain"\ncheckpoint = "shipped:plain"\n'
    )
    config = load_config(tmp_path / "c.toml")
    networks = load_networks(config, load_data(config.data, 0), torch.device("cpu"))
    assert networks.loaded.format == "stylegan2-ada"
    assert networks.encoder is not None  # it checks that the weights are those it was trained for
    assert networks.embedding.weights_sha256 == DiscriminatorFeatures(shipped.discriminator).weights_sha256


def test_a_rosinality_checkpoint_converts(tmp_path):
    g, d = rosinality_networks()
    torch.save({"g_ema": g, "d": d}, tmp_path / "r.pt")
    out = convert_generator(tmp_path / "r.pt", tmp_path / "r.safetensors")
    before, after = load_generator(tmp_path / "r.pt"), load_generator(out)
    assert {k: v.tolist() for k, v in before.generator.state_dict().items()} == {
        k: v.tolist() for k, v in after.generator.state_dict().items()
    }
    save_generator(tmp_path / "x.safetensors", after.generator, None, {})
    assert inspect_generator(tmp_path / "x.safetensors")["discriminator"] is None
