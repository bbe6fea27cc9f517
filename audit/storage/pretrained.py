"""Pretrained networks from outside: where their files are on this machine, and how they come here.

The networks with their licences, hashes and sources are in `pretrained.toml`. Files are looked for in the folder that
SPRUCE_AUDIT_WEIGHTS names, then in torch hub's checkpoint folder (which follows `TORCH_HOME`), then in installed
packages that carry them. Nothing is downloaded unless `pull` is called.
"""

import importlib.util
import os
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.resources import files
from pathlib import Path, PurePosixPath
from typing import Any

import torch

from audit.errors import WeightsError
from audit.storage.download import Unobtainable, archive_url, download, package_index, place_copy, place_member
from audit.storage.files import hash_file

WEIGHTS_VARIABLE = "SPRUCE_AUDIT_WEIGHTS"
HUB_VARIABLE = "HF_ENDPOINT"
"""Another address of the Hugging Face hub, under the name that its own library reads."""


@dataclass(frozen=True)
class Archive:
    """A distribution on a package index."""

    project: str
    file: str
    sha256: str
    size: int


@dataclass(frozen=True)
class Member:
    """A file inside an archive."""

    archive: Archive
    path: str

    @property
    def installed(self) -> PurePosixPath:
        """Where the file lies below site-packages if the package is installed."""
        path = PurePosixPath(self.path)
        return path.relative_to(path.parts[0]) if self.archive.file.endswith(".tar.gz") else path


@dataclass(frozen=True)
class File:
    """Bytes known by their hash, the name they are kept under, and their sources in order: addresses, an archive."""

    name: str
    sha256: str
    size: int
    urls: tuple[str, ...] = ()
    member: Member | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """Names that the file is recognised by in a folder."""
        return (self.name,) if self.member is None else (self.name, self.member.installed.name)


@dataclass(frozen=True)
class Form:
    """Files that together hold a network; `needs` is the package without which they cannot be read, if there is one.

    `script` says that it is a TorchScript archive.
    """

    files: tuple[File, ...]
    needs: str | None = None
    script: bool = False

    @property
    def readable(self) -> bool:
        """Whether the package that it needs is installed."""
        return self.needs is None or importlib.util.find_spec(self.needs) is not None


@dataclass(frozen=True)
class Network:
    """A pretrained network by its name in results; of its forms the first is preferred."""

    name: str
    use: str
    licence: str
    forms: tuple[Form, ...]

    @property
    def choice(self) -> str:
        """The files that would do, in words."""
        return " or ".join(" with ".join(file.name for file in form.files) for form in self.forms if form.readable)


def _registry(given: dict[str, Any]) -> dict[str, Network]:
    archives = {project: Archive(project, **values) for project, values in given["archives"].items()}

    def file(name: str) -> File:
        values = given["files"][name]
        member = Member(archives[values["archive"]], values["member"]) if "member" in values else None
        return File(name, values["sha256"], values["size"], tuple(values.get("urls", ())), member)

    def network(name: str, values: dict[str, Any]) -> Network:
        forms = [Form(**one | {"files": tuple(map(file, one["files"]))}) for one in values["forms"]]
        return Network(name, values["use"], values["licence"], tuple(forms))

    return {name: network(name, values) for name, values in given["networks"].items()}


NETWORKS = _registry(tomllib.loads((files("audit.storage") / "pretrained.toml").read_text(encoding="utf-8")))


def folders() -> list[Path]:
    """Folders that are searched, in order; `pull` places files in the first."""
    given = os.environ.get(WEIGHTS_VARIABLE)
    return [Path(p) for p in ([given] if given else [])] + [Path(torch.hub.get_dir()) / "checkpoints"]


def network(name: str) -> Network:
    """The network called `name`; raises WeightsError naming those there are."""
    if name not in NETWORKS:
        raise WeightsError(f"No pretrained network is called '{name}'; there are {', '.join(NETWORKS)}.")
    return NETWORKS[name]


def find_file(file: File) -> Path | None:
    """Where `file` lies, by its name only; None if it is nowhere."""
    places = [folder / name for folder in folders() for name in file.names]
    if file.member is not None:
        # The package is located, not imported: only the file inside it is needed.
        package = importlib.util.find_spec(file.member.installed.parts[0])
        inside = (package.submodule_search_locations if package is not None else None) or []
        places += [Path(place).parent / file.member.installed for place in inside]
    return next((place for place in places if place.is_file()), None)


def find(name: str) -> tuple[Form, tuple[Path, ...]] | None:
    """The first form of the network `name` that can be read and whose files are all there, and the files' paths."""
    for form in network(name).forms:
        paths = tuple(path for path in map(find_file, form.files) if path is not None)
        if form.readable and len(paths) == len(form.files):
            return form, paths
    return None


def absence(name: str) -> str:
    """The clause that says what is missing of the network `name`, and the remedy.

    It names no folder of the machine: it goes into results that travel.
    """
    return (
        f"the weights {network(name).choice} are neither in ${WEIGHTS_VARIABLE} nor in torch hub's checkpoint folder: "
        f"run `spruce-audit weights pull {name}`"
    )


def checked(file: File, path: Path) -> str:
    """SHA-256 of `path`, which must be that of `file`; raises WeightsError."""
    digest = hash_file(path)
    if digest != file.sha256:
        raise WeightsError(
            f"The weights '{path}' have SHA-256 {digest[:12]}... where {file.sha256[:12]}... is canonical: remove the "
            "file and run `spruce-audit weights pull`."
        )
    return digest


def pull(names: Sequence[str], given: Path | None = None) -> dict[str, tuple[Path, ...]]:
    """Bring networks to this machine, verified; paths of their files by name. Files that are there are kept.

    With `given` files (or the archives that carry them) come from that folder and the network is not touched. Raises
    WeightsError with every source's reason if no form of a network can be had; then nothing unverified is left.
    """
    archives: set[Path] = set()
    try:
        return {wanted.name: _pull_network(wanted, given, archives) for wanted in [network(name) for name in names]}
    finally:
        for archive in archives:
            archive.unlink(missing_ok=True)


def _pull_network(wanted: Network, given: Path | None, archives: set[Path]) -> tuple[Path, ...]:
    there = find(wanted.name)
    if there is not None and all(hash_file(p) == f.sha256 for f, p in zip(there[0].files, there[1], strict=True)):
        return there[1]
    folder = folders()[0]
    failures = []
    for form in wanted.forms:
        if not form.readable:
            failures.append(f"{form.files[0].name}: only the package {form.needs} reads it")
            continue
        paths = []
        try:
            for file in form.files:
                path = find_file(file)
                if path is None or hash_file(path) != file.sha256:
                    path = folder / file.name
                    _place(file, path, given, archives)
                paths.append(path)
        except Unobtainable as failure:
            failures.append(f"{file.name}: {failure}")
            continue
        return tuple(paths)
    source = "no source gave it" if given is None else f"'{given}' does not hold it"
    raise WeightsError(
        f"The network {wanted.name} is not placed in '{folder}' because {source} ({'; '.join(failures)}): "
        f"put {wanted.choice} there by hand, or give a folder that holds it with --from."
    )


def _place(file: File, target: Path, given: Path | None, archives: set[Path]) -> None:
    """Place `file` as `target`, from the folder `given` or else from its sources in order; raises Unobtainable."""
    if given is not None:
        return _from_folder(file, target, given)
    sources: list[Callable[[], None]] = [
        partial(download, _address(url), target, file.sha256, file.size) for url in file.urls
    ]
    if file.member is not None:
        sources.append(partial(_from_index, file, file.member, target, archives))
    failures = []
    for source in sources:
        try:
            return source()
        except Unobtainable as failure:
            failures.append(str(failure))
    raise Unobtainable("; ".join(failures))


def _address(url: str) -> str:
    hub = os.environ.get(HUB_VARIABLE)
    return url.replace("https://huggingface.co", hub.rstrip("/"), 1) if hub else url


def _from_folder(file: File, target: Path, given: Path) -> None:
    for name in file.names:
        if (given / name).is_file():
            return place_copy(given / name, target, file.sha256, file.size)
    archive = None if file.member is None else file.member.archive.file
    if file.member is not None and archive is not None and (given / archive).is_file():
        return place_member(given / archive, file.member.path, target, file.sha256, file.size)
    raise Unobtainable(f"no {file.name}{f' or {archive}' if archive else ''} is there")


def _from_index(file: File, member: Member, target: Path, archives: set[Path]) -> None:
    """Take `file` out of its archive, which is downloaded beside it and noted in `archives` for further members."""
    archive = member.archive
    place = target.with_name(archive.file)
    if place not in archives:
        address = archive_url(package_index(), archive.project, archive.file)
        download(address, place, archive.sha256, archive.size)
        archives.add(place)
    place_member(place, member.path, target, file.sha256, file.size)


def verify(names: Sequence[str] = ()) -> dict[str, tuple[Path, ...] | None]:
    """Hash the files of `names` again, or of all networks: their paths, None where a network is absent.

    Raises WeightsError for a file that is not the registered one, and for an absent network that was named.
    """
    found: dict[str, tuple[Path, ...] | None] = {}
    for name in names or NETWORKS:
        there = find(name)
        if there is None and names:
            raise WeightsError(f"The network {name} is not there: {absence(name)}.")
        for file, path in zip(there[0].files, there[1], strict=True) if there is not None else ():
            checked(file, path)
        found[name] = None if there is None else there[1]
    return found
