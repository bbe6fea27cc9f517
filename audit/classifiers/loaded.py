"""What every way of loading a classifier is asked for and gives, whatever file or library it comes from."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from torch import nn

from audit.classifiers.checkpoint import Checkpoint, read_checkpoint
from audit.classifiers.fitting import Fit, few, fit_weights
from audit.classifiers.input_settings import InputSettings, settings_of_metadata
from audit.config import ClassifierConfig, is_shipped
from audit.errors import ClassifierError
from audit.results import Origin
from audit.storage import shipped


@dataclass(frozen=True)
class Request:
    """A classifier's table of the configuration, and the data that it is to be audited on.

    `given` are the input settings that the configuration gives. `place` is what stands behind the kind of container: a
    folder, a file or a name. `channels` and `class_names` are the data's.
    """

    config: ClassifierConfig
    given: InputSettings
    place: str
    channels: int
    class_names: tuple[str, ...]
    folder: Path | None = None


@dataclass(frozen=True)
class Loaded:
    """A network with its weights, its input settings, and the names to show for its parts.

    `weights` names file and entry, `source` the architecture as well; `notices` are pairs of kind and text.
    """

    network: nn.Module
    settings: InputSettings
    source: str
    weights: str
    by: Origin = "configuration"
    notices: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Container:
    """A kind of file, folder or library that classifiers come in: `KIND:PLACE` in the configuration's `key`.

    `load` raises ClassifierError in one sentence for whatever the user can mend. `own_weights`: it brings them, and a
    checkpoint beside it would have no effect; else it needs one.
    """

    load: Callable[[Request], Loaded]
    key: Literal["file", "architecture"]
    own_weights: bool


def missing_package(extra: str, what: str) -> ClassifierError:
    """Return the error that an optional package is not installed."""
    return ClassifierError(f"{what} needs a package that is not installed: run `pip install 'spruce-audit[{extra}]'`.")


def opened_checkpoint(config: ClassifierConfig, given: InputSettings) -> tuple[Checkpoint, InputSettings]:
    """Read the checkpoint that `config` names, and complete `given` by what its metadata say."""
    assert config.checkpoint is not None
    checkpoint = read_checkpoint(shipped.locate("classifiers", config.checkpoint))
    return checkpoint, given.completed_by(settings_of_metadata(checkpoint.about, f"'{config.checkpoint}'"))


def with_weights(
    config: ClassifierConfig, network: nn.Module, settings: InputSettings, checkpoint: Checkpoint, called: str
) -> Loaded:
    """Copy the weights of `checkpoint`, which `config` names, into `network`, the architecture that is `called` so."""
    assert config.checkpoint is not None
    fit = fit_weights(network, checkpoint, f"'{config.checkpoint}'", weights_key=config.weights_key)
    file = config.checkpoint if is_shipped(config.checkpoint) else Path(config.checkpoint).name
    weights = file if fit.entry is None else f"{file}: {fit.entry}"
    several = bool(fit.others)
    return Loaded(
        network,
        settings,
        f"{called} + {weights if several else file}",
        weights,
        "default" if several and config.weights_key is None else "configuration",
        tuple(_notices_of_weights(fit, file, config.weights_key)),
    )


def _notices_of_weights(fit: Fit, file: str, key: str | None) -> Iterator[tuple[str, str]]:
    top = "(the top of the file)"
    if fit.others and key is None:
        others = [one.rstrip(".") or top for one in fit.others]
        yield (
            "weights-chosen",
            f"'{file}' holds {len(others) + 1} sets of weights that fit: '{fit.entry or top}' was read, and not "
            f"{few(others)}; weights_key chooses another",
        )
    if fit.leftover:
        yield (
            "weights-left-over",
            f"'{file}' also holds {few(fit.leftover)}, for which the network has no name; "
            f"{'it was' if len(fit.leftover) == 1 else 'they were'} passed over",
        )
