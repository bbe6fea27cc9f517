"""Generator files: round trip, hashes, and one clear sentence for every kind of damage."""

import json
import re
import zipfile

import pytest
import torch
from safetensors.torch import save_file
from support_generators import tiny
from torch.testing import assert_close

from audit.errors import GeneratorError
from audit.generator.features import DiscriminatorFeatures
from audit.generator.files.load import load_generator, save_generator
from audit.generator.protocol import check_fits
from audit.generator.stylegan2.discriminator import Discriminator
from audit.generator.stylegan2.networks import Generator


@pytest.fixture
def networks():
    return Generator(8, 8, 16, 1, 64, 8), Discriminator(16, 1, 64, 8)


def test_round_trip(networks, tmp_path):
    file = tmp_path / "g.safetensors"
    save_generator(file, *networks, {"card": {"kimg": 1}})
    loaded = load_generator(file)
    z = torch.ones(2, 8)
    assert_close(loaded.generator(z), networks[0](z))
    assert not any(p.requires_grad for p in loaded.generator.parameters())
    assert len(loaded.sha256) == 64
    assert loaded.metadata["card"] == '{"kimg": 1}'
    features = DiscriminatorFeatures(loaded.discriminator)
    images = torch.rand(3, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    assert features.embed(images).shape[0] == 3
    assert all(m.shape[0] == 3 for m in features.maps(images))


def test_widths_by_no_rule_load(tmp_path):
    widths = {4: 6, 8: 3, 16: 5}
    pair = Generator(8, 8, 16, channel_widths=widths), Discriminator(16, channel_widths=widths)
    save_generator(tmp_path / "g.safetensors", *pair, {})
    loaded = load_generator(tmp_path / "g.safetensors")
    z = torch.ones(1, 8)
    assert_close(loaded.generator(z), pair[0](z))
    assert_close(loaded.discriminator(pair[0](z)), pair[1](pair[0](z)))


def test_a_file_without_discriminator_loads(networks, tmp_path):
    save_generator(tmp_path / "g.safetensors", networks[0], None, {})
    assert load_generator(tmp_path / "g.safetensors").discriminator is None


def test_writing_replaces_the_file_in_one_move(networks, tmp_path):
    file = tmp_path / "g.safetensors"
    save_generator(file, *networks, {})
    before = file.read_bytes()
    with torch.no_grad():
        networks[0].synthesis.b8.conv0.weight.zero_()
    link = tmp_path / "same-file"  # a write into the file itself would change what the second name shows
    link.hardlink_to(file)
    save_generator(file, *networks, {})
    assert link.read_bytes() == before != file.read_bytes()
    assert {f.name for f in tmp_path.iterdir()} == {"g.safetensors", "same-file"}


def test_broken_files_are_named(networks, tmp_path):
    with pytest.raises(GeneratorError, match="does not exist"):
        load_generator(tmp_path / "none.safetensors")
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(b"not safetensors")
    with pytest.raises(GeneratorError, match="neither safetensors"):
        load_generator(broken)
    other = tmp_path / "other.safetensors"
    save_file({"a": torch.zeros(1)}, other)
    with pytest.raises(GeneratorError, match="architecture"):
        load_generator(other)
    with torch.no_grad():
        networks[0].synthesis.b8.conv0.weight[0] = torch.nan
    poisoned = tmp_path / "nan.safetensors"
    save_generator(poisoned, *networks, {})
    with pytest.raises(GeneratorError, match=r"G\.synthesis\.b8\.conv0\.weight.*NaN"):
        load_generator(poisoned)


def test_other_sizes_are_refused_with_the_remedy(networks):
    check_fits(networks[0], (1, 16, 16))
    with pytest.raises(GeneratorError, match=r"data\.image_size = 16"):
        check_fits(networks[0], (1, 32, 32))


def test_foreign_layouts_open_by_inference(tmp_path):
    g, d = tiny(c_dim=2)
    states = {"G.": g.state_dict(), "D.": d.state_dict()}
    flat = {prefix + k: v for prefix, state in states.items() for k, v in state.items()}
    save_file({k: v.contiguous() for k, v in flat.items()}, tmp_path / "prefixed.safetensors")
    save_file({k: v.contiguous() for k, v in g.state_dict().items()}, tmp_path / "bare.safetensors")
    torch.save(flat, tmp_path / "flat.pt")
    old = {k: v + 1 for k, v in g.state_dict().items()}
    nested = {"G": old, "G_ema": g.state_dict(), "D": d.state_dict(), "step": 3, "name": "x"}
    torch.save(nested, tmp_path / "nested.pt", _use_new_zipfile_serialization=False)
    z, c = torch.randn(2, 6, generator=torch.Generator().manual_seed(0)), torch.eye(2)
    for name in ("prefixed.safetensors", "bare.safetensors", "flat.pt", "nested.pt"):
        loaded = load_generator(tmp_path / name)
        assert_close(loaded.generator(z, c=c), g(z, c=c), rtol=0, atol=0)
        assert (loaded.discriminator is None) == name.startswith("bare")
        assert loaded.notes == ()


def test_what_the_metadata_of_another_project_say_of_the_minibatch_is_taken(tmp_path):
    g, d = tiny()
    flat = {f"G.{k}": v for k, v in g.state_dict().items()} | {f"D.{k}": v for k, v in d.state_dict().items()}
    for said, group in (("2", 2), ("0", 4), ("many", 4)):
        save_file(flat, tmp_path / "x.safetensors", {"mbstd_group_size": said})
        assert load_generator(tmp_path / "x.safetensors").discriminator.settings["mbstd_group"] == group


def test_loading_leaves_the_global_stream_alone(networks, tmp_path):
    save_generator(tmp_path / "g.safetensors", *networks, {})
    before = torch.get_rng_state()
    load_generator(tmp_path / "g.safetensors")
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("generator", {"resolution": 1024}, "resolution = 1024"),
        ("generator", {"mapping_layers": 10**9}, "mapping_layers"),
        ("generator", {"channel_max": 10**9, "channel_base": 10**12}, "shape|cannot be built"),
        ("generator", {"surprise": 1}, "cannot be built"),
        ("generator", [1], "no JSON object"),
        ("generator", {"resolution": [[1]]}, "resolution = a list of"),
    ],
)
def test_an_architecture_that_the_tensors_do_not_have_is_refused(networks, tmp_path, key, value, said):
    g, d = networks
    changed = json.dumps(value if isinstance(value, list) else (g if key == "generator" else d).settings | value)
    save_generator(tmp_path / "g.safetensors", g, d, {key: changed})
    with pytest.raises(GeneratorError, match=said):
        load_generator(tmp_path / "g.safetensors")


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ({"channels": 3}, "channels = 3"),
        ({"mbstd_group": 0}, "mbstd_group = 0"),
        ({"resolution": "x" * 5000}, "resolution = x{60} of"),
    ],
)
@torch.no_grad()
def test_a_discriminator_of_another_architecture_is_left_out(networks, tmp_path, value, said):
    g, d = networks
    save_generator(tmp_path / "g.safetensors", g, d, {"discriminator": json.dumps(d.settings | value)})
    loaded = load_generator(tmp_path / "g.safetensors")
    assert loaded.discriminator is None
    assert re.search(f"discriminator is left out: .*{said}", " ".join(loaded.notes))
    z = torch.ones(1, 8)
    assert_close(loaded.generator(z), g(z), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"synthesis.b8.conv0.bias": torch.ones(3)}, "shape"),
        ({"synthesis.b8.conv0.bias": torch.ones(8, dtype=torch.int64)}, "int64"),
        ({"synthesis.b8.conv0.bias": None}, "missing"),
        ({"synthesis.b8.conv0.gate": torch.ones(8)}, "no place"),
    ],
)
def test_the_first_tensor_that_does_not_fit_is_named(networks, tmp_path, change, said):
    state = {k: v for k, v in (networks[0].state_dict() | change).items() if v is not None}
    torch.save(state, tmp_path / "g.pt")
    with pytest.raises(GeneratorError, match=f"synthesis.b8.conv0.*{said}|{said}.*synthesis.b8.conv0"):
        load_generator(tmp_path / "g.pt")


def test_zip_files_that_torch_does_not_write_are_refused(networks, tmp_path):
    whole = tmp_path / "g.pt"
    torch.save(networks[0].state_dict(), whole)
    with zipfile.ZipFile(whole) as file:
        members = {name: file.read(name) for name in file.namelist()}

    def refuse(said, compression=zipfile.ZIP_STORED, **changes):
        with zipfile.ZipFile(tmp_path / "x.pt", "w", compression) as file:
            for name, data in (members | {f"g/{k}": v for k, v in changes.items()}).items():
                file.writestr(name, data)
        with pytest.raises(GeneratorError, match=said):
            load_generator(tmp_path / "x.pt")

    refuse("compressed", zipfile.ZIP_DEFLATED)
    refuse("byte order", byteorder=b"big")
    refuse("claims .* bytes that are not there", **{"data/0": b"\0" * 8})
    (tmp_path / "x.pt").write_bytes(whole.read_bytes()[:-100])
    with pytest.raises(GeneratorError, match="zip"):
        load_generator(tmp_path / "x.pt")
