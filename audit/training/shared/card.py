"""Write trained weights, and beside them a card: data, seed, steps, scores, time and versions, as JSON."""

import hashlib
import json
from pathlib import Path
from typing import Any

from safetensors.torch import save
from torch import Tensor

from audit.runtime.environment import versions
from audit.storage.files import atomic_write_bytes, atomic_write_text


def _safetensors_bytes(tensors: dict[str, Tensor], metadata: dict[str, str]) -> bytes:
    """Serialise with the metadata in sorted order: the library's own order is random, and so would be the hash."""
    content = save({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, metadata=metadata)
    start = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:start])
    header["__metadata__"] = dict(sorted(metadata.items()))
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # tensors start at a multiple of 8 bytes
    return len(text).to_bytes(8, "little") + text + content[start:]


def save_weights(tensors: dict[str, Tensor], metadata: dict[str, str], path: Path) -> str:
    """Write a safetensors file in one move, so that a kill leaves the old one or the new one; returns its SHA-256."""
    content = _safetensors_bytes(tensors, metadata)
    atomic_write_bytes(path, content)
    return hashlib.sha256(content).hexdigest()


def write_card(weights: Path, content: dict[str, Any]) -> Path:
    """Write `content` with the versions as the JSON card beside `weights`; returns the card's path."""
    path = weights.with_suffix(".json")
    atomic_write_text(path, json.dumps({**content, "versions": versions()}, indent=2, allow_nan=False) + "\n")
    return path
