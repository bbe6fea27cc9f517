"""Load the classifiers that a configuration names: timm name, shipped weights, TorchScript or export file, factory.

How the network wants its images is taken, in this order, from the configuration, from the checkpoint's own metadata,
from timm's configuration of an architecture used as it stands, and from the data.
"""

import hashlib
import importlib
import importlib.util
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

from audit import embedded
from audit.classifiers.architectures import SMALL_CONVNEXT_NAME, build_architecture
from audit.classifiers.checkpoint import (
    check_finite,
    existing_file,
    fit_weights,
    is_exported,
    is_torchscript,
    read_checkpoint,
)
from audit.classifiers.classifier import Classifier, class_order
from audit.classifiers.mode import preserve_mode
from audit.classifiers.probe import first_line
from audit.classifiers.wants import Wants, wants_of_arguments, wants_of_metadata, wants_of_timm
from audit.config import ClassifierConfig, why_not_pixel_units
from audit.errors import ClassifierError
from audit.results import Origin

__all__ = ["class_order", "load_classifier", "preserve_mode"]


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


def _network_and_wants(
    config: ClassifierConfig, wants: Wants, image_channels: int, num_data_classes: int
) -> tuple[nn.Module, Wants, str, str]:
    """Build the network with its weights.

    Returns it with how it wants its images, what to call its source, and which entry of which file its weights are.
    """
    if config.file is not None:
        network, file = _read_program(config.file), Path(config.file).name
        check_finite(network.state_dict(), f"'{config.file}'")
        return network, wants, file, file
    assert config.checkpoint is not None
    shipped = config.checkpoint.startswith("embedded:")
    path = (
        embedded.path("classifiers", config.checkpoint.removeprefix("embedded:"))
        if shipped
        else Path(config.checkpoint)
    )
    checkpoint = read_checkpoint(path)
    where = f"'{config.checkpoint}'"
    wants = wants.over(wants_of_metadata(checkpoint.about, where))
    args = dict(config.architecture_args)
    wants = wants.over(wants_of_arguments(args).said_by("configuration"))
    architecture = config.architecture
    if config.factory is None and architecture is None:
        architecture = str(checkpoint.about.get("architecture", SMALL_CONVNEXT_NAME))
        theirs: Mapping[str, Any] = checkpoint.about.get("architecture_args") or {}
        wants = wants.over(wants_of_arguments(theirs).said_by("checkpoint"))
        args = {**theirs, **args}
    # Building draws initial weights from the global generator: lend it a copy.
    with torch.random.fork_rng(devices=[]):
        if architecture is None:
            network, called = _build_by_factory(config), Path(str(config.factory)).name
        else:
            wants = wants.over(wants_of_timm(architecture, args, checkpoint))
            classes = num_data_classes if wants.classes is None else len(wants.classes)
            network, called = (
                build_architecture(architecture, classes, wants.channels or image_channels, args),
                architecture,
            )
    fit_weights(network, checkpoint, where)
    file = config.checkpoint if shipped else path.name
    weights = file if checkpoint.entry is None else f"{file}: {checkpoint.entry}"
    return network, wants, f"{called} + {file}", weights


def load_classifier(
    config: ClassifierConfig, image_shape: tuple[int, int, int], class_names: Sequence[str]
) -> Classifier:
    """Load the classifier that `config` names, on the CPU and in evaluation mode, for the data it is to be audited on.

    `image_shape` (C, H, W) and `class_names` are the data's; logits come out in the order of `class_names`. Raises
    ClassifierError naming file, tensor or setting, and ConfigError for shipped weights that do not exist.
    """
    given = Wants(config.classes, config.mean, config.std, config.input_size, config.channels).said_by("configuration")
    network, wants, source, weights = _network_and_wants(config, given, image_shape[0], len(class_names))
    why = why_not_pixel_units(wants.mean, wants.std)
    if why is not None:
        raise ClassifierError(f"The metadata that classifier '{config.name}' came with say {why}.")
    half = [p for p in network.parameters() if p.is_floating_point() and p.dtype != torch.float32]
    if half and not isinstance(network, torch.fx.GraphModule):
        network.float()
    order = None if wants.classes is None else class_order(wants.classes, class_names, config.name)
    height, width = image_shape[1:] if wants.input_size is None else (wants.input_size, wants.input_size)
    origins: dict[str, Origin] = {
        "size": wants.origins.get("input_size", "data"),
        "channels": wants.origins.get("channels", "data"),
        "mean": wants.origins.get("mean", "default"),
        "std": wants.origins.get("std", "default"),
        "classes": wants.origins.get("classes", "data"),
        "weights": "configuration",
    }
    classifier = Classifier(
        network,
        name=config.name,
        class_names=class_names,
        input_shape=(wants.channels or image_shape[0], height, width),
        mean=wants.mean,
        std=wants.std,
        order=order,
        source=source,
        weights=weights,
        origins=origins,
    )
    classifier.eval().prefer_channels_last()
    return classifier
