"""Writing of StyleGAN2 files as safetensors with the architecture in the metadata, and loading from every layout.

Our own files hold weights under `G.` and `D.`. The other layouts are listed in `audit.generator.files.contents`. If a
file does not state its architecture, it is inferred from the shapes (`audit.generator.files.infer`).
"""

import json
from collections.abc import Mapping
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors.torch import save
from torch import Tensor

from audit.errors import GeneratorError
from audit.generator.files.contents import FORMAT, LEFT_OUT, Contents, contents_of, existing, left_out, refusal
from audit.generator.files.infer import complete, infer_discriminator, infer_generator, mean_code
from audit.generator.protocol import Loaded, LoadedGenerator
from audit.generator.stylegan2.discriminator import Discriminator
from audit.generator.stylegan2.networks import Generator
from audit.storage import shipped
from audit.storage.files import atomic_write_bytes, hash_file
from audit.storage.tensors.file_bytes import Refused, brief

Network = TypeVar("Network", Generator, Discriminator)
LoadedStyleGAN2 = Loaded[Generator]


def save_generator(
    path: Path, generator: Generator, discriminator: Discriminator | None, metadata: dict[str, Any]
) -> None:
    """Write both networks and their architecture to the safetensors file `path`, whole or not at all."""
    tensors = {f"G.{k}": v.detach().cpu().contiguous() for k, v in generator.state_dict().items()}
    header = {"format": FORMAT, "generator": json.dumps(generator.settings)}
    if discriminator is not None:
        tensors |= {f"D.{k}": v.detach().cpu().contiguous() for k, v in discriminator.state_dict().items()}
        header["discriminator"] = json.dumps(discriminator.settings)
    header |= {k: v if isinstance(v, str) else json.dumps(v) for k, v in metadata.items()}
    atomic_write_bytes(path, save(tensors, metadata=header))


def _settings(inferred: dict[str, Any], said: str | None, word: str) -> dict[str, Any]:
    """The architecture that a file says, where it says one; it has to agree with the shapes. Raises Refused."""
    if said is None:
        return inferred
    try:
        settings = json.loads(said)
    except (ValueError, RecursionError):
        settings = None
    if not isinstance(settings, dict):
        raise Refused(f"the architecture of its {word} is no JSON object")
    # What bounds the work of building it is compared before building; widths are, tensor by tensor, afterwards.
    counted = ["resolution", "channels", "c_dim", "z_dim", "w_dim"]
    if word == "generator" or inferred["c_dim"]:
        counted.append("mapping_layers")
    for key in counted:
        if key in inferred and settings.get(key, inferred[key]) != inferred[key]:
            raise Refused(f"it says {key} = {brief(settings[key])} of its {word}, but its tensors have {inferred[key]}")
    group = settings.get("mbstd_group", 1)
    if not isinstance(group, int) or group < 1:
        raise Refused(f"it says mbstd_group = {brief(group)}, and only whole numbers from 1 upwards are possible")
    if not inferred["c_dim"] and word == "discriminator":
        settings.pop("mapping_layers", None)
    return inferred | settings


def _build(kind: type[Network], settings: dict[str, Any], state: dict[str, Tensor]) -> tuple[Network, list[str]]:
    """Make the network that `settings` describe and fill it with `state`; raises Refused naming the first misfit."""
    prefix = "G." if issubclass(kind, Generator) else "D."
    try:
        with torch.device("meta"):  # shapes only: the file's tensors become the network's
            network = kind(**settings)
    except (TypeError, ValueError, RuntimeError, OverflowError, AttributeError, GeneratorError):
        said = ", ".join(f"{key[:40]} = {brief(value)}" for key, value in islice(settings.items(), 12))
        raise Refused(f"the architecture that it says cannot be built ({said[:200]})") from None
    expected = {name: t.shape for name, t in network.state_dict().items()}
    notes = complete(state, expected)
    _check_names(expected, state, prefix)
    for name, value in state.items():
        if not value.is_floating_point():
            raise Refused(
                f"its tensor '{prefix}{name}' holds {str(value.dtype).removeprefix('torch.')}, not real numbers"
            )
        if not torch.isfinite(value).all():
            raise Refused(f"its tensor '{prefix}{name}' holds NaN or infinity")
    network.load_state_dict({name: value.float() for name, value in state.items()}, assign=True)
    return network.eval().requires_grad_(False), notes


def _check_names(expected: Mapping[str, torch.Size], state: Mapping[str, Tensor], prefix: str) -> None:
    for name, shape in expected.items():
        if name not in state:
            raise Refused(f"it does not fit its own architecture: tensor '{prefix}{name}' is missing")
        if state[name].shape != shape:
            raise Refused(
                f"it does not fit its own architecture: tensor '{prefix}{name}' has the shape "
                f"{list(state[name].shape)}, not {list(shape)}"
            )
    extra = sorted(set(state) - set(expected))
    if extra:
        raise Refused(f"it does not fit its own architecture: tensor '{prefix}{extra[0][:100]}' has no place in it")


def networks_from(contents: Contents) -> tuple[Generator, Discriminator | None, tuple[str, ...]]:
    """Build the networks of a file's contents; with what had to be made up, in words. Raises Refused."""
    ours = contents.metadata if contents.format == "spruce-audit" else {}
    state = dict(contents.generator)
    has_mean = "mapping.w_avg" in state
    settings = _settings(infer_generator(state), ours.get("generator"), "generator")
    generator, notes = _build(Generator, settings, state)
    if not has_mean:
        generator.mapping.w_avg.copy_(mean_code(generator.mapping, generator.z_dim, generator.c_dim))
        notes.append("the mean code is that of 10 000 random codes, as the file gives none")
    discriminator: Discriminator | None = None
    if contents.discriminator:
        try:
            discriminator, more = _discriminator(contents, ours.get("discriminator"), generator)
            notes += more
        except Refused as error:
            notes.append(left_out(error))
    return generator, discriminator, (*contents.notes, *notes)


def _discriminator(contents: Contents, said: str | None, generator: Generator) -> tuple[Discriminator, list[str]]:
    """The discriminator of a file and what had to be made up; raises Refused also if it is for other images."""
    state = dict(contents.discriminator)
    inferred = infer_discriminator(state, contents.settings.get("mbstd_group", 4))
    seen, drawn = ((n["resolution"], n["channels"]) for n in (inferred, generator.settings))
    if seen != drawn:
        raise Refused(f"it is for images of {seen} pixels and channels, but the generator draws {drawn}")
    return _build(Discriminator, _settings(inferred, said, "discriminator"), state)


def resolve(path: str | Path) -> Path:
    """Return the file that `shipped:NAME` or a path stands for."""
    return shipped.locate("generators", path)


def load_generator(path: str | Path, device: torch.device | str = "cpu") -> LoadedStyleGAN2:
    """Open `shipped:NAME` or a file of any layout in `audit.generator.files.contents`, running no code that it holds.

    Both networks come in evaluation mode without gradients, in float32. Raises GeneratorError naming file and remedy.
    """
    file = resolve(path)
    try:
        loaded = open_generator(file)
    except Refused as error:
        raise refusal(file, error) from None
    discriminator = loaded.discriminator
    return replace(
        loaded,
        generator=loaded.generator.to(device),
        discriminator=None if discriminator is None else discriminator.to(device),
    )


def open_generator(file: Path) -> LoadedStyleGAN2:
    """Open a file on the CPU; raises Refused with the reason, GeneratorError if there is no file."""
    contents = contents_of(existing(file))
    generator, discriminator, notes = networks_from(contents)
    return Loaded(generator, hash_file(file), discriminator, contents.metadata, contents.format, notes)


def why_no_discriminator(loaded: LoadedGenerator) -> str:
    """Begin the sentence for a discriminator that is needed and not there."""
    reason = next((note for note in loaded.notes if note.startswith(LEFT_OUT)), None)
    if reason is None:
        return "The generator file holds no discriminator"
    return f"The discriminator of the generator file cannot be used ({reason.removeprefix(LEFT_OUT)})"
