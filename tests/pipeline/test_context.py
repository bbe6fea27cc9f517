"""What every stage is given."""

from dataclasses import replace
from pathlib import Path

import torch
from support_small_audit import by_brightness

from audit.storage.cache import Store


def test_random_numbers_are_of_the_seed_and_the_stage(small) -> None:
    first, again, other = (torch.rand(4, generator=small.context.rng(stage)) for stage in ("a", "a", "b"))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_results_of_a_classifier_are_its_own(small, tmp_path: Path) -> None:
    kept = replace(small.context, store=Store(tmp_path))
    left, again, whole = (kept.of(by_brightness(name)) for name in ("left", "left", "whole"))
    assert left.given["classifier"] == again.given["classifier"] != whole.given["classifier"]
    assert small.context.of(by_brightness("left")).store is None
