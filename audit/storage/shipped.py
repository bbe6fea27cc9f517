"""Find the files of weights that come with the package (`shipped:NAME`)."""

from importlib.resources import files
from pathlib import Path

from audit.config import is_shipped
from audit.errors import ConfigError

KINDS = ("classifiers", "generators", "encoders", "embeddings")


def _folder(kind: str) -> Path:
    return Path(str(files("audit"))) / "assets" / kind


def names(kind: str) -> tuple[str, ...]:
    """Names of the shipped weights of `kind` (one of KINDS)."""
    return tuple(sorted(file.stem for file in _folder(kind).glob("*.safetensors")))


def path(kind: str, name: str) -> Path:
    """Path of the shipped safetensors `name` of `kind`; raises ConfigError naming those there are."""
    if name not in names(kind):
        raise ConfigError(f"No shipped {kind} are called '{name}'; present: {', '.join(names(kind)) or 'none'}.")
    return _folder(kind) / f"{name}.safetensors"


def locate(kind: str, text: str | Path) -> Path:
    """Return the file that `shipped:NAME` or a path stands for; raises ConfigError as `path` does."""
    return path(kind, str(text).partition(":")[2]) if is_shipped(str(text)) else Path(text)
