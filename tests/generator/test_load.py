"""Generator files: round trip, hashes, and one clear sentence for every kind of damage."""

import pytest
import torch
from safetensors.torch import save_file
from torch.testing import assert_close

from audit.errors import GeneratorError
from audit.generator.features import DiscriminatorFeatures
from audit.generator.load import check_fits, load_generator, save_generator
from audit.generator.networks import Discriminator, Generator


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
