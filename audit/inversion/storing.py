"""Inversions as entries of the store: computed once for an audit's images, read again by every later run."""

from typing import Any

from audit.inversion.invert import Inversion
from audit.store import Entry

_DELTA = "delta/"
_OPTIONAL = ("perceptual", "encoder_mse")
_ALWAYS = ("pivots", "images", "mse", "pivot_mse")


def to_entry(inversion: Inversion) -> Entry:
    """Tensors by name, per-image weights under `delta/`."""
    tensors = {name: getattr(inversion, name) for name in (*_ALWAYS, *_OPTIONAL)}
    tensors |= {_DELTA + name: value for name, value in inversion.deltas.items()}
    return Entry({k: v.detach().cpu() for k, v in tensors.items() if v is not None}, {"method": inversion.method})


def from_entry(entry: Entry) -> Inversion:
    """The inversion that `to_entry` put away."""
    deltas = {k.removeprefix(_DELTA): v for k, v in entry.tensors.items() if k.startswith(_DELTA)}
    fields: dict[str, Any] = {name: entry.tensors[name] for name in _ALWAYS}
    fields |= {name: entry.tensors.get(name) for name in _OPTIONAL}
    return Inversion(deltas=deltas, method=str(entry.metadata["method"]), **fields)
