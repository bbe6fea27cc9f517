"""Generator files as people have them - converted, wrapped, pickled whole, with extras - draw what their weights do."""

import argparse
import collections
import datetime
import enum
import itertools
import json
import pathlib
import pickle
import uuid

import numpy as np
import pytest
import torch
from support_generators import (
    PERSISTENT_FAKES,
    rosinality_codes,
    rosinality_images,
    rosinality_networks,
    snapshot,
    tiny,
    whole_module,
)
from torch.testing import assert_close
from typer.testing import CliRunner

from audit.cli import app
from audit.generator.files.load import load_generator, save_generator

LEGACY_D = {
    "c_dim": 3, "img_resolution": 16, "img_channels": 1, "architecture": "resnet", "channel_base": 64, "channel_max": 8,
    "num_fp16_res": 0, "conv_clamp": None, "cmap_dim": None,
    "block_kwargs": {"activation": "lrelu", "resample_filter": [1, 3, 3, 1], "freeze_layers": 0},
    "mapping_kwargs": {
        "num_layers": 0, "embed_features": None, "layer_features": None, "activation": "lrelu", "lr_multiplier": 0.1,
    },
    "epilogue_kwargs": {"mbstd_group_size": None, "mbstd_num_channels": 1, "activation": "lrelu"},
}  # fmt: skip
"""What the converter of TensorFlow's networks says of a discriminator."""
LEGACY_G = {
    "z_dim": 6, "c_dim": 3, "w_dim": 8, "img_resolution": 16, "img_channels": 1,
    "mapping_kwargs": {
        "num_layers": 3, "embed_features": None, "layer_features": None, "activation": "lrelu", "lr_multiplier": 0.01,
        "w_avg_beta": 0.995,
    },
    "synthesis_kwargs": {
        "channel_base": 64, "channel_max": 8, "num_fp16_res": 0, "conv_clamp": None, "architecture": "skip",
        "resample_filter": [1, 3, 3, 1], "use_noise": True, "activation": "lrelu",
    },
}  # fmt: skip


def codes(n=3):
    return torch.randn(n, 6, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def draws_as(loaded, g, c=None):
    """Demand that both draw the same images of the same codes, and return them."""
    expected = g(codes(), c=c)
    assert_close(loaded.generator(codes(), c=c), expected, rtol=0, atol=1e-5)
    return expected


# --- what the official converter of TensorFlow's networks writes -----------------------------------------------------


@pytest.mark.parametrize("layers", [0, 2])
@torch.no_grad()
def test_a_converted_conditional_network_judges_as_its_equations_do(tmp_path, layers):
    g, d = tiny(c_dim=3, d_mapping_layers=layers)
    judge = {name: tensor for name, tensor in d.state_dict().items() if name != "mapping.w_avg"}
    # The file stores a layer's weights for its own multiplier 0.1, ours for 0.01.
    judge |= {name: tensor / 10 for name, tensor in judge.items() if name.startswith("mapping.fc")}
    (tmp_path / "s.pkl").write_bytes(snapshot(g.state_dict(), judge, g_kwargs=LEGACY_G, d_kwargs=LEGACY_D))
    loaded = load_generator(tmp_path / "s.pkl")
    images = draws_as(loaded, g, torch.eye(3))
    assert loaded.notes == ()
    assert loaded.discriminator.settings["mbstd_group"] == 2**16
    d.b4.group = 2**16
    logits = d(images, torch.eye(3))
    assert_close(loaded.discriminator(images, torch.eye(3)), logits, rtol=1e-5, atol=1e-5)
    assert logits.std() > 0


@torch.no_grad()
def test_a_generators_own_learning_rate_multiplier_is_folded_into_its_weights(tmp_path):
    g, _ = tiny()
    state = {n: t / 4 if n.startswith("mapping.fc") else t for n, t in g.state_dict().items()}
    (tmp_path / "s.pkl").write_bytes(snapshot(state, None, g_kwargs={"mapping_kwargs": {"lr_multiplier": 0.04}}))
    draws_as(load_generator(tmp_path / "s.pkl"), g)


def test_layers_made_without_noise_draw_none(tmp_path):
    g, _ = tiny()
    state = {name: tensor for name, tensor in g.state_dict().items() if "noise" not in name}
    (tmp_path / "s.pkl").write_bytes(snapshot(state, None, g_kwargs={"synthesis_kwargs": {"use_noise": False}}))
    loaded = load_generator(tmp_path / "s.pkl")
    with torch.no_grad():
        assert_close(loaded.generator(codes()), g(codes(), noise="none"), rtol=0, atol=1e-5)
    assert loaded.notes == ()


# --- a fault of the discriminator ------------------------------------------------------------------------------------


def faulty():
    """Faults of a discriminator: what changes in its tensors and settings, and what the note says."""
    return {
        "cifar": ({"b8.skip.weight": None, "b16.skip.weight": None}, {"architecture": "orig"}, "architecture = orig"),
        "cifar-by-shape": ({"b8.skip.weight": None, "b16.skip.weight": None}, {}, "not residual"),
        "skip": ({}, {"architecture": "skip"}, "architecture = skip"),
        "activation": ({}, {"block_kwargs": {"activation": "relu"}}, "activation = relu"),
        "maps": ({"b4.conv.weight": torch.ones(8, 8, 3, 3)}, {"epilogue_kwargs": {"mbstd_num_channels": 0}}, "adds 0"),
        "nan": ({"b4.out.bias": torch.tensor([torch.nan])}, {}, "NaN"),
        "extra": ({"b4.gate": torch.ones(1)}, {}, "no place"),
        "missing": ({"b4.fc.bias": None}, {}, "missing"),
        "filter": ({"b8.conv1.resample_filter": torch.full((4, 4), 1 / 16)}, {}, "another filter"),
        "integers": ({"b4.fc.bias": torch.ones(8, dtype=torch.int64)}, {}, "int64"),
        "images": ({"b16.fromrgb.weight": torch.ones(8, 3, 1, 1)}, {}, "it is for images"),
    }


def test_a_multiplier_of_a_mapping_that_is_not_there_is_no_fault(tmp_path):
    g, d = tiny()
    for multiplier in (-1, None):
        kwargs = {"mapping_kwargs": {"lr_multiplier": multiplier}}
        (tmp_path / "s.pkl").write_bytes(snapshot(g.state_dict(), d.state_dict(), d_kwargs=kwargs))
        assert load_generator(tmp_path / "s.pkl").discriminator is not None
    g, d = tiny(c_dim=3)
    (tmp_path / "s.pkl").write_bytes(snapshot(g.state_dict(), d.state_dict(), d_kwargs=kwargs))
    loaded = load_generator(tmp_path / "s.pkl")
    assert loaded.discriminator is None
    assert "lr_multiplier = None" in loaded.notes[0]


@pytest.mark.parametrize("fault", faulty())
def test_a_fault_of_the_discriminator_never_costs_the_generator(tmp_path, fault):
    g, d = tiny()
    change, kwargs, said = faulty()[fault]
    judge = {name: tensor for name, tensor in (d.state_dict() | change).items() if tensor is not None}
    file = tmp_path / "s.pkl"
    file.write_bytes(snapshot(g.state_dict(), judge, d_kwargs=kwargs))
    loaded = load_generator(file)
    draws_as(loaded, g)
    assert loaded.discriminator is None
    assert [said in note for note in loaded.notes if "the discriminator is left out" in note] == [True]
    result = CliRunner().invoke(app, ["generator", "inspect", str(file)])
    assert result.exit_code == 0
    assert "the discriminator is left out" in result.output


def test_a_converted_file_keeps_the_notes_of_its_origin(tmp_path):
    g, d = rosinality_networks()
    g = {name: tensor for name, tensor in g.items() if not name.startswith("noises.")}
    torch.save({"g_ema": g, "d": d | {"surprise": torch.ones(1)}}, tmp_path / "r.pt")
    notes = load_generator(tmp_path / "r.pt").notes
    assert len(notes) == 3  # noise, mean code, discriminator
    files = [tmp_path / "r.pt", tmp_path / "once.safetensors", tmp_path / "twice.safetensors"]
    for source, out in itertools.pairwise(files):
        result = CliRunner().invoke(app, ["generator", "convert", str(source), "--out", str(out)])
        assert result.exit_code == 0
        assert load_generator(out).notes == notes
        assert all(f"Note: {note}" in result.output for note in notes)
    for wrong in ("[" * 10_000, "1", '{"notes": 5}', '{"notes": [[1]]}', "x" * 10**6):
        save_generator(files[1], load_generator(files[2]).generator, None, {"converted_from": wrong})
        assert load_generator(files[1]).notes == ()


def test_a_fault_of_rosinalitys_discriminator_costs_no_generator_either(tmp_path):
    g, d = rosinality_networks()
    for fault in ({"surprise": torch.ones(1)}, {"convs.1.conv2.0.kernel": torch.ones(4, 4)}):
        torch.save({"g_ema": g, "d": d | fault}, tmp_path / "r.pt")
        loaded = load_generator(tmp_path / "r.pt")
        assert loaded.discriminator is None
        assert any("left out" in note for note in loaded.notes)
        z = torch.ones(1, 8)
        with torch.no_grad():
            assert_close(loaded.generator(z), rosinality_images(g, rosinality_codes(g, z)), rtol=0, atol=1e-4)


# --- wrappings -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", range(6))
def test_a_bare_pickled_network_of_any_protocol_opens(tmp_path, protocol):
    g, _ = tiny()
    with PERSISTENT_FAKES:
        (tmp_path / "g.pkl").write_bytes(pickle.dumps(whole_module(g.state_dict()), protocol=protocol))
    loaded = load_generator(tmp_path / "g.pkl")
    assert loaded.format == "stylegan2-ada"
    draws_as(loaded, g)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("key", [None, "G_ema", "generator"])
def test_a_whole_persistent_module_saved_by_torch_opens(tmp_path, key, zipped):
    g, d = tiny()
    with PERSISTENT_FAKES:
        module = whole_module(g.state_dict(), g_kwargs={"z_dim": 6})
        content = module if key is None else {key: module, "D": whole_module(d.state_dict()), "step": 3}
        torch.save(content, tmp_path / "g.pt", _use_new_zipfile_serialization=zipped)
    loaded = load_generator(tmp_path / "g.pt")
    assert (loaded.format, json.loads(loaded.metadata["init_kwargs"])) == ("stylegan2-ada", {"z_dim": 6})
    assert (loaded.discriminator is None) == (key is None)
    draws_as(loaded, g)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("pickled", [True, False])
def test_a_whole_ordinary_module_opens(tmp_path, zipped, pickled):
    g, _ = tiny()
    file = tmp_path / "g.pt"
    wrapped = torch.nn.DataParallel(g) if zipped else g
    if pickled:
        file.write_bytes(pickle.dumps(wrapped))
    else:
        torch.save({"g_ema": wrapped}, file, _use_new_zipfile_serialization=zipped)
    draws_as(load_generator(file), g)


class Colour(enum.Enum):
    RED = 1


class OldColour(enum.Enum):
    """An enumeration that pickles its members as Python before 3.11.4 does."""

    RED = 1

    def __reduce_ex__(self, _):
        return getattr, (type(self), self.name)


class Settings(dict):
    """A dictionary of somebody's own, as configuration libraries have them."""


EXTRAS = {
    "path": pathlib.PurePosixPath("/data/x"),
    "posix path": pathlib.PosixPath("/data/x"),
    "numpy number": np.float64(0.5),
    "numpy array": np.arange(5),
    "numpy objects": np.array(["a", None], dtype=object),
    "numpy random state": np.random.RandomState(0),
    "torch version": torch.__version__,
    "defaultdict": collections.defaultdict(list, {"x": [1]}),
    "deque": collections.deque([1, 2]),
    "counter": collections.Counter("ab"),
    "namespace": argparse.Namespace(lr=0.1, path=pathlib.PurePosixPath("x")),
    "date": datetime.datetime(2024, 5, 6),
    "duration": datetime.timedelta(1),
    "ordered": type("Mine", (collections.OrderedDict,), {"__module__": __name__, "__qualname__": "Mine"})(a=1),
    "own dictionary": Settings(a=Settings(b=1)),
    "enumeration": Colour.RED,
    "enumeration of old": OldColour.RED,
    "uuid": uuid.UUID(int=2**128 - 1),
    "device": torch.device("cpu"),
    "dtype": torch.float32,
    "size": torch.Size([1, 2]),
    "complex": torch.ones(2, dtype=torch.complex64),
    "bytes": b"abc" * 200,
    "keys": {(1, 2): 3, None: 4, 1.5: 5},
    "set": {1, 2},
    "range": range(3),
    "optimiser": torch.optim.Adam([torch.ones(1)]),
    "module": torch.nn.Linear(2, 2),
    "nothing": None,
}
Mine = type(EXTRAS["ordered"])


@pytest.mark.parametrize("name", EXTRAS)
def test_harmless_extras_are_read_as_inert_data_and_ignored(tmp_path, name):
    g, d = tiny()
    nested = {"extra": EXTRAS[name], "list": [EXTRAS[name]]}
    for zipped in (True, False):
        content = {"g_ema": g.state_dict(), "d": d.state_dict(), "more": nested}
        torch.save(content, tmp_path / "x.pt", _use_new_zipfile_serialization=zipped)
        loaded = load_generator(tmp_path / "x.pt")
        assert loaded.discriminator is not None
        draws_as(loaded, g)
    for protocol in (2, 4):
        (tmp_path / "s.pkl").write_bytes(snapshot(g.state_dict(), d.state_dict(), protocol=protocol, more=nested))
        draws_as(load_generator(tmp_path / "s.pkl"), g)


def test_a_file_written_without_checksums_opens(tmp_path):
    g, _ = tiny()
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(g.state_dict(), tmp_path / "g.pt")
    finally:
        torch.serialization.set_crc32_options(True)
    draws_as(load_generator(tmp_path / "g.pt"), g)


# --- pSp and e4e -----------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_the_decoder_of_an_inversion_checkpoint_opens_with_one_row_of_its_mean(tmp_path):
    g, _ = rosinality_networks()
    mean = torch.randn(8, generator=torch.Generator().manual_seed(4))
    state = {f"decoder.{name}": tensor for name, tensor in g.items()}
    state |= {"encoder.input_layer.0.weight": torch.ones(4, 3, 3, 3), "encoder.styles.0.linear.weight": torch.ones(2)}
    z = torch.ones(2, 8)
    w = rosinality_codes(g, z)
    expected = rosinality_images(g, mean + 0.5 * (w - mean))
    for opts in (argparse.Namespace(output_size=16), {"output_size": 16, "exp_dir": pathlib.PurePosixPath("/x")}):
        for rows in (mean.repeat(6, 1), mean.expand(6, 8), mean[None], mean):
            torch.save({"state_dict": state, "latent_avg": rows, "opts": opts}, tmp_path / "e4e.pt")
            loaded = load_generator(tmp_path / "e4e.pt")
            assert (loaded.format, loaded.discriminator, loaded.notes) == ("rosinality", None, ())
            assert_close(loaded.generator(z, truncation=0.5), expected, rtol=0, atol=1e-4)


def test_rows_of_the_mean_that_differ_are_not_used_and_said(tmp_path):
    g, _ = rosinality_networks()
    rows = torch.randn(6, 8, generator=torch.Generator().manual_seed(4))
    torch.save({"g_ema": g, "latent_avg": rows}, tmp_path / "r.pt")
    loaded = load_generator(tmp_path / "r.pt")
    assert "differs from layer to layer" in loaded.notes[0]
    assert "10 000 random codes" in loaded.notes[1]
    assert not any(torch.equal(loaded.generator.mapping.w_avg, row) for row in rows)
