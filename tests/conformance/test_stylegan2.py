"""The networks agree with the reference vectors of StyleGAN2-ADA (random weights, 32x32, one channel)."""

import copy
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch.testing import assert_close

from audit.generator.stylegan2.discriminator import Discriminator
from audit.generator.stylegan2.networks import Generator

VECTORS = Path(__file__).parents[2].parent / "shared/conformance/stylegan2_ada_32_gray.safetensors"
pytestmark = pytest.mark.skipif(not VECTORS.exists(), reason="no reference vectors beside the checkout")


@pytest.fixture(scope="module")
def reference():
    with safe_open(VECTORS, framework="pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - safe_open is no mapping


def part(tensors, prefix):
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


@pytest.fixture(scope="module")
def generator(reference):
    network = Generator(z_dim=64, w_dim=64, resolution=32, channels=1, channel_base=1024, channel_max=32)
    network.load_state_dict(part(reference, "G."))
    return network.eval()


@pytest.fixture(scope="module")
def discriminator(reference):
    network = Discriminator(resolution=32, channels=1, channel_base=1024, channel_max=32)
    network.load_state_dict(part(reference, "D."))
    return network.eval()


def close(actual, expected):
    assert_close(actual, expected, rtol=0, atol=1e-4)


@torch.no_grad()
def test_mapping_and_truncation(generator, reference):
    close(generator.mapping(reference["z"]), reference["w"])
    close(generator.mapping(reference["z"], truncation=0.5), reference["w_psi0.5"])


@torch.no_grad()
@pytest.mark.parametrize("noise", ["const", "none"])
def test_synthesis(generator, reference, noise):
    close(generator.synthesis(reference["w"], noise=noise), reference[f"img_{noise}"])


@torch.no_grad()
def test_truncated_synthesis(generator, reference):
    close(generator(reference["z"], truncation=0.5), reference["img_psi0.5_const"])


@torch.no_grad()
def test_per_image_weights_of_zero_change_nothing(generator, reference):
    deltas = {
        name: torch.zeros(4, *parameter.shape)
        for name, parameter in generator.synthesis.named_parameters()
        if name.endswith(("conv0.weight", "conv1.weight", "torgb.weight", "bias", "const")) and "affine" not in name
    }
    close(generator.synthesis(reference["w"], deltas=deltas), reference["img_const"])


@torch.no_grad()
def test_per_image_weights_agree_with_the_same_shared_weights(generator, reference):
    rng = torch.Generator().manual_seed(0)
    changed = copy.deepcopy(generator)
    deltas = {}
    for name, parameter in changed.synthesis.named_parameters():
        if "affine" not in name and "noise_strength" not in name:
            delta = 0.1 * torch.randn(parameter.shape, generator=rng)
            deltas[name] = delta.expand(4, *delta.shape)
            parameter += delta
    expected = changed.synthesis(reference["w"])
    assert (expected - reference["img_const"]).abs().max() > 0.1
    close(generator.synthesis(reference["w"], deltas=deltas), expected)
    some = {name: delta for name, delta in deltas.items() if name.startswith("b16.conv0")}
    one = copy.deepcopy(generator)
    one.synthesis.get_parameter("b16.conv0.weight").add_(some["b16.conv0.weight"][0])
    one.synthesis.get_parameter("b16.conv0.bias").add_(some["b16.conv0.bias"][0])
    close(generator.synthesis(reference["w"], deltas=some), one.synthesis(reference["w"]))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_every_layout_of_weights_and_images_agrees(generator, discriminator, reference, layout):
    g, d = (copy.deepcopy(network).to(memory_format=layout) for network in (generator, discriminator))
    with torch.no_grad():
        close(g.synthesis(reference["w"]), reference["img_const"])
    check_discriminator(d, reference["img_const"].contiguous(memory_format=layout), reference)


def check_discriminator(discriminator, images, reference):
    images = images.clone().requires_grad_()
    logits = discriminator(images)
    close(logits.detach(), reference["d_logits"])
    (gradient,) = torch.autograd.grad(logits.sum(), images)
    close(gradient.square().sum((1, 2, 3)), reference["r1"])


def test_logits_and_r1(discriminator, reference):
    check_discriminator(discriminator, reference["img_const"], reference)


@torch.no_grad()
def test_half_precision_stays_within_its_rounding(generator, discriminator, reference):
    with torch.autocast("cpu", torch.bfloat16):
        image_error = (generator.synthesis(reference["w"]) - reference["img_const"]).abs().max()
        logit_error = (discriminator(reference["img_const"]) - reference["d_logits"]).abs().max()
    assert 0 < image_error < 0.05 * reference["img_const"].std()
    assert 0 < logit_error < 0.05 * (1 + reference["d_logits"].abs().max())
