"""Files of other generators are refused with what they are; `inspect` exits with status 2 and names the kind."""

import json
import pickle
import sys
import types
import zipfile

import pytest
import torch
from safetensors.torch import save_file
from support_generators import rosinality_networks, tiny
from typer.testing import CliRunner

from audit.cli import app
from audit.errors import GeneratorError
from audit.generator.files.load import load_generator

ONE = torch.ones(1)

STATES = {
    "StyleGAN3": ["synthesis.input.freqs", "synthesis.L0_36_512.weight", "mapping.fc0.weight"],
    "StyleGAN-XL": ["synthesis.L0_20_1024.weight", "mapping.embed.weight", "mapping.embed_proj.weight"],
    "StyleGAN1": ["g_mapping.dense0.weight", "g_synthesis.blocks.4x4.const"],
    "ProGAN": ["scaleLayers.0.0.module.weight", "toRGBLayers.0.module.weight", "formatLayer.module.weight"],
    "BigGAN": ["shared.weight", "linear.weight", "blocks.0.0.conv1.weight", "blocks.0.0.bn1.gain.weight"],
    "lucidrains' stylegan2-pytorch": ["GAN.S.net.0.weight", "GAN.G.initial_block", "GAN.G.blocks.0.conv1.weight"],
    "a model of MONAI": ["conv_in.conv.weight", "time_embed.0.weight", "down_blocks.0.resnets.0.norm1.weight"],
    "a model of diffusers": ["conv_in.weight", "time_embedding.linear_1.weight", "down_blocks.0.resnets.0.norm1.bias"],
    "a latent diffusion model": ["model.diffusion_model.input_blocks.0.0.weight", "first_stage_model.x"],
    "StyleGAN2 in BasicSR's layout": ["style_mlp.1.weight", "constant_input.weight", "style_convs.0.bias"],
    "StyleGAN2 in MMGeneration's layout": ["generator.style_mapping.1.weight", "generator.constant_input.const"],
    "StyleGAN2 in GenForce's layout": ["mapping.dense0.weight", "synthesis.layer0.weight", "synthesis.output0.weight"],
    "an image classifier": ["conv1.weight", "layer1.0.conv1.weight", "fc.weight"],
    "an encoder of pSp or e4e without its decoder": ["encoder.input_layer.0.weight", "encoder.styles.0.convs.0.bias"],
}
"""Names of tensors in files of other projects, as their own state dictionaries have them."""


def inspected(file):
    """What the command says of a file that it refuses, once it has exited with status 2."""
    result = CliRunner().invoke(app, ["generator", "inspect", str(file), "--json"])
    assert result.exit_code == 2, result.output
    return json.loads(result.output)


@pytest.mark.parametrize("kind", STATES)
def test_other_generators_are_named_in_every_wrapping(tmp_path, kind):
    flat = {name: ONE.clone() for name in STATES[kind]}
    files = [tmp_path / name for name in ("bare.pt", "wrapped.pt", "x.safetensors")]
    torch.save(flat, files[0])
    torch.save({"G_ema": flat, "step": 3}, files[1], _use_new_zipfile_serialization=False)
    save_file(flat, files[2])
    for file in files:
        with pytest.raises(GeneratorError) as error:
            load_generator(file)
        assert f"it is {kind}" in str(error.value)
        assert "StyleGAN2" in str(error.value)
        found = inspected(file)
        assert found["format"] == kind
        assert kind in found["refused"]


def test_a_discriminator_alone_is_named(tmp_path):
    _, d = tiny()
    _, other = rosinality_networks()
    for state in (d.state_dict(), {"d": other}):
        torch.save(state, tmp_path / "d.pt")
        assert "discriminator of StyleGAN2 without its generator" in inspected(tmp_path / "d.pt")["refused"]


def test_networks_of_tensorflow_name_the_converter(tmp_path):
    network = types.ModuleType("dnnlib.tflib.network")
    network.Network = type("Network", (), {"__module__": network.__name__, "__qualname__": "Network"})
    names = {"dnnlib": types.ModuleType("dnnlib"), "dnnlib.tflib": types.ModuleType("dnnlib.tflib")}
    names["dnnlib.tflib.network"] = network
    sys.modules.update(names)
    try:
        made = network.Network()
        made.static_kwargs = {"num_channels": 3}
        data = pickle.dumps((made, made, made))
    finally:
        for name in names:
            del sys.modules[name]
    (tmp_path / "s.pkl").write_bytes(data)
    found = inspected(tmp_path / "s.pkl")
    assert found["format"] == "TensorFlow pickle"
    assert "legacy.py" in found["refused"]


def test_folders_say_what_they_are(tmp_path):
    folder = tmp_path / "pipeline"
    folder.mkdir()
    assert "folder" in inspected(folder)["refused"]
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "StableDiffusionPipeline"}))
    with pytest.raises(GeneratorError, match=r"folder of diffusers \(StableDiffusionPipeline\), and only StyleGAN2"):
        load_generator(folder)
    assert inspected(folder)["format"] == "diffusers"
    for content in (b"\xff\xfe", b"[" * 10_000, json.dumps({"_class_name": [["x"]]}).encode()):
        (folder / "model_index.json").write_bytes(content)
        assert "folder of diffusers, and" in inspected(folder)["refused"]


def test_programs_and_archives_say_what_they_are(tmp_path):
    torch.jit.script(torch.nn.Linear(2, 2)).save(str(tmp_path / "s.pt"))
    assert inspected(tmp_path / "s.pt")["format"] == "TorchScript"
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as file:
        file.writestr("w.npy", b"")
    assert inspected(tmp_path / "x.npz")["format"] == "npz"
    for start, kind in ((b"\x89HDF\r\n", "HDF5 (Keras)"), (b"\x1f\x8b\x08", "gzip"), (b"GGUF", "GGUF")):
        (tmp_path / "x").write_bytes(start + bytes(64))
        assert inspected(tmp_path / "x")["format"] == kind
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 12\n"
    (tmp_path / "x").write_bytes(pointer)
    assert "fetch the file itself" in inspected(tmp_path / "x")["refused"]
    (tmp_path / "x").write_bytes(b"")
    assert "neither" in inspected(tmp_path / "x")["refused"]
