"""Registries: the parts of one kind that an audit can be told to use, built in or added by another package.

A package adds a part by an entry point of the group `spruce_audit.<kind>` (Python packaging guide, "Entry points"); a
notebook or a test adds one by `add`. The rest of the code asks the registry only, so a new part changes nothing else.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import metadata
from typing import Generic, TypeVar

from audit.errors import ConfigError

T = TypeVar("T")


@dataclass
class Registry(Generic[T]):
    """Parts of the kind `kind` ("attacks") by name; `noun` ("attack") is what an error calls one of them.

    `builtin` are those of this package. They cannot be replaced, so that a name in a configuration means the same
    on every machine.
    """

    kind: str
    noun: str
    builtin: Mapping[str, T]
    added: dict[str, T] = field(default_factory=dict)

    @property
    def group(self) -> str:
        """Group of entry points in which other packages name their parts."""
        return f"spruce_audit.{self.kind}"

    def names(self) -> list[str]:
        """Return all names, the built-in ones first. Nothing of another package is imported for that."""
        others = [*self.added, *(e.name for e in metadata.entry_points(group=self.group))]
        return list(dict.fromkeys([*self.builtin, *others]))

    def add(self, name: str, part: T) -> None:
        """Make `part` known as `name` in this process. Raises ConfigError if the name is taken."""
        if name in self.names():
            raise ConfigError(f"The name '{name}' of {self.noun} is taken already: choose another one.")
        self.added[name] = part

    def get(self, name: str, key: str) -> T:
        """Return the part called `name`, which the configuration gives in `key`.

        Raises ConfigError if no part has the name, if two packages give it, or if its package cannot be imported.
        """
        if name in self.builtin:
            return self.builtin[name]
        if name in self.added:
            return self.added[name]
        found = metadata.entry_points(group=self.group, name=name)
        if not found:
            raise ConfigError(f"Key '{key}' names '{name}', which is none of: {', '.join(self.names())}.")
        if len(found) > 1:
            packages = ", ".join(sorted(_package(one) for one in found))
            raise ConfigError(
                f"Key '{key}' names '{name}', which several packages add: {packages}. Uninstall all but one."
            )
        (entry,) = found
        try:
            part: T = entry.load()
        except Exception as error:
            raise ConfigError(
                f"Key '{key}' names '{name}' of the package {_package(entry)}, which cannot be imported "
                f"({type(error).__name__}: {error}): mend or uninstall it."
            ) from error
        return part

    def origin(self, name: str) -> str | None:
        """Return which package and version gives the part, for the results; None for one that is built in."""
        if name in self.builtin:
            return None
        if name in self.added:
            return "added in this process"
        return next((_package(one) for one in metadata.entry_points(group=self.group, name=name)), None)


def _package(entry: metadata.EntryPoint) -> str:
    dist = entry.dist
    return entry.value if dist is None else f"{dist.name} {dist.version}"
