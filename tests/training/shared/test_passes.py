"""Rows of a step: every image once a pass, in an order that only seed and pass decide."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from audit.training.shared.passes import Passes, pass_order


@settings(max_examples=25, deadline=None)
@given(n=st.integers(8, 50), batch=st.integers(1, 8), seed=st.integers(0, 9))
def test_seamless_passes_show_every_image_once_each(n: int, batch: int, seed: int):
    passes = Passes(n, batch, seed, seamless=True)
    steps = -(-3 * n // batch)
    seen = torch.cat([passes.rows(step) for step in range(steps)])
    for start in range(0, 3 * n, n):
        assert torch.equal(seen[start : start + n], pass_order(n, seed, start // n))
        assert sorted(seen[start : start + n].tolist()) == list(range(n))
    assert torch.equal(Passes(n, batch, seed, seamless=True).rows(steps - 1), seen[-batch:])


@settings(max_examples=25, deadline=None)
@given(n=st.integers(8, 50), batch=st.integers(1, 8), seed=st.integers(0, 9))
def test_other_passes_end_with_their_last_whole_batch(n: int, batch: int, seed: int):
    passes, per_pass = Passes(n, batch, seed), n // batch
    for number in range(3):
        seen = torch.cat([passes.rows(number * per_pass + k) for k in range(per_pass)])
        assert torch.equal(seen, pass_order(n, seed, number)[: per_pass * batch])


def test_a_batch_larger_than_the_set_spans_several_passes():
    rows = Passes(3, 7, 0, seamless=True).rows(0)
    assert torch.equal(rows, torch.cat([pass_order(3, 0, number) for number in range(3)])[:7])


def test_trainings_draw_from_streams_of_their_own():
    assert not torch.equal(pass_order(50, 0, 0), pass_order(50, 0, 0, "generator order "))
