"""Results of stages as tensors and JSON, and back: a file holds values, and no code.

Tensors are kept by number beside the JSON, exactly as they are. Dataclasses, named tuples and models of pydantic are
written with the name of their class; on reading, only such classes of this package are made.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from importlib import import_module
from typing import Any

import numpy as np
import torch
from pydantic import BaseModel
from torch import Tensor

_PACKAGE = "audit."


@dataclass(frozen=True)
class Entry:
    """What one stage left: named tensors (on the CPU) and JSON metadata."""

    tensors: dict[str, Tensor]
    metadata: dict[str, Any] = field(default_factory=dict)


def pack(value: Any) -> Entry:
    """Return `value` as an entry, from which `unpack` makes it again. Raises TypeError for what cannot be written."""
    tensors: dict[str, Tensor] = {}

    def written(one: Any) -> Any:
        if one is None or isinstance(one, bool | int | float | str):
            return one
        if isinstance(one, Tensor | np.ndarray):
            name = str(len(tensors))
            tensors[name] = one.detach() if isinstance(one, Tensor) else torch.from_numpy(np.ascontiguousarray(one))
            return {"tensor" if isinstance(one, Tensor) else "array": name}
        if isinstance(one, list):
            return [written(part) for part in one]
        if isinstance(one, Mapping):
            return {"mapping": [[written(key), written(part)] for key, part in one.items()]}
        if isinstance(one, BaseModel):
            # As Python values: JSON would make strings of the keys that are numbers.
            return {"class": _name(one), "fields": written(one.model_dump())}
        if is_dataclass(one) and not isinstance(one, type):
            return {"class": _name(one), "fields": written({f.name: getattr(one, f.name) for f in fields(one)})}
        if isinstance(one, tuple) and hasattr(one, "_asdict"):
            return {"class": _name(one), "fields": written(one._asdict())}
        if isinstance(one, tuple):
            return {"tuple": [written(part) for part in one]}
        raise TypeError(f"a {type(one).__name__} cannot be kept in the store")

    return Entry(tensors, {"value": written(value)})


def unpack(entry: Entry) -> Any:
    """Return the value that `pack` made `entry` of. Raises ValueError where it is of classes that are there no more."""

    def read(one: Any) -> Any:
        if isinstance(one, list):
            return [read(part) for part in one]
        if not isinstance(one, dict):
            return one
        if "tensor" in one:
            return entry.tensors[one["tensor"]]
        if "array" in one:
            return entry.tensors[one["array"]].numpy()
        if "tuple" in one:
            return tuple(read(part) for part in one["tuple"])
        if "mapping" in one:
            return {read(key): read(part) for key, part in one["mapping"]}
        values, made = read(one["fields"]), _class(one["class"])
        return made.model_validate(values) if issubclass(made, BaseModel) else made(**values)

    try:
        return read(entry.metadata["value"])
    except (KeyError, TypeError, AttributeError, ImportError) as error:
        raise ValueError(f"not a value of this version ({error})") from None


def _name(value: object) -> str:
    kind = type(value)
    if not kind.__module__.startswith(_PACKAGE):
        raise TypeError(f"a {kind.__module__}.{kind.__qualname__} cannot be kept in the store")
    return f"{kind.__module__}:{kind.__qualname__}"


def _class(name: str) -> type[Any]:
    module, _, kind = name.partition(":")
    found = getattr(import_module(module), kind) if module.startswith(_PACKAGE) else None
    if isinstance(found, type) and (
        is_dataclass(found) or issubclass(found, BaseModel) or (issubclass(found, tuple) and hasattr(found, "_asdict"))
    ):
        return found
    raise ValueError(f"'{name}' is no class of results")
