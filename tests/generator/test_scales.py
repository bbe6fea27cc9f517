"""The second discriminator: a logit for every scale, beside the first one's."""

import pytest
import torch

from audit.generator.discriminator import Discriminator
from audit.generator.losses import logistic
from audit.generator.scales import Judges, ScaleDiscriminator


@pytest.mark.parametrize(("resolution", "channels", "scales"), [(16, 1, 2), (32, 3, 3), (64, 2, 4), (256, 1, 6)])
def test_every_scale_gives_a_logit(resolution, channels, scales):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        second = ScaleDiscriminator(resolution, channels)
        images = torch.randn(2, channels, resolution, resolution)
        assert second(images).shape == (2, scales)
        judges = Judges(Discriminator(resolution, channels, 2 * resolution, 8), second)
        logits = judges(images)
    assert logits.shape == (2, 1 + scales)
    assert torch.equal(logits[:, :1], judges.first(images))


@pytest.mark.parametrize(("second", "low", "high"), [(False, 1.3, 1.5), (True, 0.0, 0.3)])
def test_a_faint_difference_is_seen_sooner_than_by_the_first(second, low, high):
    """Smooth images, half of them with stripes of a tenth of their contrast; each network learns at its own rate."""
    stripes = torch.tensor([0.1, -0.1]).repeat(8)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = ScaleDiscriminator(16, 1) if second else Discriminator(16, 1, 128, 8)
        rate = 5e-4 if second else 2.5e-3
        optimiser = torch.optim.Adam(network.parameters(), lr=rate, betas=(0.0, 0.99))
        losses = []
        for _ in range(80):
            smooth = torch.nn.functional.interpolate(torch.randn(32, 1, 4, 4), 16, mode="bicubic")
            loss = logistic(-network(smooth[:16])) + logistic(network(smooth[16:] + stripes))
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            losses.append(loss.detach())
    assert low < torch.stack(losses[-10:]).mean() < high  # chance is 2 log 2 = 1.386
