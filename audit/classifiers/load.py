"""Load the classifiers that a configuration names: timm name, shipped weights, TorchScript or export file, factory.

How the network wants its images is taken, in this order, from the configuration, from the checkpoint's own metadata,
from timm's configuration of an architecture used as it stands, and from the data.
"""

import hashlib
import importlib
import importlib.util
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import timm
import torch
from torch import nn

from audit import embedded
from audit.classifiers.architectures import SMALL_CONVNEXT_NAME, build_architecture
from audit.classifiers.checkpoint import (
    Checkpoint,
    check_finite,
    existing_file,
    fit_weights,
    is_exported,
    is_torchscript,
    read_checkpoint,
    strip_prefix,
)
from audit.classifiers.classifier import Classifier
from audit.classifiers.mode import preserve_mode
from audit.classifiers.trace import first_line
from audit.config import ClassifierConfig
from audit.errors import ClassifierError

__all__ = ["load_classifier", "preserve_mode"]

SAME_INPUT_ARGS = frozenset(
    {
        "num_classes",
        "in_chans",
        "img_size",
        "global_pool",
        "drop_rate",
        "drop_path_rate",
        "attn_drop_rate",
        "proj_drop_rate",
    }
)
"""Arguments that leave a timm architecture what its own configuration describes."""


@dataclass(frozen=True)
class Wants:
    """How a network wants its images; None where its source does not say."""

    classes: tuple[str, ...] | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    input_size: int | None = None
    channels: int | None = None

    def over(self, other: "Wants") -> "Wants":
        """Return these wishes, completed by `other` where they are silent."""
        keys = ("classes", "mean", "std", "input_size", "channels")
        return Wants(
            **{key: getattr(self, key) if getattr(self, key) is not None else getattr(other, key) for key in keys}
        )


def _wants_of_metadata(about: dict[str, Any], where: str) -> Wants:
    """Read metadata as ClassifierConfig would: wrong types are the file's fault and said so."""
    try:
        return Wants(
            classes=None if "classes" not in about else tuple(str(c) for c in _list(about["classes"])),
            mean=None if "mean" not in about else tuple(float(v) for v in _list(about["mean"])),
            std=None if "std" not in about else tuple(float(v) for v in _list(about["std"])),
            input_size=None if about.get("input_size") is None else int(about["input_size"]),
            channels=None if about.get("channels") is None else int(about["channels"]),
        )
    except (TypeError, ValueError) as error:
        raise ClassifierError(
            f"The metadata of {where} cannot be read ({error}): write classes, mean and std as JSON lists, "
            "input_size and channels as numbers."
        ) from None


def _list(value: object) -> list[Any]:
    if not isinstance(value, list):
        raise TypeError(f"{value!r} is not a list")
    return value


def _wants_of_timm(architecture: str, args: dict[str, Any], checkpoint: Checkpoint) -> Wants:
    """Input of a timm architecture used as it stands; nothing is known of one whose layout was changed.

    The channels are read off the checkpoint's first convolution where it can be found, because grey networks are often
    trained under the name of an RGB one.
    """
    size = args.get("img_size")
    own = Wants(input_size=size if isinstance(size, int) else None, channels=args.get("in_chans"))
    about = None if architecture == SMALL_CONVNEXT_NAME else timm.models.get_pretrained_cfg(architecture)
    if about is None:
        return own
    if isinstance(about.first_conv, str):
        first = strip_prefix(checkpoint.tensors, {}).get(f"{about.first_conv}.weight")
        if first is not None and first.ndim == 4 and first.shape[1] in (1, 3):
            own = own.over(Wants(channels=first.shape[1]))
    if not set(args) <= SAME_INPUT_ARGS:
        return own
    described = own.over(Wants(input_size=about.input_size[-1], channels=about.input_size[0]))
    if described.channels != len(about.mean):
        return described
    return described.over(Wants(mean=tuple(about.mean), std=tuple(about.std)))


def _import_factory(text: str) -> Callable[..., object]:
    """Import `package.module:factory` or `path/to/file.py:factory`."""
    place, _, attribute = text.rpartition(":")
    if not place or not attribute:
        raise ClassifierError(f"Factory '{text}' is not of the form 'package.module:factory' or 'file.py:factory'.")
    try:
        module = _module_of_file(Path(place)) if place.endswith(".py") else importlib.import_module(place)
    except ClassifierError:
        raise
    except Exception as error:
        raise ClassifierError(
            f"Module '{place}' of factory '{text}' cannot be imported ({first_line(error)}): "
            "install it or check the path."
        ) from error
    factory = getattr(module, attribute, None)
    if not callable(factory):
        raise ClassifierError(f"Module '{place}' has no function or class '{attribute}': check factory '{text}'.")
    return factory


def _module_of_file(file: Path) -> ModuleType:
    existing_file(file, "Factory file")
    # Named by its place: two files of one name are two modules, and one file is executed once.
    name = f"_audit_factory_{hashlib.sha256(str(file.resolve()).encode()).hexdigest()[:16]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _build_by_factory(config: ClassifierConfig) -> nn.Module:
    assert config.factory is not None
    factory = _import_factory(config.factory)
    try:
        network = factory(**config.factory_args)
    except Exception as error:
        raise ClassifierError(
            f"Factory '{config.factory}' fails with factory_args {config.factory_args} ({first_line(error)}): give the "
            "arguments it takes."
        ) from error
    if not isinstance(network, nn.Module):
        raise ClassifierError(
            f"Factory '{config.factory}' returns a {type(network).__name__}: it has to return a torch.nn.Module."
        )
    return network


def _read_program(text: str) -> nn.Module:
    """Load a TorchScript or torch.export file on the CPU."""
    file = existing_file(text, "Classifier file")
    script, exported = is_torchscript(file), is_exported(file)
    if not script and not exported:
        raise ClassifierError(
            f"Classifier file '{file}' is neither a TorchScript nor a torch.export file (or is corrupt): for a state "
            "dict give architecture or factory, and the file as 'checkpoint'."
        )
    try:
        with warnings.catch_warnings():
            # torch.jit.load announces its own retirement; files of that kind are what users have.
            warnings.simplefilter("ignore")
            network: nn.Module = (
                torch.export.load(file).module() if exported else torch.jit.load(str(file), map_location="cpu")
            )
    except Exception as error:
        kind = "torch.export" if exported else "TorchScript"
        raise ClassifierError(
            f"Classifier file '{file}' cannot be loaded as {kind} ({first_line(error)}): "
            "write it again with this torch."
        ) from error
    return network


def class_order(model_classes: Sequence[str], data_classes: Sequence[str], name: str) -> tuple[int, ...]:
    """Return, for each class of the data, its position in the model's output; raises ClassifierError if they differ."""
    unknown = [c for c in model_classes if c not in data_classes]
    missing = [c for c in data_classes if c not in model_classes]
    if unknown or missing or len(model_classes) != len(data_classes):
        differences = [
            *([f"not in the data: {', '.join(unknown)}"] if unknown else []),
            *([f"not in the model: {', '.join(missing)}"] if missing else []),
            *(["a class is named twice"] if not unknown and not missing else []),
        ]
        raise ClassifierError(
            f"Classes of classifier '{name}' ({', '.join(model_classes)}) do not match those of the data "
            f"({', '.join(data_classes)}): {'; '.join(differences)}."
        )
    return tuple(list(model_classes).index(c) for c in data_classes)


def _network_and_wants(
    config: ClassifierConfig, wants: Wants, image_channels: int, num_data_classes: int
) -> tuple[nn.Module, Wants, str]:
    """Build the network with its weights; returns it with how it wants its images and what to call its source."""
    if config.file is not None:
        network = _read_program(config.file)
        check_finite(network.state_dict(), f"'{config.file}'")
        return network, wants, Path(config.file).name
    assert config.checkpoint is not None
    shipped = config.checkpoint.startswith("embedded:")
    path = (
        embedded.path("classifiers", config.checkpoint.removeprefix("embedded:"))
        if shipped
        else Path(config.checkpoint)
    )
    checkpoint = read_checkpoint(path)
    where = f"'{config.checkpoint}'"
    wants = wants.over(_wants_of_metadata(checkpoint.about, where))
    args = dict(config.architecture_args)
    architecture = config.architecture
    if config.factory is None and architecture is None:
        architecture = str(checkpoint.about.get("architecture", SMALL_CONVNEXT_NAME))
        args = {**(checkpoint.about.get("architecture_args") or {}), **args}
    # Building draws initial weights from the global generator: lend it a copy.
    with torch.random.fork_rng(devices=[]):
        if architecture is None:
            network, called = _build_by_factory(config), Path(str(config.factory)).name
        else:
            wants = wants.over(_wants_of_timm(architecture, args, checkpoint))
            classes = num_data_classes if wants.classes is None else len(wants.classes)
            network, called = (
                build_architecture(architecture, classes, wants.channels or image_channels, args),
                architecture,
            )
    fit_weights(network, checkpoint, where)
    return network, wants, f"{called} + {config.checkpoint if shipped else path.name}"


def load_classifier(
    config: ClassifierConfig, image_shape: tuple[int, int, int], class_names: Sequence[str]
) -> Classifier:
    """Load the classifier that `config` names, on the CPU and in evaluation mode, for the data it is to be audited on.

    `image_shape` (C, H, W) and `class_names` are the data's; logits come out in the order of `class_names`. Raises
    ClassifierError naming file, tensor or setting, and ConfigError for shipped weights that do not exist.
    """
    given = Wants(config.classes, config.mean, config.std, config.input_size, config.channels)
    network, wants, source = _network_and_wants(config, given, image_shape[0], len(class_names))
    half = [p for p in network.parameters() if p.is_floating_point() and p.dtype != torch.float32]
    if half and not isinstance(network, torch.fx.GraphModule):
        network.float()
    if not isinstance(network, torch.jit.ScriptModule | torch.fx.GraphModule):
        # Channels last: the same numbers in another order in memory, in which convolutions and poolings on CPUs run up
        # to 1.7 times faster, and no slower on GPUs.
        network = network.to(memory_format=torch.channels_last)
    order = None if wants.classes is None else class_order(wants.classes, class_names, config.name)
    height, width = image_shape[1:] if wants.input_size is None else (wants.input_size, wants.input_size)
    classifier = Classifier(
        network,
        name=config.name,
        class_names=class_names,
        input_shape=(wants.channels or image_shape[0], height, width),
        mean=wants.mean,
        std=wants.std,
        order=order,
        source=source,
    )
    return classifier.eval()
