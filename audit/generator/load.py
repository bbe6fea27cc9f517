"""Generator checkpoints on disk: safetensors with weights under `G.` and `D.` and the architecture in the metadata."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from audit.embedded import path as embedded_path
from audit.errors import GeneratorError
from audit.generator.networks import Discriminator, Generator
from audit.store import atomic_write_bytes, hash_file

FORMAT = "spruce-audit generator 1"


@dataclass(frozen=True)
class LoadedGenerator:
    """A generator ready to draw, its discriminator where the file holds one, and where it came from."""

    generator: Generator
    discriminator: Discriminator | None
    sha256: str
    metadata: dict[str, str]


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


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    if not path.is_file():
        raise GeneratorError(f"Generator file '{path}' does not exist: check generator.path.")
    try:
        with safe_open(path, framework="pt") as file:
            return {k: file.get_tensor(k) for k in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise GeneratorError(
            f"Generator file '{path}' cannot be read as safetensors ({error}): "
            "train one with `spruce-audit train generator` or copy the file again."
        ) from None


def _build(
    kind: type[Generator] | type[Discriminator], key: str, prefix: str, header: dict[str, str],
    tensors: dict[str, Tensor], path: Path,
) -> nn.Module:  # fmt: skip
    try:
        network = kind(**json.loads(header[key]))
    except (KeyError, TypeError, json.JSONDecodeError):
        raise GeneratorError(
            f"Generator file '{path}' does not say the architecture of its {key}: "
            "it was not written by `spruce-audit train generator`."
        ) from None
    state = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
    for name, value in state.items():
        if not torch.isfinite(value).all():
            raise GeneratorError(
                f"Tensor '{prefix}{name}' of generator file '{path}' holds NaN or infinity: train again."
            )
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip()
        raise GeneratorError(f"Generator file '{path}' does not fit its own architecture: {reason}") from None
    return network.eval().requires_grad_(False)


def load_generator(path: str | Path, device: torch.device | str = "cpu") -> LoadedGenerator:
    """Open `embedded:NAME` or a safetensors file; raises GeneratorError naming file and remedy."""
    text = str(path)
    file = embedded_path("generators", text.removeprefix("embedded:")) if text.startswith("embedded:") else Path(text)
    tensors, header = _read(file)
    generator = _build(Generator, "generator", "G.", header, tensors, file)
    assert isinstance(generator, Generator)
    discriminator: Discriminator | None = None
    if "discriminator" in header:
        built = _build(Discriminator, "discriminator", "D.", header, tensors, file)
        assert isinstance(built, Discriminator)
        discriminator = built.to(device)
    return LoadedGenerator(generator.to(device), discriminator, hash_file(file), header)


def check_fits(generator: Generator, image_shape: tuple[int, int, int]) -> None:
    """Raise GeneratorError unless the generator draws images of `image_shape` (channels, height, width)."""
    drawn = (generator.channels, generator.resolution, generator.resolution)
    if drawn != tuple(image_shape):
        raise GeneratorError(
            f"The generator draws images of shape {drawn} (channels, height, width) but the data has "
            f"{tuple(image_shape)}: set data.image_size = {generator.resolution} and data.channels = "
            f"{generator.channels}, or train a generator on these data."
        )
