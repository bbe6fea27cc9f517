"""The networks agree with the reference vectors of StyleGAN2-ADA (random weights, 32x32, one channel)."""

from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch.testing import assert_close

from audit.generator.networks import Discriminator, Generator

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


def test_logits_and_r1(discriminator, reference):
    images = reference["img_const"].clone().requires_grad_()
    logits = discriminator(images)
    close(logits.detach(), reference["d_logits"])
    (gradient,) = torch.autograd.grad(logits.sum(), images)
    close(gradient.square().sum((1, 2, 3)), reference["r1"])
