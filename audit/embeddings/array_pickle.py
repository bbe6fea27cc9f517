"""Read nested dictionaries of float32 arrays from a pickle; nothing else that a pickle can do is possible.

numpy pickles an array as a call of `_reconstruct` with a state of shape, type and bytes. Here classes of our own read
both, so that a file runs no code of numpy or of anybody else. Every name outside an allow-list of three is refused.
"""

import io
import math
import pickle
from typing import Any

import torch
from torch import Tensor

from audit.errors import MetricError

MAX_ARRAYS = 1000
MAX_DEPTH = 8
MAX_ENTRIES = 10_000
"""Most dictionaries and arrays that are visited. What others share is visited once for each of them, so that a small
file could ask for endless work."""


class _Type:
    """Stands for a numpy dtype: little-endian float32 and no other."""

    def __init__(self, code: object, *_: object) -> None:
        if code != "f4":
            raise pickle.UnpicklingError("it holds arrays of another type than float32")

    def __setstate__(self, state: object) -> None:
        if not (isinstance(state, tuple) and len(state) > 1 and state[1] == "<"):
            raise pickle.UnpicklingError("it holds arrays of another byte order")


class _Array:
    """Stands for a numpy array; its tensor is made of the bytes that are there."""

    def __init__(self, *_: object) -> None:
        self.tensor: Tensor | None = None

    def __setstate__(self, state: object) -> None:
        match state:
            case (_, tuple(shape), _Type(), bool(columns_first), bytes(data)) if all(
                isinstance(n, int) and n > 0 for n in shape
            ):
                pass
            case _:
                raise pickle.UnpicklingError("an array in it is not described as numpy does")
        if 4 * math.prod(shape) != len(data):
            raise pickle.UnpicklingError(f"an array of shape {shape} in it has {len(data)} bytes")
        flat = torch.frombuffer(bytearray(data), dtype=torch.float32)
        self.tensor = (
            flat.reshape(shape[::-1]).permute(*range(len(shape))[::-1]) if columns_first else flat.reshape(shape)
        )


class _Reader(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        match module, name:
            case ("numpy.core.multiarray" | "numpy._core.multiarray", "_reconstruct"):
                return _Array
            case ("numpy", "ndarray"):
                return "ndarray"  # an argument of _reconstruct, never called
            case ("numpy", "dtype"):
                return _Type
        raise pickle.UnpicklingError(f"it asks for {module[:80]}.{name[:80]}, which no array needs")


def read_arrays(data: bytes, what: str) -> dict[str, Tensor]:
    """Arrays of a pickled nested dictionary, float32, under their keys joined by "/".

    `what` names the file in the MetricError that is raised for anything else.
    """
    found: dict[str, Tensor] = {}
    left = MAX_ENTRIES

    def walk(value: object, path: tuple[str, ...]) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise pickle.UnpicklingError(f"it holds more than the budget of {MAX_ENTRIES} entries")
        if isinstance(value, _Array) and value.tensor is not None and len(found) < MAX_ARRAYS:
            found["/".join(path)] = value.tensor
        elif isinstance(value, dict) and len(path) < MAX_DEPTH and all(isinstance(k, str) for k in value):
            for key, entry in value.items():
                walk(entry, (*path, key))
        else:
            raise pickle.UnpicklingError("it is no nested dictionary of arrays")

    try:
        walk(_Reader(io.BytesIO(data)).load(), ())
    except Exception as error:  # noqa: BLE001 - damaged bytes fail in whatever way they like
        raise MetricError(f"The weights '{what}' cannot be read: {str(error) or type(error).__name__}.") from None
    return found
