"""The latent shift where its length is known: a linear generator and a linear classifier."""

import pytest
import torch
from torch import Tensor, nn

from audit.counterfactual.methods import choose_method
from audit.counterfactual.protocol import CalibratedClassifier, InvertedQueries, SearchNetworks


class Linear:
    """Draws grey plus a weighted sum of fixed patterns, far from black and white."""

    num_ws, w_dim, channels, resolution, tunable, weights_sha256 = 1, 8, 1, 16, {}, ""
    mean_code = torch.zeros(8)

    def __init__(self) -> None:
        self.patterns = 0.01 * torch.randn(8, 1, 16, 16, generator=torch.Generator().manual_seed(0))

    def random_codes(self, n: int, rng: torch.Generator) -> Tensor:
        return torch.randn(n, 8, generator=rng)

    def draw(self, ws: Tensor, deltas: object = None) -> Tensor:
        return 0.5 + torch.einsum("nd,dchw->nchw", ws[:, 0], self.patterns)

    images = draw


@pytest.mark.parametrize("confidence", [0.6, 0.9])
def test_the_shift_goes_along_the_gradient_just_as_far_as_it_must(world, confidence: float) -> None:
    generator, network = Linear(), nn.Sequential(nn.Flatten(), nn.Linear(256, 2)).eval()
    with torch.no_grad():
        network[1].weight.copy_(2 * torch.randn(2, 256, generator=torch.Generator().manual_seed(1)))
        network[1].bias.copy_(torch.tensor([0.0, 0.3 - float(network[1].weight.diff(dim=0).sum() * 0.5)]))
    subject = CalibratedClassifier(world.wrap(network), world.calibration, torch.tensor([confidence, confidence]))
    pivots = 0.1 * generator.random_codes(6, torch.Generator().manual_seed(2))[:, None]
    images = generator.images(pivots)
    with torch.no_grad():
        logits = network(images)
    labels = logits.argmax(1)
    inverted = type(world.inversion)(pivots, {}, images)
    method = choose_method(world.config.model_copy(update={"method": "latent-shift"}), 0)
    found = method.explain(
        subject,
        SearchNetworks(generator, None),
        InvertedQueries(images, labels, inverted),
        1 - labels,
        lambda n=1: None,
    )
    assert found.reached.all()
    contrast = (network[1].weight[1] - network[1].weight[0]).detach()
    slope = generator.patterns.flatten(1) @ contrast
    lacking = torch.logit(torch.tensor(confidence)) + (logits[:, 1] - logits[:, 0]).abs()
    shortest = lacking / slope.norm()
    torch.testing.assert_close((found.latents - pivots).flatten(1).norm(dim=1), shortest, rtol=0.01, atol=0)
    towards = (found.latents - pivots)[:, 0] / shortest[:, None] * (1 - 2 * labels)[:, None]
    torch.testing.assert_close(towards, (slope / slope.norm()).expand(6, -1), rtol=0.02, atol=0.01)
