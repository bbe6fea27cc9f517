"""Architectures read off shapes, and what shapes cannot be."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from audit.generator.files.infer import complete, infer_discriminator, infer_generator, width_settings
from audit.generator.stylegan2.architecture import channels_at
from audit.generator.stylegan2.discriminator import Discriminator
from audit.generator.stylegan2.networks import Generator
from audit.storage.tensors.plain_pickle import Refused


def shapes(kind, **settings):
    with torch.device("meta"):
        return dict(kind(**settings).state_dict())


LATENT = st.fixed_dictionaries(
    {"z_dim": st.integers(1, 40), "w_dim": st.integers(1, 40), "mapping_layers": st.integers(1, 8)}
)
IMAGES = st.fixed_dictionaries(
    {
        "channels": st.integers(1, 4),
        "channel_base": st.sampled_from([1024, 3000, 16384]),
        "channel_max": st.integers(1, 48),
        "c_dim": st.integers(0, 5),
    }
)


@given(log=st.integers(4, 10), latent=LATENT, images=IMAGES)
@settings(max_examples=25, deadline=None)
def test_every_architecture_is_recovered(log, latent, images):
    base, top = images["channel_base"], images["channel_max"]
    if min(base >> log, top) < 1:
        return
    asked = images | {"resolution": 2**log}
    generator = infer_generator(shapes(Generator, **asked, **latent))
    assert {k: generator[k] for k in latent} == latent
    layers = latent["mapping_layers"]
    discriminator = infer_discriminator(shapes(Discriminator, **asked, mapping_layers=layers), mbstd_group=8)
    assert discriminator["mbstd_group"] == 8
    for inferred in (generator, discriminator):
        assert {k: inferred[k] for k in ("resolution", "channels", "c_dim")} == {
            k: asked[k] for k in ("resolution", "channels", "c_dim")
        }
        sizes = [2**k for k in range(2, log + 1)]
        widths = [channels_at(r, inferred["channel_base"], inferred["channel_max"]) for r in sizes]
        assert widths == [channels_at(r, base, top) for r in sizes]
    if asked["c_dim"]:
        assert discriminator["mapping_layers"] == layers


def test_widths_by_the_rule_are_named_by_it():
    assert width_settings({4: 512, 8: 512, 64: 512, 128: 256}) == {"channel_base": 32768, "channel_max": 512}


@given(st.lists(st.integers(1, 9), min_size=3, max_size=5))
@settings(max_examples=25, deadline=None)
def test_widths_of_any_kind_are_recovered(widths):
    maps = {4 * 2**k: width for k, width in enumerate(widths)}
    top = max(maps)
    for kind, infer in ((Generator, infer_generator), (Discriminator, infer_discriminator)):
        expected = shapes(kind, resolution=top, channel_widths=maps)
        again = shapes(kind, **infer(expected))
        assert {name: t.shape for name, t in again.items()} == {name: t.shape for name, t in expected.items()}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"synthesis.b8.conv1.weight": None}, "blocks"),
        ({"synthesis.b16.torgb.weight": None}, r"lacks.*b16\.torgb"),
        ({"mapping.fc1.weight": None}, "without a gap"),
        ({"mapping.fc0.weight": torch.ones(3)}, "shape"),
        ({"synthesis.b16.torgb.weight": torch.ones(5, 8, 1, 1)}, "5 channels"),
        ({"synthesis.L0_36_512.weight": torch.ones(1)}, "StyleGAN3"),
        ({"synthesis.b8.skip.weight": torch.ones(1)}, "residual"),
        ({"mapping.embed.weight": torch.ones(8, 3)}, "too few"),
    ],
)
def test_other_generators_are_refused(change, said):
    state = shapes(Generator, z_dim=8, w_dim=8, resolution=16, channel_base=64, channel_max=8, mapping_layers=3)
    state = {k: v for k, v in (state | change).items() if v is not None}
    with pytest.raises(Refused, match=said):
        infer_generator(state)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"b16.skip.weight": None}, "not residual"),
        ({"b4.conv.weight": torch.ones(8, 10, 3, 3)}, "adds 2 maps"),
        ({"b8.conv0.weight": None}, "blocks"),
    ],
)
def test_other_discriminators_are_refused(change, said):
    state = shapes(Discriminator, resolution=16, channel_base=64, channel_max=8)
    with pytest.raises(Refused, match=said):
        infer_discriminator({k: v for k, v in (state | change).items() if v is not None})


def test_missing_buffers_are_filled_and_other_filters_refused():
    expected = {
        "a.resample_filter": torch.Size([4, 4]),
        "a.noise_const": torch.Size([8, 8]),
        "a.weight": torch.Size([1]),
    }
    state = {}
    assert len(complete(state, expected)) == 1
    assert set(state) == {"a.resample_filter", "a.noise_const"}
    again = {}
    complete(again, expected)
    assert torch.equal(again["a.noise_const"], state["a.noise_const"])
    with pytest.raises(Refused, match="another filter"):
        complete({"a.resample_filter": torch.full((4, 4), 1 / 16)}, expected)
