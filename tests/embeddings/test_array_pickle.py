"""Arrays out of pickles: what numpy writes is read, and nothing else is obeyed."""

import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from audit.embeddings.array_pickle import read_arrays
from audit.errors import MetricError


class Calls:
    """Pickles as a call of `function`."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.called = function, arguments

    def __reduce__(self) -> Any:
        return self.called


@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_nested_arrays_of_either_order_are_read(protocol: int) -> None:
    values = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    tree = {"a": {"kernel": values, "columns": np.asfortranarray(values)}, "b": values[0, 0]}
    if protocol == 5:
        with pytest.raises(MetricError, match="cannot be read"):  # numpy's out-of-band form is not needed
            read_arrays(pickle.dumps(tree, protocol=5), "x")
        return
    found = read_arrays(pickle.dumps(tree, protocol=protocol), "x")
    assert set(found) == {"a/kernel", "a/columns", "b"}
    assert torch.equal(found["a/kernel"], torch.from_numpy(values))
    assert torch.equal(found["a/columns"], torch.from_numpy(values))
    assert torch.equal(found["b"], torch.arange(4.0))


def test_hostile_pickles_are_refused_without_effect(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    array = np.zeros(3, dtype=np.float32)
    for hostile in (
        Calls(os.system, f"touch {mark}"),
        Calls(eval, f"open({str(mark)!r}, 'w')"),
        Calls(getattr, Calls(__import__, "os"), "system"),
        Calls(np.ndarray, (10**15,)),
        Calls(np.frombuffer, b"1234"),
        {"a": {"b": Calls(open, str(mark), "w")}},
        {"a": np.array([object()], dtype=object)},
        {"a": array.astype(np.float64)},
        {"a": array.astype(">f4")},
        {"a": [array]},
        array.tolist(),
    ):
        with pytest.raises(MetricError, match="cannot be read"):
            read_arrays(pickle.dumps(hostile, protocol=3), "weights.ckpt")
    assert not mark.exists()


def test_damage_is_an_error_of_ours() -> None:
    whole = pickle.dumps({"a": np.zeros(300, dtype=np.float32)}, protocol=3)
    for cut in (0, 1, 10, 100, len(whole) - 1):
        with pytest.raises(MetricError, match=r"weights\.ckpt"):
            read_arrays(whole[:cut], "weights.ckpt")
    shape = whole.replace(b"K\x00\x85", b"K\x01\x85").replace(b"M,\x01\x85", b"M-\x01\x85")
    assert shape != whole
    with pytest.raises(MetricError, match="has 1200 bytes"):
        read_arrays(shape, "weights.ckpt")


def test_a_cycle_is_refused() -> None:
    loop: dict[str, Any] = {}
    loop["a"] = loop
    with pytest.raises(MetricError, match="no nested dictionary"):
        read_arrays(pickle.dumps(loop, protocol=3), "x")
