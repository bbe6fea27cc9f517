"""The discriminator of normalised maps has a logit for every scale, and sees a lack of variety if shown groups."""

import pytest
import torch
from support_judges import losses_of_telling_apart, smooth_images

from audit.training.generator.scales import ScaleDiscriminator, Spread


@pytest.mark.parametrize("spread", [0, 8])
@pytest.mark.parametrize(("resolution", "channels", "scales"), [(16, 1, 2), (32, 3, 3), (64, 2, 4), (256, 1, 6)])
def test_every_scale_gives_a_logit(resolution, channels, scales, spread):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        logits = ScaleDiscriminator(resolution, channels, spread)(torch.randn(2, channels, resolution, resolution))
    assert logits.shape == (2, scales)


@pytest.mark.parametrize(
    ("n", "most", "groups"), [(16, 8, 2), (8, 8, 1), (12, 8, 2), (7, 8, 1), (1, 8, 1), (64, 32, 2)]
)
def test_deviations_are_those_of_an_images_group(n, most, groups):
    x = torch.randn(n, 3, generator=torch.Generator().manual_seed(0))
    out = Spread(most)(x)
    assert torch.equal(out[:, :3], x)
    for i in range(n):
        among = x[i % groups :: groups]
        assert len(among) <= most
        torch.testing.assert_close(out[i, 3:], (among.var(0, correction=0) + 1e-4).sqrt())


def test_one_image_and_equal_images_have_finite_gradients():
    x = torch.ones(4, 3, requires_grad=True)
    Spread(8)(x).sum().backward()
    assert torch.equal(x.grad, torch.ones(4, 3))


@pytest.mark.parametrize(("spread", "low", "high"), [(0, 1.2, 1.4), (8, 0.0, 1.1)])
def test_a_lack_of_variety_is_seen_by_groups(spread, low, high):
    """Smooth images under a gradient from left to right that in half of them varies half as much."""
    ramp = torch.linspace(-0.4, 0.4, 16)

    def pair():
        smooth = 0.3 * smooth_images(64)
        images = smooth + torch.randn(64, 1, 1, 1) * ramp
        narrow = smooth + torch.randn(64, 1, 1, 1) * ramp / 2
        return narrow[:32], images[32:]

    losses = losses_of_telling_apart(lambda: ScaleDiscriminator(16, 1, spread), pair, 140, 1e-3)
    assert low < losses[-40:].mean() < high  # chance is 2 log 2 = 1.386
