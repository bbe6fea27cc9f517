"""A network comes out of `preserve_mode` exactly as it went in."""

import pytest
import torch
from torch import Tensor, nn

from audit.classifiers.mode import preserve_mode


def mixed_network() -> nn.Sequential:
    """A training network with a frozen batch norm and one frozen weight."""
    network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Dropout(), nn.Linear(72, 3)).train()
    network[1].eval()
    network[0].weight.requires_grad_(False)
    return network


def state(network: nn.Module) -> tuple[list[bool], list[bool]]:
    return [m.training for m in network.modules()], [p.requires_grad for p in network.parameters()]


def test_every_flag_is_restored() -> None:
    network = mixed_network()
    before, running = state(network), network[1].running_mean.clone()
    with preserve_mode(network) as inside:
        assert inside is network
        assert not any(m.training for m in network.modules())
        assert not any(p.requires_grad for p in network.parameters())
        images = torch.rand(2, 1, 8, 8, requires_grad=True)
        network(images).sum().backward()
        assert images.grad is not None
    assert state(network) == before
    assert torch.equal(network[1].running_mean, running)
    assert all(p.grad is None for p in network.parameters())


def test_flags_are_restored_after_an_error_and_when_nested() -> None:
    network = mixed_network()
    before = state(network)
    with preserve_mode(network):
        with pytest.raises(RuntimeError), preserve_mode(network):
            network(torch.rand(1, 5, 8, 8))
        assert not any(p.requires_grad for p in network.parameters())
    assert state(network) == before


def test_networks_that_act_on_train_are_called() -> None:
    class Merging(nn.Module):
        """Merges an adapter for evaluation, as low-rank adapters do."""

        def __init__(self) -> None:
            super().__init__()
            self.merged = False

        def train(self, mode: bool = True) -> "Merging":
            self.merged = not mode
            return super().train(mode)

        def forward(self, images: Tensor) -> Tensor:
            return images

    network = Merging()
    with preserve_mode(network):
        assert network.merged
    assert not network.merged
    assert network.training


@pytest.mark.filterwarnings("ignore")
def test_script_and_frozen_modules() -> None:
    script = torch.jit.script(mixed_network())
    before = state(script)
    with preserve_mode(script):
        assert not script.training
    assert state(script) == before
    frozen = torch.jit.freeze(torch.jit.script(mixed_network().eval()))
    with preserve_mode(frozen):
        assert frozen(torch.rand(1, 1, 8, 8)).shape == (1, 3)
