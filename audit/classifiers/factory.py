"""Build networks by a user's own code: `package.module:factory` or `path/to/file.py:factory`.

The code finds its neighbours as it does when it is run by itself: the file's folder and that of the configuration are
on the path while it is imported and called, and only then. Modules imported from there are removed from `sys.modules`
afterwards and kept, so that `nets.py` of one folder is never taken for that of another.
"""

import hashlib
import importlib
import importlib.machinery
import importlib.util
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from audit.classifiers.black_box import BlackBox
from audit.classifiers.checkpoint import existing_file
from audit.classifiers.probe import first_line
from audit.errors import ClassifierError
from audit.storage.files import hash_file

_put_aside: dict[tuple[str, ...], dict[str, ModuleType]] = {}
"""Modules imported from each list of folders, by name, so that a file is executed once."""
_sources: dict[ModuleType, str] = {}
"""SHA-256 of the files of a user's modules as they were when they were imported: later changes do not run."""


def _is_neighbour(name: str, folders: tuple[str, ...]) -> bool:
    """Whether an import of `name` finds something in `folders`."""
    top = name.split(".")[0]
    return any((Path(f) / f"{top}.py").is_file() or (Path(f) / top).is_dir() for f in folders)


def _places(module: ModuleType) -> list[Path]:
    own = getattr(module, "__file__", None)
    return [Path(own)] if own else [Path(place) for place in getattr(module, "__path__", ())]


def _note_source(module: ModuleType) -> None:
    own = getattr(module, "__file__", None)
    if own and module not in _sources:
        _sources[module] = hash_file(Path(own))


def _is_installed(name: str, module: ModuleType) -> bool:
    """Whether `module` is of Python, of an installed package or of this program, and no user's own."""
    parts = {part for place in _places(module) for part in place.parts}
    own = name.split(".")[0] in (*sys.stdlib_module_names, "audit", "__main__")
    return own or not parts or bool(parts & {"site-packages", "dist-packages"})


@contextmanager
def _on_the_path(folders: tuple[str, ...]) -> Iterator[None]:
    """Let imports look into `folders` first; afterwards take what came from there out of `sys.modules` and keep it."""
    aside = _put_aside.setdefault(folders, {})
    before, path, writes = dict(sys.modules), list(sys.path), sys.dont_write_bytecode
    # A user's other modules of a neighbour's name give way to it, and come back afterwards.
    hidden = {n: m for n, m in before.items() if _is_neighbour(n, folders) and not _is_installed(n, m)}
    for name in hidden:
        del sys.modules[name]
    sys.modules.update(aside)
    sys.path[:0] = folders
    # A user's folder is read and never written to.
    sys.dont_write_bytecode = True
    importlib.invalidate_caches()
    try:
        yield
    finally:
        for name, module in list(sys.modules.items()):
            inside = any(place.is_relative_to(folder) for place in _places(module) for folder in folders)
            if before.get(name) is not module and inside and _is_neighbour(name, folders):
                aside[name] = module
                _note_source(module)
        for name in aside:
            sys.modules.pop(name, None)
        sys.modules.update(hidden)
        sys.path[:], sys.dont_write_bytecode = path, writes


def _folders_of(text: str, folder: Path | None) -> tuple[str, ...]:
    """The folders in which the code of a factory finds what it imports."""
    place = text.rpartition(":")[0]
    file = Path(place).resolve() if place.endswith(".py") else None
    own = [] if file is None else [file.parent, _root_of(file)]
    return tuple(dict.fromkeys(str(p) for p in [*own, *([] if folder is None else [folder.resolve()])]))


def _root_of(file: Path) -> Path:
    """The folder that holds the package of which `file` is a part; its own folder if it is of none."""
    root = file.parent
    while (root / "__init__.py").is_file() and root != root.parent:
        root = root.parent
    return root


def _import_factory(text: str) -> Callable[..., object]:
    place, _, attribute = text.rpartition(":")
    if not place or not attribute:
        raise ClassifierError(f"Factory '{text}' is not of the form 'package.module:factory' or 'file.py:factory'.")
    try:
        module = _module_of_file(Path(place)) if place.endswith(".py") else importlib.import_module(place)
    except ClassifierError:
        raise
    except (Exception, SystemExit) as error:
        raise ClassifierError(
            f"Module '{place}' of factory '{text}' cannot be imported ({_said(error)}): install it or check the path."
        ) from error
    _note_source(module)
    factory = getattr(module, attribute, None)
    if not callable(factory):
        raise ClassifierError(f"Module '{place}' has no function or class '{attribute}': check factory '{text}'.")
    return factory


def _said(error: BaseException) -> str:
    if isinstance(error, SystemExit):
        return f"it exits with status {error.code}, as a script does that is not kept behind __name__ == '__main__'"
    return first_line(error)


def _module_of_file(file: Path) -> ModuleType:
    existing_file(file, "Factory file")
    resolved = file.resolve()
    root = _root_of(resolved)
    if root != resolved.parent and "." not in resolved.stem:
        return importlib.import_module(".".join((*resolved.parent.relative_to(root).parts, resolved.stem)))
    # Named by its place: two files of one name are two modules, and one file is executed once. It is a part of a
    # package of that name, whose other parts are its neighbours, so that `from .blocks import Block` finds them.
    package = f"_audit_factory_{hashlib.sha256(str(resolved.parent).encode()).hexdigest()[:16]}"
    if package not in sys.modules:
        spec = importlib.machinery.ModuleSpec(package, None, is_package=True)
        spec.submodule_search_locations = [str(resolved.parent)]
        sys.modules[package] = importlib.util.module_from_spec(spec)
    name = f"{package}.{resolved.stem}"
    if name in sys.modules:
        return sys.modules[name]
    file_spec = importlib.util.spec_from_file_location(name, resolved)
    assert file_spec is not None
    assert file_spec.loader is not None
    module = importlib.util.module_from_spec(file_spec)
    sys.modules[name] = module
    try:
        file_spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def code_of_factory(text: str, folder: Path | None) -> str:
    """Return a SHA-256 of the files in which `build_by_factory` found the code of a factory that it has called."""
    found = list(_put_aside.get(_folders_of(text, folder), {}).values())
    place = text.rpartition(":")[0]
    if place in sys.modules:  # of an installed package
        found.append(sys.modules[place])
    return hashlib.sha256("".join(sorted({_sources[one] for one in found if one in _sources})).encode()).hexdigest()


def build_by_factory(text: str, arguments: dict[str, Any], folder: Path | None) -> nn.Module:
    """Call the factory that `text` names; `folder` is the configuration's, None: there is none.

    A function of arrays becomes a black box. Raises ClassifierError with the true first line of whatever the code
    raises, or if it gives neither that nor a torch module.
    """
    with _on_the_path(_folders_of(text, folder)):
        factory = _import_factory(text)
        try:
            network = factory(**arguments)
        except (Exception, SystemExit) as error:
            raise ClassifierError(
                f"Factory '{text}' fails with factory_args {arguments} ({_said(error)}): give the arguments it takes."
            ) from error
    if isinstance(network, nn.Module):
        return network
    if not callable(network):
        raise ClassifierError(
            f"Factory '{text}' returns a {type(network).__name__}: it has to return a torch.nn.Module, or a function "
            "of arrays to be audited as a black box."
        )
    return BlackBox(network)
