"""Checkpoints of trainings: written whole or not at all, read without running code, refused for another configuration.

A checkpoint carries a fingerprint of all that determines its run: settings, images, networks it rests on. What only
says how long the run is stays out of the fingerprint, so that a finished run can be continued.
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch

from audit.errors import ConfigError
from audit.storage.files import atomic_path


def fingerprint(text: str) -> str:
    """Return a short hash that tells whether a checkpoint belongs to a configuration."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def save_checkpoint(path: Path, key: str, state: Mapping[str, Any]) -> None:
    """Write `state` (tensors and plain values) of the configuration `key`; a kill leaves the old file or the new."""
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        try:
            torch.save({**state, "key": key}, file)
        except RuntimeError as error:
            # Where a write fails, torch fails once more, at the end of its archive, and only that error comes out.
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise


def load_checkpoint(path: Path, key: str) -> dict[str, Any] | None:
    """Return the state in `path` with its tensors on the CPU, None where there is no file.

    Raises ConfigError if the file is no checkpoint or was written with another configuration than `key`.
    """
    if not path.is_file():
        return None
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception:  # noqa: BLE001 - damaged bytes fail in whatever way they like
        raise ConfigError(f"'{path}' cannot be read as a checkpoint: name another --out or delete it.") from None
    if not isinstance(state, dict) or state.get("key") != key:
        raise ConfigError(f"'{path}' holds a checkpoint of another configuration: name another --out or delete it.")
    return state


class Resumable:
    """A training's state that `save` and `resume` carry over a kill: named modules, plain values and random streams.

    `_modules` name attributes with a `state_dict` (networks, optimisers), or None; `_plain` those of numbers, lists,
    text and tensors; `_generators` those of random generators.
    """

    _modules: ClassVar[tuple[str, ...]]
    _plain: ClassVar[tuple[str, ...]]
    _generators: ClassVar[tuple[str, ...]] = ("rng",)

    def save(self, path: Path, key: str) -> None:
        """Write everything to the checkpoint `path` of the configuration `key`."""
        modules = {name: getattr(self, name) for name in self._modules}
        state = {name: None if module is None else module.state_dict() for name, module in modules.items()}
        state |= {name: getattr(self, name) for name in self._plain}
        state |= {name: getattr(self, name).get_state() for name in self._generators}
        save_checkpoint(path, key, state)

    def resume(self, path: Path, key: str) -> None:
        """Take everything from the checkpoint `path` if it is there; raises ConfigError as `load_checkpoint` does."""
        state = load_checkpoint(path, key)
        if state is None:
            return
        for name in self._modules:
            if state[name] is not None:
                getattr(self, name).load_state_dict(state[name])
        for name in self._plain:
            setattr(self, name, state[name])
        for name in self._generators:
            getattr(self, name).set_state(state[name])
