"""Files of an audit and of trainings, read with their relative paths made absolute; and back, for the results."""

import logging
import os
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from audit.config.classifiers import ClassifierConfig
from audit.config.data import DataConfig, Training
from audit.config.defaults import Effort
from audit.config.places import container_of, embedding_path, note_on_spelling, resolve_path
from audit.config.reading import read_config
from audit.config.section import Section
from audit.config.whole import AuditConfig

S = TypeVar("S", bound=Section)
T = TypeVar("T", bound=Training)


def load_training(
    model: type[T], path: str | Path, *files: str, names: tuple[str, ...] = (), embeddings: tuple[str, ...] = ()
) -> T:
    """Read a training's TOML file as `model`; `data.path` and the keys `files` are made absolute against its folder.

    Values among `names` are no files and stay, and so do the words in the keys `embeddings`. Raises ConfigError.
    """
    config = read_config(model, path)
    base = Path(path).resolve().parent
    resolved: dict[str, Any] = {"data": _with_absolute_paths(config.data, ("path", *_mask_folder(config.data)), base)}
    given = {key: getattr(config, key) for key in files}
    resolved |= {k: resolve_path(v, base) for k, v in given.items() if v is not None and v not in names}
    resolved |= {k: embedding_path(getattr(config, k), base) for k in embeddings}
    if (note := note_on_spelling(*given.values())) is not None:
        logging.getLogger(__name__).warning(note)
    return config.model_copy(update=resolved)


def load_config(path: str | Path, effort: Effort | None = None) -> AuditConfig:
    """Read an audit's TOML file; its relative paths are made absolute. Raises ConfigError.

    An `effort` comes before the file's.
    """
    changes = {} if effort is None else {"effort": effort}
    return resolve_paths(read_config(AuditConfig, path, **changes), Path(path).resolve().parent)


def _with_absolute_paths(section: S, keys: tuple[str, ...], base: Path) -> S:
    given = {key: getattr(section, key) for key in keys}
    return section.model_copy(update={key: resolve_path(v, base) for key, v in given.items() if v is not None})


def _mask_folder(data: DataConfig) -> tuple[str, ...]:
    return () if data.mask_arrays else ("masks",)


def _with_place(one: ClassifierConfig, base: Path) -> ClassifierConfig:
    """Make `file` absolute; a kind of container stays before it."""
    contained = container_of(one.file)
    if contained is None:
        return _with_absolute_paths(one, ("file",), base)
    kind, place = contained
    return one.model_copy(update={"file": f"{kind}:{resolve_path(place, base)}"})


def resolve_paths(config: AuditConfig, base: Path) -> AuditConfig:
    """Return `config` with every relative path made absolute against the folder `base`."""
    fix = partial(_with_absolute_paths, base=base)
    return config.model_copy(
        update={
            "data": fix(config.data, ("path", "shift", *_mask_folder(config.data))),
            "generator": None if config.generator is None else fix(config.generator, ("path",)),
            "inversion": fix(config.inversion, ("encoder",)),
            "reliance": None
            if config.reliance is None
            else config.reliance.model_copy(
                update={"tokens": tuple(fix(token, ("path",)) for token in config.reliance.tokens)}
            ),
            "metrics": config.metrics.model_copy(
                update={k: embedding_path(getattr(config.metrics, k), base) for k in ("embedding", "perceptual")}
            ),
            **{
                table: tuple(_with_place(fix(one, ("checkpoint", "factory")), base) for one in getattr(config, table))
                for table in ("classifiers", "judge_checkpoints")
            },
        }
    )


def recorded(config: AuditConfig, base: Path) -> dict[str, Any]:
    """Plain JSON of `config` for the results: paths relative to the folder `base`, so that no machine's own show."""

    def relative(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: relative(v) for k, v in value.items()}
        if isinstance(value, list):
            return [relative(v) for v in value]
        if isinstance(value, str) and Path(value).is_absolute():
            return Path(os.path.relpath(value, base)).as_posix()
        if isinstance(value, str) and (contained := container_of(value)) is not None:
            return f"{contained[0]}:{relative(contained[1])}"
        return value

    return dict(relative(config.model_dump(mode="json")))
