"""Read pickled torch modules, such as official StyleGAN2-ADA snapshots, without running the code inside them.

A snapshot (`network-snapshot-*.pkl`, and what `legacy.py` makes of TensorFlow's) is a pickled dictionary with the
networks `G`, `D` and `G_ema`; people also pickle or `torch.save` one of them by itself. Every module in it is a
*persistent object*: a call of a reconstruction function with one dictionary `type, version, module_src, class_name,
state`. `module_src` is Python source, which the usual reader executes. Here the pickle is plain data
(`audit.storage.tensors.plain_pickle`), the source is never looked at, and `state` gives tensors by name and the
arguments that the network was made with. An ordinary module is an object whose state has the same entries. Written from
the description of the file format; no code of that project was read.
"""

from dataclasses import dataclass
from itertools import islice
from typing import Any

from audit.storage.tensors.plain_pickle import Call
from audit.storage.tensors.torch_archive import entries_of

RECONSTRUCT = "_reconstruct_persistent_obj"
MAX_SETTINGS = 2_000
MAX_SETTINGS_DEPTH = 6
PARTS = ("_parameters", "_buffers", "_modules")


@dataclass(frozen=True)
class Module:
    """A module of a pickle: its class, what it was made with, its entries, and whether it is persistent."""

    class_name: str
    made_with: Any
    tensors: dict[str, Any]
    children: dict[str, Any]
    persistent: bool

    @property
    def settings(self) -> dict[str, Any]:
        """The arguments that the module was made with, as plain data."""
        settings = plain_settings(self.made_with)
        return settings if isinstance(settings, dict) else {}


def module_of(value: Any) -> Module | None:
    """Read what describes a module; None if `value` describes something else."""
    if not isinstance(value, Call):
        return None
    class_name: Any = value.name[1]
    state, persistent = value.state, False
    if value.name[1] == RECONSTRUCT and len(value.arguments) == 1:
        meta = entries_of(value.arguments[0]) or {}
        class_name, state, persistent = meta.get("class_name"), meta.get("state"), meta.get("type") == "class"
        if not persistent:
            return None
    if isinstance(state, tuple) and state:  # entries, and beside them slots
        state = state[0]
    state = entries_of(state)
    if not state or not any(part in state for part in PARTS):
        return None
    parameters, buffers, children = (entries_of(state.get(part)) or {} for part in PARTS)
    name = class_name[:80] if isinstance(class_name, str) else ""
    return Module(name, state.get("_init_kwargs"), parameters | buffers, children, persistent)


def plain_settings(value: Any) -> Any:
    """Numbers, text, lists and dictionaries below `value`; all else, and what exceeds MAX_SETTINGS, becomes None."""
    left = MAX_SETTINGS

    def plain(value: Any, depth: int) -> Any:
        nonlocal left
        left -= 1
        if left < 0 or depth > MAX_SETTINGS_DEPTH:
            return None
        if value is None or isinstance(value, bool | int | float):
            return value
        if isinstance(value, str):
            return value[:200]
        if isinstance(value, list | tuple):
            return [plain(v, depth + 1) for v in value[:64]]
        entries = entries_of(value)
        if entries is None:
            return None
        return {k[:80]: plain(entries[k], depth + 1) for k in islice(entries, 64)}

    return plain(value, 0)
