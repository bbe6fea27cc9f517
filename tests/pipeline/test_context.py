"""What every stage is given."""

from dataclasses import replace
from pathlib import Path

import torch

from audit.storage.cache import Entry, Store


def test_random_numbers_are_of_the_seed_and_the_stage(small) -> None:
    first, again, other = (torch.rand(4, generator=small.context.rng(stage)) for stage in ("a", "a", "b"))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_what_was_computed_is_read_again_for_the_same_inputs_only(small, tmp_path: Path) -> None:
    counted = []

    def compute() -> Entry:
        counted.append(1)
        return Entry({"x": torch.ones(2)})

    kept = replace(small.context, store=Store(tmp_path))
    for inputs in ({"n": 1}, {"n": 1}, {"n": 2}):
        assert torch.equal(kept.cached("stage", compute, **inputs).tensors["x"], torch.ones(2))
    assert len(counted) == 2
    for _ in range(2):
        small.context.cached("stage", compute, n=1)
    assert len(counted) == 4
