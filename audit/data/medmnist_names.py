"""Sets of MedMNIST by their name: the `.npz` that was downloaded, with the class names that it does not hold itself.

These come from the package `medmnist` (the extra `medmnist`). Nothing is downloaded.
"""

import re
from pathlib import Path

from audit.config import DataConfig
from audit.data.audit_set import AuditSet
from audit.data.listing import nearest
from audit.data.npz import load_npz
from audit.errors import DataError


def load_medmnist(config: DataConfig, seed: int) -> AuditSet:
    """Load the set that `config.path` names, as `breastmnist` or `breastmnist_64`, or its file. Raises DataError."""
    try:
        from medmnist.info import INFO
    except ImportError:
        raise DataError("Names of MedMNIST need its package: run `pip install 'spruce-audit[medmnist]'`.") from None
    given = Path(config.path)
    name = given.name.removesuffix(".npz")
    known = re.sub(r"_(64|128|224)$", "", name)
    if known not in INFO:
        raise DataError(f"MedMNIST has no set '{known}', which data.path names: {nearest(known, list(INFO))}")
    file = given if given.is_file() else Path.home() / ".medmnist" / f"{name}.npz"
    if not file.is_file():
        raise DataError(f"MedMNIST's '{name}' is neither '{given}' nor '{file}': download {name}.npz to one of them.")
    names = tuple(text for _, text in sorted(INFO[known]["label"].items(), key=lambda item: int(item[0])))
    return load_npz(config.model_copy(update={"path": str(file), "classes": config.classes or names}), seed)
