"""Read nested dictionaries of float32 arrays from a pickle; nothing else that a pickle can do is possible.

numpy pickles an array as a call of `_reconstruct` with a state of shape, type and bytes. The pickle is read as plain
data (`audit.storage.tensors.plain_pickle`), and these descriptions are all that is understood, so that a file runs no
code of numpy or of anybody else.
"""

import math
from typing import Any

import torch
from torch import Tensor

from audit.errors import MetricError
from audit.storage.tensors.file_bytes import Blob, Budget, Refused, in_memory
from audit.storage.tensors.plain_pickle import Call, Global, Name, read_pickle

MAX_DEPTH = 8
MAX_ENTRIES = 10_000
"""Most dictionaries and arrays that are visited. What others share is visited once for each of them, so that a small
file could ask for endless work."""
_RECONSTRUCT: set[Name] = {("numpy.core.multiarray", "_reconstruct"), ("numpy._core.multiarray", "_reconstruct")}
_DTYPE: Name = ("numpy", "dtype")
_NEEDED = {*_RECONSTRUCT, _DTYPE, ("numpy", "ndarray")}


def _check_type(described: Any) -> None:
    """Raise Refused unless a numpy dtype is described, little-endian float32."""
    match described:
        case Call(name=name, arguments=(code, *_), state=(_, order, *_)) if name == _DTYPE:
            if code != "f4":
                raise Refused("it holds arrays of another type than float32")
            if order != "<":
                raise Refused("it holds arrays of another byte order")
        case _:
            raise Refused("an array in it is not described as numpy does")


def _tensor(described: Call, budget: Budget) -> Tensor:
    match described:
        case Call(
            arguments=(Global(), *_), state=(_, tuple(shape), kind, bool(columns_first), bytes() | Blob() as held)
        ):
            _check_type(kind)
        case _:
            raise Refused("an array in it is not described as numpy does")
    if not all(isinstance(n, int) and not isinstance(n, bool) and n > 0 for n in shape):
        raise Refused("an array in it is not described as numpy does")
    budget.spend_numbers(math.prod(shape))
    data = held.raw(budget) if isinstance(held, Blob) else in_memory(held)
    if 4 * math.prod(shape) != data.size:
        raise Refused(f"an array of shape {shape} in it has {data.size} bytes")
    flat = torch.frombuffer(data.fill(0, data.size), dtype=torch.float32)
    return flat.reshape(shape[::-1]).permute(*range(len(shape))[::-1]) if columns_first else flat.reshape(shape)


def _arrays(data: bytes) -> dict[str, Tensor]:
    budget = Budget()
    content = read_pickle(in_memory(data), budget)
    for name in content.globals:
        if name not in _NEEDED:
            raise Refused(f"it asks for {'.'.join(name)[:160]}, which no array needs")
    found: dict[str, Tensor] = {}
    todo: list[tuple[Any, tuple[str, ...]]] = [(content.value, ())]
    left = MAX_ENTRIES
    while todo:
        value, path = todo.pop()
        left -= 1
        if left < 0:
            raise Refused(f"it holds more than the budget of {MAX_ENTRIES} entries")
        if isinstance(value, Call) and value.name in _RECONSTRUCT:
            found["/".join(path)] = _tensor(value, budget)
        elif isinstance(value, dict) and len(path) < MAX_DEPTH:
            todo += [(entry, (*path, key)) for key, entry in value.items()]
        else:
            raise Refused("it is no nested dictionary of arrays")
    return found


def read_arrays(data: bytes, what: str) -> dict[str, Tensor]:
    """Arrays of a pickled nested dictionary, float32, under their keys joined by "/".

    `what` names the file in the MetricError that is raised for anything else.
    """
    try:
        return _arrays(data)
    except Refused as error:
        raise MetricError(f"The weights '{what}' cannot be read: {error}.") from None
