"""Read classifier weights and fit them to a network, strictly: every name and every shape has to agree.

Two formats: safetensors, whose metadata may say how the network wants its images, and torch state dicts (.pt, .pth),
bare or inside the usual wrappings. Pickled objects other than tensors are never executed.
"""

import json
import pickle
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from audit.classifiers.probe import first_line
from audit.errors import ClassifierError
from audit.tensor_files import OverBudget, check_torch, checked_safetensors

WRAPPINGS = ("state_dict", "model", "model_state_dict", "ema", "state_dict_ema", "model_ema", "net")
"""Keys under which training scripts put the state dict, in the order in which they are tried."""

PREFIXES = ("module.", "_orig_mod.", "model.", "network.", "net.")
"""Prefixes that DataParallel, torch.compile and wrapping modules put before every name."""

JSON_KEYS = ("classes", "mean", "std", "input_size", "channels", "architecture", "architecture_args")
"""Entries of safetensors metadata that are understood; each is JSON."""


@dataclass(frozen=True)
class Checkpoint:
    """Tensors by name, and what the file says about the network (JSON_KEYS; empty for torch state dicts).

    `entry` is the dotted key of the file under which the tensors were found; None: at its top.
    """

    tensors: dict[str, Tensor]
    about: dict[str, Any] = field(default_factory=dict)
    entry: str | None = None


def existing_file(path: str | Path, what: str) -> Path:
    """Return `path` as a Path; raises ClassifierError naming `what` if there is no such file."""
    file = Path(path)
    if not file.is_file():
        raise ClassifierError(f"{what} '{file}' does not exist: check the path.")
    return file


def is_torchscript(file: Path) -> bool:
    """Whether `file` is a TorchScript archive: a zip with code beside its data."""
    return any("/code/" in name or name.endswith("/constants.pkl") for name in _archive_names(file))


def is_exported(file: Path) -> bool:
    """Whether `file` is a torch.export archive, of the present or the first layout."""
    names = _archive_names(file)
    return any("serialized_exported_program" in n or n.endswith("/archive_format") or "/models/" in n for n in names)


def _archive_names(file: Path) -> list[str]:
    try:
        with zipfile.ZipFile(file) as archive:
            return archive.namelist()
    except (zipfile.BadZipFile, OSError):
        return []


def _read_safetensors(file: Path) -> Checkpoint:
    try:
        with safe_open(checked_safetensors(file), framework="pt") as opened:
            tensors = {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118
            metadata = dict(opened.metadata() or {})
    except (SafetensorError, OSError) as error:
        raise ClassifierError(
            f"Checkpoint '{file}' is not a readable safetensors file ({first_line(error)}): copy or write it again."
        ) from None
    about: dict[str, Any] = {}
    for key in JSON_KEYS:
        if key in metadata:
            try:
                about[key] = json.loads(metadata[key])
            except (ValueError, RecursionError):
                # Files of other programs may hold plain text under the same key, such as a timm name.
                about[key] = metadata[key]
    return Checkpoint(tensors, about)


def _unwrap(loaded: object, file: Path) -> Checkpoint:
    content = loaded
    path: list[str] = []
    for _ in range(3):
        if not isinstance(content, Mapping):
            break
        if content and all(isinstance(value, Tensor) for value in content.values()):
            tensors = {str(key): value for key, value in content.items()}
            return Checkpoint(tensors, entry=".".join(path) or None)
        inner = next((key for key in WRAPPINGS if isinstance(content.get(key), Mapping)), None)
        if inner is None:
            break
        content = content[inner]
        path.append(inner)
    raise ClassifierError(
        f"Checkpoint '{file}' holds no state dict (tensors by name, at the top or under one of "
        f"{', '.join(WRAPPINGS)}): save model.state_dict()."
    )


def _read_torch(file: Path) -> Checkpoint:
    try:
        mappable = check_torch(file)
    except OverBudget as error:
        raise ClassifierError(f"Checkpoint '{file}' is not read: {error}; save model.state_dict() again.") from None
    if is_torchscript(file) or is_exported(file):
        kind = "TorchScript" if is_torchscript(file) else "torch.export"
        raise ClassifierError(f"Checkpoint '{file}' is a {kind} file: give it as 'file', without an architecture.")
    try:
        loaded = torch.load(file, map_location="cpu", weights_only=True, mmap=mappable)
    except pickle.UnpicklingError:
        raise ClassifierError(
            f"Checkpoint '{file}' cannot be read as tensors alone (it is corrupt, or holds pickled objects, which are "
            "not executed): save model.state_dict()."
        ) from None
    except Exception as error:  # noqa: BLE001
        # On bytes that are no checkpoint, the reader fails in whatever way they happen to lead it to.
        raise ClassifierError(
            f"Checkpoint '{file}' is corrupt ({first_line(error)}): copy or write it again."
        ) from None
    return _unwrap(loaded, file)


def read_checkpoint(path: str | Path) -> Checkpoint:
    """Read a safetensors file or torch state dict; raises ClassifierError if missing, corrupt or of another kind."""
    file = existing_file(path, "Checkpoint")
    return _read_safetensors(file) if file.suffix == ".safetensors" else _read_torch(file)


def strip_prefix(tensors: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Remove wrappers' prefixes that stand before every name and that the network's own names do not have."""
    out = dict(tensors)
    for _ in range(3):
        prefix = next((p for p in PREFIXES if out and all(key.startswith(p) for key in out)), None)
        if prefix is None or (wanted and all(key.startswith(prefix) for key in wanted)):
            break
        out = {key.removeprefix(prefix): value for key, value in out.items()}
    return out


def check_finite(tensors: Mapping[str, Tensor], where: str) -> None:
    """Raise ClassifierError naming the first tensor of `where` that holds NaN or infinity."""
    for key, value in tensors.items():
        if value.is_floating_point() and not torch.isfinite(value).all():
            bad = int((~torch.isfinite(value)).sum())
            raise ClassifierError(
                f"Tensor '{key}' of {where} holds {bad} NaN or infinite values: train or save it again."
            )


def _few(keys: list[str]) -> str:
    rest = f" and {len(keys) - 3} more" if len(keys) > 3 else ""
    return ", ".join(f"'{key}'" for key in keys[:3]) + rest


def fit_weights(network: nn.Module, checkpoint: Checkpoint, where: str) -> None:
    """Copy the checkpoint's tensors into `network`; raises ClassifierError naming the first name or shape that differs.

    Counters of batch norm that old files lack may be missing; nothing else may.
    """
    wanted = network.state_dict()
    tensors = strip_prefix(checkpoint.tensors, wanted)
    for key, value in wanted.items():
        if key in tensors and tensors[key].shape != value.shape:
            raise ClassifierError(
                f"Tensor '{key}' has shape {list(tensors[key].shape)} in {where} where the network needs "
                f"{list(value.shape)}: check architecture, channels and number of classes."
            )
    missing = [key for key in wanted if key not in tensors and not key.endswith("num_batches_tracked")]
    if missing:
        raise ClassifierError(f"{where} lacks {_few(missing)}: it belongs to another architecture.")
    unexpected = [key for key in tensors if key not in wanted]
    if unexpected:
        raise ClassifierError(
            f"{where} has {_few(unexpected)}, which the network has not: it belongs to another architecture."
        )
    check_finite(tensors, where)
    network.load_state_dict(tensors, strict=False)
