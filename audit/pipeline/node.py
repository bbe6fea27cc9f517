"""A process that computes parts of an audit: what it is told, and what it sets up once."""

import logging
import platform
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

from audit.classifiers.classifier import Classifier
from audit.config import AuditConfig, Section, container_of
from audit.errors import AuditError, ConfigError
from audit.inversion.encoder import encoder_beside
from audit.pipeline.context import Context
from audit.pipeline.divided import Order, Site
from audit.pipeline.images import listed
from audit.pipeline.models import load_model
from audit.pipeline.networks import Networks, load_networks
from audit.runtime.engine import Placed
from audit.runtime.environment import Stopwatch, choose_device
from audit.runtime.memory import limited
from audit.storage.cache import Store

T = TypeVar("T")
S = TypeVar("S", bound=Section)

LONGEST_PATH = 1024
"""Characters of a text above which it is no path."""


class Unreachable(ConfigError):
    """A process that computes parts cannot read what the audit reads."""


@dataclass(frozen=True)
class Plan:
    """What a process sets its site up from; `run` tells audits apart. `files` hold weights, by their paths."""

    run: str
    config: AuditConfig = field(compare=False)
    base: Path = field(compare=False)
    files: Mapping[str, Placed] = field(compare=False, default_factory=dict)


@lru_cache(maxsize=1)
def plan(context: Context) -> Plan:
    """Return the plan of an audit, the weights of its networks placed where the engine hands them out."""
    config, engine = context.config, context.engine
    assert engine is not None
    if config.generator is not None and config.inversion.encoder is None:
        beside = {"encoder": encoder_beside(config.generator.path)}
        config = config.model_copy(update={"inversion": config.inversion.model_copy(update=beside)})
    placed = {}
    for name in _places(config.model_dump(mode="json", exclude={"data"})):
        if (context.base / name).is_file() and (handed := engine.place(context.base / name)) is not None:
            placed[name] = handed
    return Plan(context.run, config, context.base, placed)


def _places(value: Any) -> set[str]:
    """Return all texts in plain `value` that may be the path of a file."""
    if isinstance(value, dict | list | tuple):
        return set().union(*(_places(one) for one in (value.values() if isinstance(value, dict) else value)))
    if isinstance(value, str) and len(value) < LONGEST_PATH:
        contained = container_of(value)
        return {value if contained is None else contained[1]}
    return set()


def set_up_ahead(context: Context) -> None:
    """Have the processes that will compute parts read what they need while this one reads it, too."""
    if context.engine is not None:
        context.engine.begin(partial(_set_up, plan(context)))


def _set_up(plan: Plan) -> None:
    _site(plan)


def computed(plan: Plan, order: Order) -> dict[str, bytes]:
    """Compute a part; returns the files of the entries that it left, by their keys. Raises Unreachable."""
    site = _site(plan)
    with limited(plan.config.max_memory), TemporaryDirectory(prefix="spruce-audit-") as folder:
        store = Store(Path(folder))
        for key, file in order.given.items():
            store.take(key, file)
        try:
            order.part(site.keeping(store))
        except (KeyboardInterrupt, Unreachable):
            raise
        except BaseException:  # of foreign code: the stage itself fails at it, and says so
            logging.getLogger(__name__).debug("A part was not computed.", exc_info=True)
        return {one.key: store.raw(one.key) for one in store.entries() if one.key not in order.given}


@lru_cache(maxsize=1)
def _site(plan: Plan) -> Site:
    """Set up, once a process, what the parts of an audit are computed with. Raises Unreachable."""
    config = plan.config
    context = Context(config, plan.base, choose_device(_kind(config.device)), None, Stopwatch())
    images, _, calibration = _reached("the images", partial(listed, context))
    entries = {one.name: one for one in (*config.classifiers, *config.judge_checkpoints)}
    here = _Here(plan)

    @lru_cache(maxsize=1)  # parts come model by model
    def model(name: str) -> Classifier:
        return _reached(f"classifier '{name}'", lambda: load_model(here.of(entries[name]), context, images))

    @lru_cache(maxsize=1)
    def networks() -> Networks | None:
        if config.generator is None:
            return None
        local = {key: here.of(getattr(config, key)) for key in ("generator", "inversion", "metrics")}
        return _reached("the generator", lambda: load_networks(config.model_copy(update=local), images, context.device))

    return Site(context, images, calibration, model, networks)


class _Here:
    """Files of a plan where this process can read them: in their place, or in a folder that ends with the process."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._folder = TemporaryDirectory(prefix="spruce-audit-", ignore_cleanup_errors=True)
        self._written: dict[str, str] = {}

    def of(self, section: S) -> S:
        """Return a table of the configuration with the paths of this process."""
        return type(section).model_validate(self._moved(section.model_dump(exclude_unset=True)))

    def _moved(self, value: Any) -> Any:
        if isinstance(value, dict):
            return {key: self._moved(one) for key, one in value.items()}
        if isinstance(value, list | tuple):
            return [self._moved(one) for one in value]
        if not isinstance(value, str):
            return value
        contained = container_of(value)
        if contained is not None:
            return f"{contained[0]}:{self._path(contained[1])}"
        return self._path(value)

    def _path(self, name: str) -> str:
        if name not in self._plan.files or (self._plan.base / name).is_file():
            return name
        if name not in self._written:
            folder = Path(self._folder.name) / str(len(self._written))
            folder.mkdir()
            file = folder / Path(name).name
            file.write_bytes(self._plan.files[name]())
            self._written[name] = str(file)
        return self._written[name]


def _kind(device: str) -> str:
    """Return `device` without a number: a process sees only the GPU that it is to take."""
    return device.partition(":")[0]


def _reached(what: str, read: Callable[[], T]) -> T:
    try:
        return read()
    except AuditError as error:
        raise Unreachable(f"{what[0].upper()}{what[1:]} cannot be read on node '{platform.node()}': {error}") from None
