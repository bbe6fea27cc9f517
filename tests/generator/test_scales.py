"""The discriminator of normalised maps gives a logit for every scale."""

import pytest
import torch

from audit.generator.scales import ScaleDiscriminator


@pytest.mark.parametrize(("resolution", "channels", "scales"), [(16, 1, 2), (32, 3, 3), (64, 2, 4), (256, 1, 6)])
def test_every_scale_gives_a_logit(resolution, channels, scales):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        logits = ScaleDiscriminator(resolution, channels)(torch.randn(2, channels, resolution, resolution))
    assert logits.shape == (2, scales)
