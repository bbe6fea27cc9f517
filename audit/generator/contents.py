"""What a generator file holds, whichever of the layouts in use it is in: tensors in our names, and nothing executed.

| format | recognised by | read by |
|---|---|---|
| spruce-audit | safetensors whose metadata name the format | safetensors |
| safetensors | any other safetensors in a known layout | safetensors |
| torch | `torch.save` of a state dict or checkpoint in a known layout | `audit.generator.torch_archive` |
| rosinality | the same, in rosinality's layout | `audit.generator.rosinality` |
| stylegan2-ada | pickle of persistent objects | `audit.generator.official_pickle` |
"""

import io
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from audit.errors import GeneratorError
from audit.generator import official_pickle, rosinality
from audit.generator.plain_pickle import Name, Plain, Refused, read_pickle
from audit.generator.torch_archive import (
    CHECKPOINT_GLOBALS,
    MAGIC,
    Archive,
    entries_of,
    read_sequential,
    read_zipped,
    refuse_unknown,
)

FORMAT = "spruce-audit generator 1"
MAX_ENTRIES, MAX_DEPTH = 100_000, 6
WHOLE_BATCH = 2**16
_OURS = ("mapping", "synthesis")
_ROSINALITY = ("style", "input", "conv1", "to_rgb1", "convs", "to_rgbs", "noises")
_MARKS = ("synthesis.b4.const", rosinality.GENERATOR_MARK)
_DISCRIMINATOR_MARKS = ("b4.out.weight", rosinality.DISCRIMINATOR_MARK)
_KNOWN_VALUES: Mapping[str, Mapping[str, tuple[Any, ...]]] = {
    "generator": {"architecture": ("skip",), "activation": ("lrelu",), "lr_multiplier": (0.01,)},
    "discriminator": {"architecture": ("resnet",), "activation": ("lrelu",), "lr_multiplier": (0.01,)},
}
"""Settings of a snapshot that its tensors do not show, with the values that the networks here have."""


@dataclass(frozen=True)
class Contents:
    """Tensors of the generator and (where there is one) the discriminator in our names, and what is said about them."""

    format: str
    generator: dict[str, Tensor]
    discriminator: dict[str, Tensor]
    metadata: dict[str, str] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Pickled:
    """The pickle of a file, before it is judged: its kind, what it describes and the globals it asks for."""

    format: str
    content: Plain
    archive: Archive | None
    size: int

    def refused(self) -> tuple[Name, ...]:
        """Globals that are not on the list of its format."""
        allowed = official_pickle.allowed if self.archive is None else CHECKPOINT_GLOBALS.__contains__
        return tuple(name for name in self.content.globals if not allowed(name))


def open_pickle(path: Path) -> Pickled | None:
    """Read the pickle of a torch or snapshot file as plain data; None if `path` is safetensors. Raises Refused."""
    with path.open("rb") as file:
        start = file.read(9)
    if start[8:] == b"{":
        return None
    if start[:4] == b"PK\x03\x04":
        archive = read_zipped(path.read_bytes())
        return Pickled("torch", archive.content, archive, path.stat().st_size)
    if start[:1] != b"\x80":
        raise Refused("it is neither safetensors, nor a file of torch, nor a StyleGAN2-ADA snapshot")
    data = path.read_bytes()
    source = io.BytesIO(data)
    content = read_pickle(source)
    if content.value == MAGIC:
        archive = read_sequential(data)
        return Pickled("torch", archive.content, archive, len(data))
    if source.tell() != len(data):
        raise Refused("bytes follow the end of its pickle")
    return Pickled("stylegan2-ada", content, None, len(data))


def read_contents(path: Path) -> Contents:
    """Open a generator file of any supported format; raises GeneratorError if it is damaged, hostile or foreign."""
    if not path.is_file():
        raise GeneratorError(f"Generator file '{path}' does not exist: check generator.path.")
    try:
        pickled = open_pickle(path)
        if pickled is None:
            return _from_safetensors(path)
        if pickled.archive is None:
            return _from_snapshot(pickled)
        return _from_archive(pickled, pickled.archive)
    except Refused as error:
        raise refusal(path, error) from None


def printable(text: str) -> str:
    """A file's own words may hold control sequences for the terminal: show them, do not send them."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def refusal(path: Path, reason: Exception) -> GeneratorError:
    """The sentence for a file that cannot be used."""
    return GeneratorError(
        f"Generator file '{path}' cannot be used: {printable(str(reason))}; "
        "`spruce-audit generator inspect` shows what can be said of it."
    )


def _from_safetensors(path: Path) -> Contents:
    try:
        with safe_open(path, framework="pt") as file:
            metadata = dict(file.metadata() or {})
            networks = _pick(list(file.keys()), file.get_tensor)
    except (SafetensorError, OSError) as error:
        raise GeneratorError(
            f"Generator file '{path}' cannot be read as safetensors ({error}): "
            "train one with `spruce-audit train generator` or copy the file again."
        ) from None
    kind = "spruce-audit" if metadata.get("format") == FORMAT else "safetensors"
    group = metadata.get("mbstd_group_size", "")
    return Contents(
        networks.layout or kind, networks.generator, networks.discriminator, metadata,
        {"mbstd_group": int(group)} if group.isdecimal() and len(group) < 6 and int(group) else {},
    )  # fmt: skip


def _from_archive(pickled: Pickled, archive: Archive) -> Contents:
    refuse_unknown(pickled.content.globals, CHECKPOINT_GLOBALS.__contains__)
    described = dict(_leaves(archive))
    networks = _pick(list(described), lambda name: archive.tensors.read(described[name]))
    return Contents(networks.layout or "torch", networks.generator, networks.discriminator)


def _leaves(archive: Archive) -> Iterator[tuple[str, Any]]:
    """Descriptions of tensors in nested dictionaries by dotted name."""
    todo: list[tuple[str, Any, int]] = [("", archive.root, 0)]
    seen = 0
    while todo:
        prefix, value, depth = todo.pop()
        for name, entry in (entries_of(value) or {}).items():
            seen += 1
            if seen > MAX_ENTRIES:
                raise Refused(f"it holds more than {MAX_ENTRIES} entries")
            if archive.tensors.is_tensor(entry):
                yield f"{prefix}{name}"[:300], entry
            elif depth < MAX_DEPTH and entries_of(entry):
                todo.append((f"{prefix}{name}."[:300], entry, depth + 1))


@dataclass(frozen=True)
class _Networks:
    layout: str | None
    generator: dict[str, Tensor]
    discriminator: dict[str, Tensor]


def _pick(names: list[str], read: Callable[[str], Tensor]) -> _Networks:
    """Read the generator (the averaged one where there are two) and the discriminator, whatever prefix they have."""
    found = [(name.removesuffix(mark), mark) for name in names for mark in _MARKS if _ends(name, mark)]
    if not found:
        raise Refused("it holds no tensors of a StyleGAN2 generator, so that its architecture cannot be told")
    prefix, mark = min(found, key=lambda f: ("ema" not in f[0].lower(), len(f[0]), f[0]))
    foreign = mark == rosinality.GENERATOR_MARK
    generator = _part(names, read, prefix, _ROSINALITY if foreign else _OURS)
    wanted = _DISCRIMINATOR_MARKS[foreign]
    prefixes = [name.removesuffix(wanted) for name in names if _ends(name, wanted)]
    # A discriminator without a prefix beside a generator without one could not be told from it.
    other = min((p for p in prefixes if p and p != prefix), key=lambda p: (len(p), p), default=None)
    discriminator = {} if other is None else _part(names, read, other, ())
    if not foreign:
        return _Networks(None, generator, discriminator)
    mean = next((read(name) for name in ("latent_avg", f"{prefix}latent_avg") if name in names), None)
    return _Networks(
        "rosinality",
        rosinality.translate_generator(generator, mean),
        rosinality.translate_discriminator(discriminator),
    )


def _ends(name: str, mark: str) -> bool:
    return name == mark or name.endswith(f".{mark}")


def _part(names: list[str], read: Callable[[str], Tensor], prefix: str, first: tuple[str, ...]) -> dict[str, Tensor]:
    """Tensors below `prefix`; without one, those whose first part is in `first`."""
    inside = (n for n in names if n.startswith(prefix) and (prefix or n.split(".", 1)[0] in first))
    return {n.removeprefix(prefix): read(n) for n in inside if n != f"{prefix}latent_avg"}


def _from_snapshot(pickled: Pickled) -> Contents:
    networks = official_pickle.networks_of(pickled.content, pickled.size)
    generator = networks.get("G_ema") or networks.get("G")
    if generator is None:
        raise Refused("its pickle holds no generator under 'G_ema' or 'G'")
    notes: dict[str, None] = {}
    _check_settings("generator", generator.settings, notes)
    discriminator, settings = networks.get("D"), {}
    if discriminator is not None:
        _check_settings("discriminator", discriminator.settings, notes)
        epilogue = discriminator.settings.get("epilogue_kwargs")
        group = epilogue.get("mbstd_group_size", 4) if isinstance(epilogue, dict) else 4
        # None stands for the whole batch.
        settings["mbstd_group"] = group if isinstance(group, int) and 0 < group < WHOLE_BATCH else WHOLE_BATCH
    said = {"class": generator.class_name, "init_kwargs": json.dumps(generator.settings)}
    return Contents(
        "stylegan2-ada", generator.tensors, {} if discriminator is None else discriminator.tensors, said, settings,
        tuple(notes),
    )  # fmt: skip


def _check_settings(kind: str, settings: Mapping[str, Any], notes: dict[str, None]) -> None:
    """Refuse settings that the networks here do not have; they may stand at any depth of the arguments."""
    for key, value in settings.items():
        known = _KNOWN_VALUES[kind].get(key)
        if known is not None and value not in known:
            raise Refused(f"its {kind} has {key} = {str(value)[:60]}, and only {known[0]} is supported")
        if key == "conv_clamp" and value is not None:
            notes[f"activations are not clamped at {value}, as the original does for half precision"] = None
        if isinstance(value, dict):
            _check_settings(kind, value, notes)
