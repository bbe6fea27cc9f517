"""Shares of a batch: every image once, in order, on threads of their own; an error in one ends all."""

import time
from collections.abc import Callable, Iterator

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from audit.config import InversionConfig
from audit.generator.stylegan2.networks import Generator
from audit.inversion.inverter import Inverter
from audit.inversion.loss import targets_of
from audit.inversion.pivotal import tune
from audit.inversion.shares import SMALLEST_SHARE, in_shares, share_count

CPU = torch.device("cpu")


def nothing() -> None:
    pass


@pytest.fixture(autouse=True)
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@given(st.integers(0, 300), st.integers(1, 64))
def test_shares_are_large_enough_and_no_more_than_the_threads(images: int, threads: int) -> None:
    count = share_count(images, threads)
    assert 1 <= count <= threads
    assert count == 1 or images // count >= SMALLEST_SHARE


@given(st.integers(1, 70))
def test_every_image_is_in_one_share_in_order(images: int) -> None:
    rows = in_shares(images, CPU, lambda rows, _: list(range(images))[rows], nothing)
    assert [i for share in rows for i in share] == list(range(images))


def test_threads_are_divided_and_given_back() -> None:
    inside = in_shares(2 * SMALLEST_SHARE, CPU, lambda *_: torch.get_num_threads(), nothing)
    assert inside == [1, 1]
    assert torch.get_num_threads() == 2
    assert in_shares(SMALLEST_SHARE, CPU, lambda *_: torch.get_num_threads(), nothing) == [2]


def test_steps_of_the_first_share_are_told() -> None:
    told = []

    def work(rows: slice, step: Callable[[], None]) -> None:
        for _ in range(3 if rows.start == 0 else 5):
            step()

    in_shares(2 * SMALLEST_SHARE, CPU, work, lambda: told.append(1))
    assert len(told) == 3


@pytest.mark.parametrize("failing", [0, SMALLEST_SHARE])
def test_an_error_is_raised_and_ends_the_other_share(failing: int) -> None:
    ended_by_itself = []

    def work(rows: slice, step: Callable[[], None]) -> None:
        if rows.start == failing:
            raise ArithmeticError("one share fails")
        for _ in range(1000):
            step()
            time.sleep(0.01)
        ended_by_itself.append(rows)

    with pytest.raises(ArithmeticError, match="one share"):
        in_shares(2 * SMALLEST_SHARE, CPU, work, nothing)
    assert not ended_by_itself
    assert torch.get_num_threads() == 2


@pytest.mark.parametrize("form", ["full", "low-rank"])
def test_tuning_in_shares_is_tuning_each_share(
    form: str, generator: Generator, draw_images: Callable[[int, int], Tensor]
) -> None:
    n = 2 * SMALLEST_SHARE
    z = torch.randn(n, generator.z_dim, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        pivots = generator.mapping(z).contiguous()
    targets = targets_of(draw_images(n, 5), None)
    settings = InversionConfig.model_validate({"tuning_steps": 6, "stop_mse": 0.0, "deltas": form, "rank": 2})
    together = tune(Inverter(generator, settings, 3), pivots, targets)
    assert together.images == n
    torch.set_num_threads(1)
    for rows in (slice(0, SMALLEST_SHARE), slice(SMALLEST_SHARE, n)):
        alone = tune(Inverter(generator, settings, 3), pivots[rows], targets.select(rows)).read()
        for name, additions in together.read(rows).items():
            torch.testing.assert_close(additions, alone[name], atol=0, rtol=0)
