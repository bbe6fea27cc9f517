"""Checkpoints in rosinality's layout draw and judge as that layout's equations do (see the support module)."""

import argparse

import pytest
import torch
from support_generators import rosinality_codes, rosinality_images, rosinality_logits, rosinality_networks
from torch.testing import assert_close

from audit.errors import GeneratorError
from audit.generator.features import DiscriminatorFeatures
from audit.generator.files.load import load_generator
from audit.generator.files.rosinality import translate_discriminator, translate_generator
from audit.storage.tensors.plain_pickle import Refused


def close(actual, expected):
    assert_close(actual, expected, rtol=0, atol=1e-4)


@pytest.fixture(scope="module")
def networks():
    return rosinality_networks()


@pytest.fixture
def checkpoint(networks, tmp_path):
    def write(zipped=True, **changes):
        g, d = networks
        other = {name: tensor + 1 for name, tensor in g.items()}  # not the average: must not be taken
        args = argparse.Namespace(size=16, path="/data", lr=0.002)
        optimiser = {
            "state": {0: {"step": 3, "exp_avg": torch.ones(2)}},
            "param_groups": [{"lr": 0.1, "betas": (0, 1)}],
        }
        content = {"g": other, "d": d, "g_ema": g, "g_optim": optimiser, "args": args, "ada_aug_p": 0.25}
        content = {k: v for k, v in (content | changes).items() if v is not None}
        torch.save(content, tmp_path / "r.pt", _use_new_zipfile_serialization=zipped)
        return tmp_path / "r.pt"

    return write


@pytest.mark.parametrize("zipped", [True, False])
@torch.no_grad()
def test_images_and_logits_agree_with_the_layouts_equations(checkpoint, networks, zipped):
    g, d = networks
    mean = torch.randn(8, generator=torch.Generator().manual_seed(4))
    loaded = load_generator(checkpoint(zipped, latent_avg=mean))
    assert loaded.format == "rosinality"
    assert loaded.notes == ()
    z = torch.randn(4, 8, generator=torch.Generator().manual_seed(1))
    w = rosinality_codes(g, z)
    ours = loaded.generator
    close(ours.mapping(z)[:, 0], w)
    expected = rosinality_images(g, w)
    assert expected.std() > 0.3
    close(ours(z), expected)
    close(ours(z, noise="none"), rosinality_images(g, w, noise=False))
    close(ours(z, truncation=0.5), rosinality_images(g, mean + 0.5 * (w - mean)))
    assert loaded.discriminator is not None
    close(loaded.discriminator(expected), rosinality_logits(d, expected))
    assert DiscriminatorFeatures(loaded.discriminator).embed(ours.images(ours.mapping(z))).isfinite().all()


@torch.no_grad()
def test_what_a_file_leaves_out_is_made_up_and_said(checkpoint, networks):
    g = {name: tensor for name, tensor in networks[0].items() if not name.startswith("noises.")}
    loaded = load_generator(checkpoint(g_ema=g, d=None))
    assert loaded.discriminator is None
    assert len(loaded.notes) == 2
    assert "noise" in " ".join(loaded.notes)
    z = torch.randn(20_000, 8, generator=torch.Generator().manual_seed(2))
    codes = rosinality_codes(g, z)
    assert_close(loaded.generator.mapping.w_avg, codes.mean(0), rtol=0, atol=0.05 * codes.std().item())
    again = load_generator(checkpoint(g_ema=g, d=None)).generator
    assert_close(again(z[:2]), loaded.generator(z[:2]), rtol=0, atol=0)


@torch.no_grad()
def test_a_bare_state_dict_of_the_generator_loads(networks, tmp_path):
    torch.save(networks[0], tmp_path / "g.pt")
    z = torch.ones(1, 8)
    close(
        load_generator(tmp_path / "g.pt").generator(z), rosinality_images(networks[0], rosinality_codes(networks[0], z))
    )


def test_other_filters_and_unknown_tensors_are_refused(checkpoint, networks):
    g, d = networks
    with pytest.raises(GeneratorError, match="another filter"):
        load_generator(checkpoint(g_ema=g | {"convs.0.conv.blur.kernel": torch.full((4, 4), 0.25)}))
    for name in ("convs.0.attention.weight", "style.0.weight", "to_rgbs.0.gamma", "surprise"):
        with pytest.raises(Refused, match="not of this layout"):
            translate_generator(g | {name: torch.ones(1)})
    for name in ("convs.1.conv3.0.weight", "surprise"):
        with pytest.raises(Refused, match="not of this layout"):
            translate_discriminator(d | {name: torch.ones(1)})
    with pytest.raises(GeneratorError, match=r"input\.input"):
        load_generator(checkpoint(g_ema=g | {"input.input": torch.ones(2, 6, 4, 4)}))
