"""A budget of memory: what work takes is measured, as much as fits is done at once, and half when memory runs out."""

import pytest
import torch
from torch import Tensor, nn

from audit.config import AuditConfig, ConfigError, parse_config
from audit.embeddings.embedding import embed_all
from audit.metrics.perceptual import perceptual_all
from audit.runtime import memory
from audit.runtime.memory import (
    allowed,
    at_once,
    fitting,
    halving,
    in_slices,
    limited,
    out_of_memory,
    peak_bytes,
    stated,
)

CPU = torch.device("cpu")
EACH = 1000 * 4


class Counting:
    """A feature network that holds 100 floats for every value of an image and notes its batches."""

    name, weights_sha256 = "counting", "0" * 64

    def __init__(self) -> None:
        self.batches: list[int] = []

    def embed(self, images: Tensor) -> Tensor:
        self.batches.append(len(images))
        return images.flatten(1).repeat(1, 100).square().mean(1, keepdim=True)

    def maps(self, images: Tensor) -> list[Tensor]:
        self.batches.append(len(images))
        return [images.repeat(1, 100, 1, 1)]


def test_what_is_held_at_the_peak_is_counted_and_nothing_else() -> None:
    before = torch.ones(1000)

    def work() -> Tensor:
        first = before * 2  # one
        second = first + before  # two
        del first
        view = second.view(10, 100)
        third = view.exp()  # two
        return third.sum()

    assert peak_bytes(work, CPU) == pytest.approx(2 * EACH * memory.KEPT_BESIDES, abs=20)


def test_activations_kept_for_the_way_back_are_counted() -> None:
    network = nn.Sequential(*[nn.Sigmoid() for _ in range(10)])
    leaf = torch.ones(1000)

    def forward() -> None:
        with torch.no_grad():
            network(leaf)

    def backward() -> None:
        given = leaf.clone().requires_grad_()
        torch.autograd.grad(network(given).sum(), given)

    assert peak_bytes(forward, CPU) <= 3 * EACH * memory.KEPT_BESIDES
    assert peak_bytes(backward, CPU) >= 10 * EACH


def test_fitting_is_at_least_one_and_at_most_what_is_wanted() -> None:
    assert [fitting(8, 10, budget) for budget in (1, 10, 35, 80, 10**6)] == [1, 1, 3, 8, 8]
    assert fitting(8, 0, 1) == 1
    assert at_once(1, lambda: pytest.fail("nothing to measure"), CPU, 1) == 1


def test_the_limit_is_the_audits_a_stages_own_or_two_gigabytes() -> None:
    assert (allowed(CPU), stated()) == (2 * 10**9, False)
    with limited("300MB"):
        assert (allowed(CPU), stated()) == (300 * 10**6, True)
        assert allowed(CPU, "1GB") == 10**9
    assert allowed(CPU) == 2 * 10**9
    named = {"data": {"path": "x"}, "classifiers": [{"name": "a", "file": "a.pt"}]}
    assert parse_config(AuditConfig, named, "the test").max_memory == "auto"
    assert parse_config(AuditConfig, named | {"max_memory": 64}, "the test").max_memory == "64MB"
    with pytest.raises(ConfigError, match=r"max_memory.*amount of memory"):
        parse_config(AuditConfig, named | {"max_memory": "plenty"}, "the test")


def test_running_out_is_known_by_what_allocators_say_and_behind_another_error() -> None:
    assert out_of_memory(MemoryError())
    assert out_of_memory(torch.OutOfMemoryError("CUDA out of memory."))
    assert out_of_memory(RuntimeError("MPS backend out of memory (MPS allocated: 1 GB)"))
    lack = RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes. Error code 12")
    wrapped = ValueError("it fails")
    wrapped.__cause__ = lack
    assert out_of_memory(wrapped)
    assert not out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    assert not out_of_memory(ValueError("can't allocate memory"))


def test_a_real_lack_of_memory_is_known() -> None:
    with pytest.raises(RuntimeError) as lack:
        torch.empty(2**58, dtype=torch.uint8)
    assert out_of_memory(lack.value)


def test_slices_are_halved_and_what_was_done_is_kept() -> None:
    tried: list[tuple[int, int]] = []

    def work(rows: slice) -> list[int]:
        tried.append((rows.start, rows.stop))
        if rows.stop - rows.start > 3 and rows.start >= 8:
            raise MemoryError
        return list(range(20))[rows]

    assert sum(in_slices(20, 8, work), []) == list(range(20))  # noqa: RUF017
    assert tried == [(0, 8), (8, 16), (8, 12), (8, 10), (10, 12), (12, 14), (14, 16), (16, 18), (18, 20)]


def test_one_item_that_does_not_fit_and_other_errors_are_raised() -> None:
    def never(rows: slice) -> None:
        raise MemoryError

    with pytest.raises(MemoryError):
        in_slices(4, 4, never)
    with pytest.raises(ZeroDivisionError):
        halving(lambda: 1 // 0, lambda: pytest.fail("is no lack of memory"))


def test_embeddings_and_perceptual_distances_take_what_fits() -> None:
    images = torch.rand(40, 1, 5, 2, generator=torch.Generator().manual_seed(0))
    free, tight = Counting(), Counting()
    expected = embed_all(free, images, 16), perceptual_all(free, images, images.flip(0), 16)
    assert free.batches == [1, 16, 16, 8, 1, 1, *[16] * 4, 8, 8]
    with limited("64KB"):
        found = embed_all(tight, images, 16), perceptual_all(tight, images, images.flip(0), 16)
    assert 1 < max(tight.batches) < 16
    torch.testing.assert_close(found, expected)
