"""Inversions put away one by one: read again by every later run, whatever images it inverts beside them.

The per-image weights, by far the largest part, stay in their file: safetensors maps it into memory, so that only the
images being worked on take memory. Without a store they are kept in memory up to a bound, and beyond it in temporary
files (in `TMPDIR`) that vanish with the process.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from audit.inversion.deltas import NOTHING, Deltas
from audit.inversion.invert import Inversion, Keep
from audit.storage.codec import Entry, pack, unpack
from audit.storage.stages import Lots

CODE = ("audit.inversion",)
_OPTIONAL = ("perceptual", "encoder_mse")
_ALWAYS = ("pivots", "images", "mse", "pivot_mse")
IN_MEMORY = 256 * 10**6
"""Bytes of per-image weights that are kept in memory where there is no store: those of the next chunk go to a file."""

Row = Mapping[str, Any]
"""One image's inversion in plain parts."""


def to_rows(inversion: Inversion) -> list[Row]:
    """Return what there is of each image."""
    columns: dict[str, Tensor | None] = {name: getattr(inversion, name) for name in (*_ALWAYS, *_OPTIONAL)}
    pieces = inversion.deltas.pieces()
    common = {"method": inversion.method, "shapes": inversion.deltas.shapes}
    return [
        {
            **common,
            **{name: None if values is None else values[i].detach().cpu() for name, values in columns.items()},
            "delta": {name: values[i].detach().cpu() for name, values in pieces.items()},
        }
        for i in range(len(inversion.pivots))
    ]


def from_rows(rows: Sequence[Row]) -> Inversion:
    """Return the inversions that `to_rows` took apart; their per-image weights stay where the rows have them."""
    first = rows[0]
    deltas = Deltas(first["shapes"], [{name: one[None] for name, one in row["delta"].items()} for row in rows])
    columns = {
        name: None if first[name] is None else torch.stack([row[name] for row in rows])
        for name in (*_ALWAYS, *_OPTIONAL)
    }
    return Inversion(deltas=deltas if first["delta"] else NOTHING, method=first["method"], **columns)  # type: ignore[arg-type]


def inverted(lots: Lots[Row], images: Tensor, invert: Callable[[Tensor, Keep], object]) -> Inversion:
    """Return the inversions of `images`; `invert` is given those that `lots` miss, and keeps them chunk by chunk."""
    waiting = list(lots.missing)

    def keep(chunk: Tensor, compute: Callable[[], Inversion]) -> Inversion:
        items, waiting[:] = waiting[: len(chunk)], waiting[len(chunk) :]
        return from_rows(lots.keep(items, lambda: to_rows(compute())))

    if waiting:
        invert(images[waiting], keep)
    return from_rows(lots.all())


def keep_without_store(limit: int = IN_MEMORY) -> Keep:
    """Keep per-image weights in memory up to `limit` bytes in all, those of later chunks in nameless files."""
    held = 0

    def keep(_: Tensor, compute: Callable[[], Inversion]) -> Inversion:
        nonlocal held
        fresh = compute()
        held += fresh.deltas.bytes_per_image * len(fresh.pivots)
        if not fresh.deltas or held <= limit:
            return fresh
        entry = pack(to_rows(fresh))
        return from_rows(unpack(Entry(_mapped(entry.tensors), entry.metadata)))

    return keep


def _mapped(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors, mapped from a file that is unlinked at once; its space is freed with the last of them."""
    with TemporaryDirectory(prefix="spruce-audit-", ignore_cleanup_errors=True) as folder:
        file = Path(folder) / "inversions.safetensors"
        save_file({name: value.clone() for name, value in tensors.items()}, file)
        with safe_open(file, framework="pt") as opened:
            return {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 - not a mapping
