"""Batches through a classifier in slices: the same logits and gradients in less memory."""

import itertools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from audit.classifiers.classifier import Classifier
from audit.classifiers.mode import preserve_mode
from audit.classifiers.slices import Slices, sparing
from audit.errors import ClassifierError
from audit.robustness.attacks.apgd import apgd_attack
from audit.robustness.attacks.pgd import pgd_attack
from audit.runtime.memory import peak_bytes
from audit.runtime.seeds import stage_generator

CPU = torch.device("cpu")
EACH = 32 * 16 * 16 * 4
"""Bytes of the widest activation of an image."""


def convolutions() -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(1, 32, 3, padding=1), nn.SiLU(), nn.BatchNorm2d(32), nn.Conv2d(32, 32, 3, padding=1), nn.SiLU(),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 3),
        )  # fmt: skip


def classifier(network: nn.Module | None = None, max_memory: str | None = None) -> Classifier:
    made = Classifier(
        convolutions() if network is None else network,
        name="small",
        class_names=("a", "b", "c"),
        input_shape=(1, 16, 16),
    ).eval()
    if max_memory is not None:
        made.slices = Slices("small", max_memory)
    return made


def images(n: int = 12) -> Tensor:
    return torch.rand(n, 1, 16, 16, generator=torch.Generator().manual_seed(1))


def gradient(network: nn.Module, given: Tensor) -> tuple[Tensor, Tensor]:
    leaf = given.clone().requires_grad_()
    with preserve_mode(network):
        logits = network(leaf)
        (found,) = torch.autograd.grad(logits.square().sum(), leaf)
    return logits.detach(), found


def scripted() -> nn.Module:
    return torch.jit.script(convolutions().eval())


@pytest.mark.parametrize("network", [convolutions, scripted])
def test_logits_and_gradients_are_those_of_the_whole_batch_in_a_part_of_its_memory(
    network: Callable[[], nn.Module],
) -> None:
    whole, sliced = classifier(network()), classifier(network(), f"{10 * EACH / 1000:.0f}KB")
    for _ in range(3):  # TorchScript compiles anew at its second pass
        expected, found = gradient(whole, images()), gradient(sliced, images())
        torch.testing.assert_close(found, expected)
    with torch.no_grad():
        torch.testing.assert_close(sliced(images()), whole(images()))
        torch.testing.assert_close(sliced.features_and_logits(images()), whole.features_and_logits(images()))
    assert sliced.slices is not None
    assert set(sliced.slices.ran) == {True, False}
    most, batch, each = sliced.slices.ran[True]
    assert (most < 12, batch) == (True, 12)
    assert most * each <= 10 * EACH
    assert f"{most} of 12 images" in str(sliced.slices.said())
    before, after = (peak_bytes(lambda c=c: gradient(c, images()), CPU) for c in (whole, sliced))
    assert after < 0.5 * before


def test_a_batch_that_fits_is_taken_whole_at_no_price() -> None:
    free, whole = classifier(max_memory="2GB"), classifier()
    passes = [0]
    free.network.register_forward_hook(lambda *_: passes.__setitem__(0, passes[0] + 1))
    gradient(free, images())
    measured = passes[0]
    assert torch.equal(gradient(free, images())[1], gradient(whole, images())[1])
    assert (measured, passes[0]) == (2, 3)
    assert free.slices is not None
    assert free.slices.said() is None


def test_attacks_come_to_the_same_end_whatever_the_memory() -> None:
    given = images(16)
    labels = classifier()(given).argmax(1)
    for attack in (pgd_attack, apgd_attack):
        found = [
            attack(one, given, labels, eps=0.03, steps=4, generator=stage_generator(0, "test"))
            for one in (classifier(), classifier(max_memory="200KB"))
        ]
        torch.testing.assert_close(found[0], found[1], atol=1e-4, rtol=0)


def test_random_networks_meet_the_stream_that_they_would_without_a_bound() -> None:
    def noisy(max_memory: str | None) -> tuple[Tensor, Tensor]:
        network, noise = convolutions(), Noise()
        network.insert(2, noise)
        found = classifier(network, max_memory)
        noise.amount = 1.0
        torch.manual_seed(5)
        return gradient(found, images())

    torch.testing.assert_close(noisy("1GB"), noisy(None))
    with torch.random.fork_rng(devices=[]):
        logits, found = noisy("100KB")
    assert torch.isfinite(logits).all()
    assert torch.isfinite(found).all()


class Noise(nn.Module):
    """Adds noise at every pass once it is told to."""

    amount = 0.0

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.randn_like(x) * self.amount if self.amount else x


class Hungry(nn.Module):
    """Runs out of memory above `most` images, as the allocators of a CPU and of a GPU say it."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.inner, self.most, self.error = convolutions(), 64, error

    def forward(self, x: Tensor) -> Tensor:
        if len(x) > self.most:
            raise self.error
        return self.inner(x)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 MiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: you tried to ..."),
        MemoryError(),
    ],
)
def test_a_batch_is_halved_until_it_fits(error: Exception) -> None:
    given, expected = images(20), classifier()
    labels = expected(given).argmax(1)
    network = Hungry(error)
    hungry = classifier(network, "1GB")
    network.most = 3

    def attack(one: Classifier) -> Tensor:
        return pgd_attack(one, given, labels, eps=0.03, steps=3, generator=stage_generator(0, "test"))

    torch.testing.assert_close(sparing(hungry, lambda: attack(hungry)), attack(expected), atol=1e-4, rtol=0)
    assert hungry.slices is not None
    assert hungry.slices.ran[True][0] == 2
    network.most = 0
    with pytest.raises(ClassifierError, match="does not fit in memory even with one image"):
        sparing(hungry, lambda: attack(hungry))


@pytest.mark.parametrize("most", [1, 3])
def test_a_pass_without_a_gradient_is_halved_where_it_is_asked_for(most: int) -> None:
    """With room for one, memory runs out already where two are measured."""
    network = Hungry(torch.OutOfMemoryError("CUDA out of memory."))
    hungry, given = classifier(network, "1GB"), images(20)
    network.most = most
    with torch.no_grad():
        torch.testing.assert_close(hungry(given), classifier()(given), atol=1e-5, rtol=0)
    assert hungry.slices is not None
    assert hungry.slices.ran[False][0] == min(most, 2)


def test_another_error_is_not_taken_for_a_lack_of_memory() -> None:
    calls = itertools.count()

    def fails() -> None:
        next(calls)
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="shapes"):
        sparing(classifier(max_memory="1GB"), fails)
    assert next(calls) == 1


def test_a_network_in_training_mode_is_not_divided() -> None:
    one = classifier(max_memory="1KB").train()
    other = classifier().train()
    torch.testing.assert_close(one(images()), other(images()))
    assert one.slices is not None
    assert not one.slices.ran
