"""Results of stages in a file: the same when they come back, and nothing but values."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

from audit.reliance.run import Changed
from audit.results import Interval, TrustCheck
from audit.robustness.attacks.sight import Sight
from audit.storage.cache import Store
from audit.storage.codec import Entry, pack, unpack


def again(value: object, root: Path) -> object:
    """`value`, written to a file and read from it."""
    store, entry = Store(root), pack(value)
    store.put("ab", entry.tensors, entry.metadata)
    found = store.get("ab")
    assert found is not None
    return unpack(found)


@pytest.mark.parametrize(
    "value",
    [
        None,
        True,
        -0.1,
        float("inf"),
        "größe",
        [1, (2, "x"), []],
        {"a": {1: 2.5, "1": None}, ("b", 0): ()},
        Interval(value=0.1, low=0.0, high=0.30000000000000004, n=3),
        [TrustCheck(name="n", passed=None, value=1e-17, limit=None, n=2, finding="f", attacks=("pgd",))],
    ],
)
def test_values_come_back(value: object, tmp_path: Path) -> None:
    found = again(value, tmp_path)
    assert found == value
    assert type(found) is type(value)


def test_tensors_come_back_to_the_bit(tmp_path: Path) -> None:
    values = torch.rand(3, 4, generator=torch.Generator().manual_seed(0))
    given = {"view": values[1], "turned": values.T, "half": values.half(), "none": torch.zeros(0, 2)}
    found = again(given, tmp_path)
    assert isinstance(found, dict)
    assert all(torch.equal(found[name], value) and found[name].dtype == value.dtype for name, value in given.items())
    array = again(np.arange(3), tmp_path)
    assert isinstance(array, np.ndarray)
    assert array.tolist() == [0, 1, 2]


def test_dataclasses_come_back(tmp_path: Path) -> None:
    sight = again(
        (Sight(torch.ones(2), torch.zeros(2)), Changed("i", "a", "b", torch.ones(1), torch.ones(1))), tmp_path
    )
    assert isinstance(sight, tuple)
    assert isinstance(sight[0], Sight)
    assert torch.equal(sight[0].taken, torch.ones(2))
    assert sight[1].before == "a"


class Outside(NamedTuple):
    x: Tensor


@pytest.mark.parametrize("value", [{1, 2}, object(), print, Outside(torch.ones(1))])
def test_what_is_no_result_is_not_written(value: object) -> None:
    with pytest.raises(TypeError, match="cannot be kept"):
        pack(value)


@pytest.mark.parametrize(
    "name", ["os:system", "audit.pipeline.runner:run_audit", "audit.gone:X", "audit.results:Gone", "builtins:dict"]
)
def test_a_file_can_ask_for_nothing_but_values(name: str) -> None:
    with pytest.raises(ValueError, match=r"no class|not a value"):
        unpack(Entry({}, {"value": {"class": name, "fields": {"mapping": []}}}))
