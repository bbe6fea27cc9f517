"""The latent gradient: what its loss weighs, and where it differs from a search with a multiplier of its own."""

import torch

from audit.counterfactual import latent_gradient
from audit.counterfactual.batches import InBatches
from audit.counterfactual.descent import shortfall
from audit.counterfactual.methods import choose_method
from audit.counterfactual.protocol import Counterfactuals, SearchNetworks


def run(world) -> Counterfactuals:
    method = choose_method(world.config.model_copy(update={"method": "latent-gradient", "steps": 60}), 0).method
    assert isinstance(method, InBatches)
    networks = SearchNetworks(world.generator, None)
    return method.explain(world.subject, networks, world.asked, world.targets, lambda amount=1: None)


def test_the_weight_of_the_change_is_what_makes_it_small(world, monkeypatch) -> None:
    change = {}
    default = latent_gradient.WEIGHT
    for weight in (0.0, default, 1e6):
        monkeypatch.setattr(latent_gradient, "WEIGHT", weight)
        found = run(world)
        change[weight] = float((found.images - world.inversion.images).abs().mean())
        assert bool(found.reached.any()) == (weight < 1e6)
    assert change[default] < change[0.0]


def test_the_shortfall_has_a_gradient_where_probabilities_have_none() -> None:
    logits = torch.tensor([[60.0, -60.0, 0.0], [1.0, 3.0, 2.0]], requires_grad=True)
    lacking = shortfall(logits, torch.tensor([1, 1]), torch.tensor([2.0, 0.5]))
    expected = 2.0 + 60 + torch.tensor([60.0, 0.0]).logsumexp(0)
    torch.testing.assert_close(lacking[0], expected)
    torch.testing.assert_close(lacking[1], 0.5 - torch.logit(logits[1].softmax(0)[1]))
    (gradient,) = torch.autograd.grad(lacking.sum(), logits)
    torch.testing.assert_close(gradient[0], torch.tensor([1.0, -1.0, 0.0]))
