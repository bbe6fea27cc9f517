"""What a generator file holds, in whichever of the common layouts: its tensors under our names. No code of it runs.

| format         | recognised by                                        | read by                                      |
|----------------|------------------------------------------------------|----------------------------------------------|
| spruce-audit   | safetensors whose metadata name the format           | safetensors                                  |
| safetensors    | any other safetensors in a known layout              | safetensors                                  |
| torch          | `torch.save` of a state dict, checkpoint or module   | `audit.storage.tensors.torch_archive`        |
| rosinality     | the names of that layout, in pSp's and e4e's files,  | `audit.generator.files.rosinality`           |
|                | too                                                  |                                              |
| stylegan2-ada  | persistent objects, pickled or saved by torch        | `audit.storage.tensors.pickled_modules`      |

If the discriminator of a file cannot be used, the generator still can: a note says why the discriminator is left out.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from audit.errors import GeneratorError
from audit.generator.files import rosinality
from audit.storage.tensors.file_bytes import Refused, Window, brief
from audit.storage.tensors.foreign import folder_kind, foreign
from audit.storage.tensors.pickled_modules import Module
from audit.storage.tensors.sources import Source, open_source

FORMAT = "spruce-audit generator 1"
WHOLE_BATCH = 2**16
MAX_TENSORS = 2_000
"""Tensors of one network; the largest have about two hundred."""
MAX_ORIGIN = 20_000
"""Characters that one of our files says of the file it was converted from."""
LEFT_OUT = "the discriminator is left out: "
LR_MULTIPLIER = 0.01
"""Of the mappings here: a layer's weights are stored divided by it (Karras et al. 2019, appendix C)."""
_OURS = ("mapping", "synthesis")
_ROSINALITY = ("style", "input", "conv1", "to_rgb1", "convs", "to_rgbs", "noises")
_MARKS = ("synthesis.b4.const", rosinality.GENERATOR_MARK)
_DISCRIMINATOR_MARKS = ("b4.out.weight", rosinality.DISCRIMINATOR_MARK)
_KNOWN_VALUES: Mapping[str, Mapping[str, Any]] = {
    "generator": {"architecture": "skip", "activation": "lrelu"},
    "discriminator": {"architecture": "resnet", "activation": "lrelu"},
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


def left_out(reason: Refused) -> str:
    """The note for a discriminator that cannot be used."""
    return f"{LEFT_OUT}{reason}"


def existing(path: Path) -> Path:
    """Return `path` if it is a file; raises GeneratorError if there is nothing, Refused if it is something else."""
    if path.is_dir():
        raise folder_kind(path)
    if not path.is_file():
        raise GeneratorError(f"Generator file '{path}' does not exist: check generator.path.")
    return path


def contents_of(path: Path) -> Contents:
    """Open a generator file of any supported format; raises Refused if it is damaged, hostile or foreign."""
    with path.open("rb") as file:
        source = open_source(Window.of(file), path)
        return _Networks(source).contents()


def printable(text: str) -> str:
    """A file's own words may hold control sequences for the terminal: show them, do not send them."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def refusal(path: Path, reason: Exception) -> GeneratorError:
    """The sentence for a file that cannot be used."""
    return GeneratorError(
        f"Generator file '{path}' cannot be used: {printable(str(reason))}; "
        "`spruce-audit generator inspect` shows what can be said of it."
    )


class _Networks:
    """Finds the generator (the averaged one where there are two) and the discriminator, whatever prefix they have."""

    def __init__(self, source: Source) -> None:
        self.source = source
        names = source.names
        found = [(name.removesuffix(mark), mark) for name in names for mark in _MARKS if _ends(name, mark)]
        if not found:
            classes = {module.class_name for module in source.modules.values()}
            raise foreign(names, classes, source.globals) or Refused(
                "it holds no tensors of a StyleGAN2 generator, so that its architecture cannot be told"
            )
        self.prefix, mark = min(found, key=lambda f: ("ema" not in f[0].lower(), len(f[0]), f[0]))
        self.foreign = mark == rosinality.GENERATOR_MARK
        wanted = _DISCRIMINATOR_MARKS[self.foreign]
        prefixes = [name.removesuffix(wanted) for name in names if _ends(name, wanted)]
        # A discriminator without a prefix beside a generator without one could not be told from it.
        self.other = min((p for p in prefixes if p and p != self.prefix), key=lambda p: (len(p), p), default=None)
        self.notes: dict[str, None] = {}

    def contents(self) -> Contents:
        """Read both networks; raises Refused if the generator cannot be used."""
        generator = self._part(self.prefix, _ROSINALITY if self.foreign else _OURS)
        if self.foreign:
            generator = rosinality.translate_generator(generator)
            mean = self._mean()
            if mean is not None:
                generator["mapping.w_avg"] = mean
        self._one_mean(generator)
        module = self.source.modules.get(self.prefix.removesuffix("."))
        official = module is not None and module.persistent
        settings = self._settings("generator", self.prefix)
        generator = _rescaled(generator, settings)
        metadata = self.source.metadata
        if module is not None and official:
            metadata = {"class": module.class_name, "init_kwargs": json.dumps(module.settings)}
        layout = "rosinality" if self.foreign else "stylegan2-ada" if official else self.source.kind
        if metadata.get("format") == FORMAT:
            layout = "spruce-audit"
            self.notes |= dict.fromkeys(_carried(metadata))
        discriminator, said = self._discriminator()
        return Contents(layout, generator, discriminator, metadata, said, tuple(self.notes))

    def _discriminator(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors of the discriminator and its settings; none where there is none or it cannot be used."""
        if self.other is None:
            return {}, {}
        notes = dict(self.notes)
        try:
            settings = self._settings("discriminator", self.other)
            tensors = self._part(self.other, ())
            if self.foreign:
                tensors = rosinality.translate_discriminator(tensors)
            tensors = _rescaled(tensors, settings)
        except Refused as error:
            self.notes = notes | {left_out(error): None}
            return {}, {}
        group: Any = self.source.metadata.get("mbstd_group_size", "")
        if group.isdecimal() and len(group) < 6 and int(group):
            return tensors, {"mbstd_group": int(group)}
        module = self.source.modules.get(self.other.removesuffix("."))
        if module is None or not module.persistent:
            return tensors, {}
        epilogue = settings.get("epilogue_kwargs")
        group = epilogue.get("mbstd_group_size", 4) if isinstance(epilogue, dict) else 4
        # None stands for the whole batch.
        return tensors, {"mbstd_group": group if isinstance(group, int) and 0 < group < WHOLE_BATCH else WHOLE_BATCH}

    def _settings(self, kind: str, prefix: str) -> dict[str, Any]:
        """What the module at `prefix` was made with, once it is known to be what the networks here have."""
        module = self.source.modules.get(prefix.removesuffix("."))
        if module is None:
            return {}
        settings = module.settings
        _check_settings(kind, settings, self.notes)
        mapping: Module | None = self.source.modules.get(f"{prefix}mapping")
        said = settings.get("mapping_kwargs")
        if mapping is not None and not (isinstance(said, dict) and "lr_multiplier" in said):
            multiplier = mapping.settings.get("lr_multiplier", LR_MULTIPLIER)
            settings = settings | {"mapping_kwargs": {"lr_multiplier": multiplier}}
        return settings

    def _part(self, prefix: str, first: tuple[str, ...]) -> dict[str, Tensor]:
        """Tensors below `prefix`, real ones in float32; without a prefix, those whose first part is in `first`."""
        names = [
            name for name in self.source.names
            if name.startswith(prefix) and (prefix or name.split(".", 1)[0] in first)
            and name != f"{prefix}latent_avg"
        ]  # fmt: skip
        if len(names) > MAX_TENSORS:
            raise Refused(f"a network in it has more than the budget of {MAX_TENSORS} tensors")
        return {name.removeprefix(prefix): _real(self.source.read(name)) for name in names}

    def _mean(self) -> Tensor | None:
        """The running mean of w beside the generator: at its own level or at one above, as in pSp's checkpoints."""
        parts = self.prefix.removesuffix(".").split(".")
        levels = [".".join([*parts[:n], "latent_avg"]) for n in range(len(parts), 0, -1)]
        name = next((n for n in (*levels, "latent_avg") if n in self.source.names), None)
        return None if name is None else self.source.read(name)

    def _one_mean(self, generator: dict[str, Tensor]) -> None:
        """Where the mean of w is repeated for every layer (pSp and e4e), take one row, if they are one and the same."""
        mean, affine = generator.get("mapping.w_avg"), generator.get("synthesis.b4.conv1.affine.weight")
        if mean is None or affine is None or affine.ndim != 2 or not affine.shape[1]:
            return
        if mean.numel() % affine.shape[1] or not mean.numel():
            raise Refused(
                f"its mean code has the shape {list(mean.shape)}, and its codes have {affine.shape[1]} numbers"
            )
        rows = mean.float().reshape(-1, affine.shape[1])
        apart = float((rows - rows[:1]).abs().max())
        if apart <= 1e-5 * max(1.0, float(rows.abs().max())):
            generator["mapping.w_avg"] = rows[0].clone()
        elif math.isfinite(apart):
            del generator["mapping.w_avg"]
            self.notes[f"its mean code differs from layer to layer, by up to {apart:.2g}, and is not used"] = None


def _real(tensor: Tensor) -> Tensor:
    # A copy of torch's own lies aligned, as the bytes of a file do not.
    return tensor.to(torch.float32, copy=True) if tensor.is_floating_point() else tensor


def _carried(metadata: Mapping[str, str]) -> list[str]:
    """Notes on the file that one of ours was converted from: they hold of it as well."""
    text = metadata.get("converted_from", "")
    if len(text) > MAX_ORIGIN:
        return []
    try:
        origin = json.loads(text)
    except (ValueError, RecursionError):
        return []
    notes = origin.get("notes") if isinstance(origin, dict) else None
    return [printable(note) for note in notes if isinstance(note, str)] if isinstance(notes, list) else []


def _ends(name: str, mark: str) -> bool:
    return name == mark or name.endswith(f".{mark}")


def _multiplier(settings: Mapping[str, Any]) -> float:
    said = settings.get("mapping_kwargs")
    value = said.get("lr_multiplier", LR_MULTIPLIER) if isinstance(said, dict) else LR_MULTIPLIER
    if isinstance(value, bool) or not isinstance(value, int | float) or not 1e-6 <= value <= 1e6:
        raise Refused(f"its mapping has lr_multiplier = {brief(value)}, and only numbers above 0 are possible")
    return float(value)


def _rescaled(tensors: dict[str, Tensor], settings: Mapping[str, Any]) -> dict[str, Tensor]:
    """The same mapping with its weights stored for the learning-rate multiplier of the networks here.

    A layer computes `multiplier * (W x / sqrt(inputs) + b)`, so that the factor can move into W and b.
    """
    if not any(name.startswith("mapping.fc") for name in tensors):
        return tensors  # nothing is stored with a multiplier
    factor = _multiplier(settings) / LR_MULTIPLIER
    if factor == 1:
        return tensors
    return {n: t * factor if n.startswith("mapping.fc") and t.is_floating_point() else t for n, t in tensors.items()}


def _check_settings(kind: str, settings: Mapping[str, Any], notes: dict[str, None]) -> None:
    """Refuse settings that the networks here do not have; they may stand at any depth of the arguments."""
    for key, value in settings.items():
        known = _KNOWN_VALUES[kind].get(key)
        if known is not None and value != known:
            raise Refused(f"its {kind} has {key} = {brief(value)}, and only {known} is supported")
        if key == "conv_clamp" and value is not None:
            notes[f"activations are not clamped at {brief(value)}, as the original does for half precision"] = None
        if isinstance(value, dict):
            _check_settings(kind, value, notes)
