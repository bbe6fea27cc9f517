"""The search by answers alone: it convinces a classifier without a gradient, within its budget."""

from dataclasses import replace

import torch
from torch import Tensor, nn

from audit.counterfactual.gradient_free import PAIRS, steps_of
from audit.counterfactual.methods import choose_method
from audit.counterfactual.protocol import SearchNetworks


class Counted(nn.Module):
    """A classifier that gives no gradient and counts what it is asked."""

    differentiable = False

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.asked = inner, 0

    def forward(self, images: Tensor) -> Tensor:
        self.asked += len(images)
        with torch.no_grad():
            return self.inner(images)


def test_it_raises_the_target_class_within_its_budget(world) -> None:
    queries = 800
    settings = world.config.model_copy(update={"method": "gradient-free", "queries": queries, "steps": 1000})
    method = choose_method(settings, 0).method
    closed = Counted(world.classifier)
    subject = replace(world.subject, classifier=closed)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        found = method.explain(
            subject, SearchNetworks(world.generator, None), world.asked, world.targets, lambda amount=1: None
        )
    assert closed.asked <= queries * len(world.targets)
    assert bool((found.confidence > found.trace[:, 0]).all())
    assert float(found.flipped.float().mean()) >= 0.5
    assert found.trace.shape[1] == steps_of(queries) + 1


def test_a_budget_is_whole_steps() -> None:
    assert steps_of(1) == 1
    assert steps_of(100 * (2 * PAIRS + 1) + 1) == 100
