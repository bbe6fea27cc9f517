"""Readers of generators: the one that `generator.format` names turns `generator.path` into a generator.

The built-in reader, "auto", opens StyleGAN2 files and recognises their layout by what they hold. Another package adds
a reader by an entry point of the group `spruce_audit.generators`.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace

import torch

from audit.config import GeneratorConfig
from audit.errors import AuditError, GeneratorError
from audit.generator.files.load import load_generator
from audit.generator.protocol import Generator, Loaded, LoadedGenerator
from audit.runtime.registry import Registry
from audit.runtime.seeds import stage_generator

Reader = Callable[[str, torch.device], LoadedGenerator]
"""Takes `generator.path` and the device on which the generator is to draw."""

READERS: Registry[Reader] = Registry("generators", "generator", {"auto": load_generator})


def read_generator(config: GeneratorConfig, device: torch.device) -> LoadedGenerator:
    """Read the generator that `config` names. Raises ConfigError for an unknown format, else GeneratorError."""
    read = READERS.get(config.format, "generator.format")
    if config.format in READERS.builtin:
        return read(config.path, device)
    package = READERS.origin(config.format)
    said = f"Generator '{config.path}' cannot be used by the reader '{config.format}' ({package})"
    try:
        loaded = read(config.path, device)
        fault = next(_faults(loaded), None)
    except AuditError:
        raise
    except Exception as error:
        raise GeneratorError(f"{said}: {type(error).__name__}: {error}") from error
    if fault is not None:
        raise GeneratorError(f"{said}: {fault}")
    return replace(loaded, package=package)


def _faults(loaded: LoadedGenerator) -> Iterator[str]:
    """Say what a reader of another package does not keep to (`audit/generator/protocol.py`)."""
    if not isinstance(loaded, Loaded):
        yield f"it returns {type(loaded).__name__} and not a LoadedGenerator"
    g: Generator = loaded.generator
    codes = g.random_codes(2, stage_generator(0, "trial codes"))
    if codes.shape != (2, g.w_dim):
        yield f"two random codes have the shape {list(codes.shape)} and not {[2, g.w_dim]}"
    if g.mean_code.shape != (g.w_dim,):
        yield f"its mean code has the shape {list(g.mean_code.shape)} and not {[g.w_dim]}"
    with torch.enable_grad():
        ws = codes[:, None].repeat(1, g.num_ws, 1).requires_grad_()
        images = g.draw(ws)
    expected = [2, g.channels, g.resolution, g.resolution]
    if list(images.shape) != expected:
        yield f"two images have the shape {list(images.shape)} and not {expected}"
    if not images.requires_grad:
        yield "its images have no gradient back to their codes, which inversion and search follow"
    if not bool(images.isfinite().all()):
        yield "its images hold NaN or infinity"
