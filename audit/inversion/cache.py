"""Cache of inversions: computed once for an audit's images, and read again by every later run.

An entry holds one chunk of images and is written as soon as they are done. The per-image weights, by far the largest
part, stay in the file: safetensors maps it into memory, so that only the images being worked on take memory. Without a
cache they are kept in memory up to a bound, and beyond it in temporary files (in `TMPDIR`) that vanish with the
process.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from audit.inversion.deltas import NOTHING, Deltas
from audit.inversion.invert import Inversion, Keep
from audit.storage.cache import Entry, Store

_DELTA = "delta/"
_OPTIONAL = ("perceptual", "encoder_mse")
_ALWAYS = ("pivots", "images", "mse", "pivot_mse")
IN_MEMORY = 256 * 10**6
"""Bytes of per-image weights that are kept in memory where there is no store: those of the next chunk go to a file."""


def to_entry(inversion: Inversion) -> Entry:
    """Tensors by name, per-image weights under `delta/`."""
    tensors = {name: getattr(inversion, name) for name in (*_ALWAYS, *_OPTIONAL)}
    tensors |= {_DELTA + name: value for name, value in inversion.deltas.pieces().items()}
    shapes = {name: list(shape) for name, shape in inversion.deltas.shapes.items()}
    return Entry(
        {k: v.detach().cpu() for k, v in tensors.items() if v is not None},
        {"method": inversion.method, "shapes": shapes},
    )


def from_entry(entry: Entry) -> Inversion:
    """The inversion that `to_entry` put away; its per-image weights stay where the entry has them."""
    pieces = {k.removeprefix(_DELTA): v for k, v in entry.tensors.items() if k.startswith(_DELTA)}
    fields: dict[str, Any] = {name: entry.tensors[name].clone() for name in _ALWAYS}
    fields |= {k: v.clone() for k in _OPTIONAL if (v := entry.tensors.get(k)) is not None}
    fields = dict.fromkeys(_OPTIONAL) | fields
    deltas = Deltas(entry.metadata["shapes"], [pieces]) if pieces else NOTHING
    return Inversion(deltas=deltas, method=str(entry.metadata["method"]), **fields)


def keep_in(store: Store, **inputs: object) -> Keep:
    """Look every chunk up in `store` under its images and `inputs`; invert and write those that are not there."""

    def keep(images: Tensor, compute: Callable[[], Inversion]) -> Inversion:
        key = store.key("inversion", images=images, **inputs)
        found = store.get(key)
        if found is None:
            fresh = to_entry(compute())
            store.put(key, fresh.tensors, fresh.metadata)
            found = store.get(key) or fresh  # what was written, mapped: the copy in memory goes
        return from_entry(found)

    return keep


def keep_without_store(limit: int = IN_MEMORY) -> Keep:
    """Keep per-image weights in memory up to `limit` bytes in all, those of later chunks in nameless files."""
    held = 0

    def keep(_: Tensor, compute: Callable[[], Inversion]) -> Inversion:
        nonlocal held
        fresh = compute()
        held += fresh.deltas.bytes_per_image * len(fresh.pivots)
        if not fresh.deltas or held <= limit:
            return fresh
        entry = to_entry(fresh)
        return from_entry(Entry(_mapped(entry.tensors), entry.metadata))

    return keep


def _mapped(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors, mapped from a file that is unlinked at once; its space is freed with the last of them."""
    with TemporaryDirectory(prefix="spruce-audit-", ignore_cleanup_errors=True) as folder:
        file = Path(folder) / "inversions.safetensors"
        save_file({name: value.contiguous() for name, value in tensors.items()}, file)
        with safe_open(file, framework="pt") as opened:
            return {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 - not a mapping
