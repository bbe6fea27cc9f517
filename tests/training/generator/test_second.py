"""Two discriminators side by side: whose logit is whose, how their losses add up, what the second one is good for."""

import math

import pytest
import torch
import torchvision
from support_judges import losses_of_telling_apart, smooth_images

from audit.embeddings.lpips import Lpips
from audit.errors import GeneratorError
from audit.generator.stylegan2.discriminator import Discriminator
from audit.training.generator.frozen import FeatureDiscriminator
from audit.training.generator.scales import ScaleDiscriminator
from audit.training.generator.second import Discriminators, adversarial, second_discriminator

CPU = torch.device("cpu")


def test_the_first_logit_is_stylegan2s():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        judges = Discriminators(Discriminator(16, 1, 128, 8), ScaleDiscriminator(16, 1))
        images = torch.randn(2, 1, 16, 16)
        logits = judges(images)
    assert torch.equal(logits, torch.cat([judges.first(images), judges.second(images)], 1))


def test_both_losses_weigh_alike_however_many_logits_the_second_gives():
    assert adversarial(torch.zeros(3, 1)).item() == pytest.approx(math.log(2))
    assert adversarial(torch.zeros(3, 5)).item() == pytest.approx(2 * math.log(2))
    logits = torch.tensor([[4.0, -1.0, -1.0]])
    assert adversarial(logits).item() == pytest.approx(math.log1p(math.exp(-4)) + math.log1p(math.exp(1)))


def test_no_second_discriminator_is_the_default():
    assert second_discriminator("none", 16, 1, 8, CPU) is None


def test_other_channels_than_grey_and_rgb_are_refused_by_lpips():
    with pytest.raises(GeneratorError, match="not 4 channels: take 'scales'"):
        second_discriminator("lpips-vgg", 32, 4, 8, CPU)


@pytest.mark.parametrize("net", ["alex", "vgg"])
def test_lpips_backbones_see_small_images_enlarged(monkeypatch, net):
    def random_lpips(name):
        whole = torchvision.models.alexnet() if name == "alex" else torchvision.models.vgg16()
        return Lpips(whole.features, [torch.ones(1)] * 5, name, "0" * 64)

    monkeypatch.setattr("audit.embeddings.resolve.load_lpips", random_lpips)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        judge = second_discriminator(f"lpips-{net}", 32, 1, 8, CPU)
        assert isinstance(judge, FeatureDiscriminator)
        assert [h[0].in_channels for h in judge.heads][:2] == ([64, 192] if net == "alex" else [64, 128])
        assert judge(torch.rand(2, 1, 32, 32)).shape == (2, 5)


@pytest.mark.parametrize(("scales", "low", "high"), [(False, 1.3, 1.5), (True, 0.0, 0.3)])
def test_a_faint_difference_is_seen_sooner_than_by_the_first(scales, low, high):
    """Smooth images, half of them with stripes of a tenth of their contrast; each network learns at its own rate."""
    stripes = torch.tensor([0.1, -0.1]).repeat(8)

    def pair():
        smooth = smooth_images(32)
        return smooth[:16], smooth[16:] + stripes

    build = (lambda: ScaleDiscriminator(16, 1)) if scales else (lambda: Discriminator(16, 1, 128, 8))
    losses = losses_of_telling_apart(build, pair, 80, 5e-4 if scales else 2.5e-3)
    assert low < losses[-10:].mean() < high  # chance is 2 log 2 = 1.386
