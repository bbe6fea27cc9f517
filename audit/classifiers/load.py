"""Load the classifiers that a configuration names: timm name, shipped weights, TorchScript or export file, factory.

Whatever else classifiers come in is in the table of `containers/`.

Each input setting (size, channels, mean, std, classes) is taken from the first source that gives it: the configuration,
the checkpoint's metadata, timm's configuration of an unchanged architecture, the data.
"""

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from audit.classifiers.architectures import SMALL_CONVNEXT_NAME, build_architecture
from audit.classifiers.black_box import BlackBox, is_black_box
from audit.classifiers.bridge import class_order
from audit.classifiers.checkpoint import Checkpoint, existing_file, is_exported, is_torchscript
from audit.classifiers.classifier import Classifier
from audit.classifiers.containers.table import check_code, container, kind_and_place
from audit.classifiers.factory import build_by_factory, code_of_factory
from audit.classifiers.fitting import check_finite, fitting_arguments
from audit.classifiers.input_settings import InputSettings, settings_of_arguments, settings_of_timm
from audit.classifiers.loaded import Loaded, Request, opened_checkpoint, with_weights
from audit.classifiers.notices import notices_of, notices_of_architecture
from audit.classifiers.outputs import AnswerSettings
from audit.classifiers.probe import first_line
from audit.config import ClassifierConfig, is_shipped, why_not_pixel_units
from audit.errors import ClassifierError
from audit.results import Notice, Origin
from audit.runtime.seeds import stage_seed
from audit.storage.files import hash_file


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


def _load_program(config: ClassifierConfig, settings: InputSettings) -> Loaded:
    assert config.file is not None
    network, file = _read_program(config.file), Path(config.file).name
    check_finite(network.state_dict(), f"'{config.file}'")
    return Loaded(network, settings, file, file)


def _load_by_factory_alone(config: ClassifierConfig, settings: InputSettings, folder: Path | None) -> Loaded:
    """Load a network whose factory brings its weights; built twice, as weights drawn at random would go unnoticed."""
    assert config.factory is not None
    built = []
    for draw in ("first", "second"):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(stage_seed(0, f"classifier/{draw}"))
            built.append(build_by_factory(config.factory, config.factory_args, folder))
    one, other = (network.state_dict() for network in built)
    check_finite(one, f"factory '{config.factory}'")
    for name, value in one.items():
        if name not in other or not torch.equal(value, other[name]):
            raise ClassifierError(
                f"Factory '{config.factory}' draws its weights at random (two calls differ in '{name}'): give the "
                "trained ones as 'checkpoint', or load them in the factory."
            )
    return Loaded(built[0], settings, Path(config.factory).name, "from the factory")


def _load_checkpoint(request: Request) -> Loaded:
    config = request.config
    checkpoint, settings = opened_checkpoint(config, request.given)
    args = dict(config.architecture_args)
    settings = settings.completed_by(settings_of_arguments(args).with_origin("configuration"))
    architecture = config.architecture
    if config.factory is None and architecture is None:
        architecture = _architecture_of(checkpoint, config)
        theirs: Mapping[str, Any] = checkpoint.about.get("architecture_args") or {}
        settings = settings.completed_by(settings_of_arguments(theirs).with_origin("checkpoint"))
        args = {**theirs, **args}
    # Building draws initial weights from the global generator: lend it a copy.
    with torch.random.fork_rng(devices=[]):
        if architecture is None:
            assert config.factory is not None
            network = build_by_factory(config.factory, config.factory_args, request.folder)
            if isinstance(network, BlackBox):
                raise ClassifierError(
                    f"Factory '{config.factory}' returns a function of arrays, which has its weights inside: remove "
                    "checkpoint."
                )
            return with_weights(config, network, settings, checkpoint, Path(config.factory).name)
        settings = settings.completed_by(settings_of_timm(architecture, args, checkpoint))
        classes, channels = len(settings.classes or request.class_names), settings.channels or request.channels
        network = build_architecture(architecture, classes, channels, args)
    try:
        loaded = with_weights(config, network, settings, checkpoint, architecture)
        return replace(loaded, notices=(*loaded.notices, *notices_of_architecture(checkpoint, config)))
    except ClassifierError:
        found = fitting_arguments(architecture, classes, channels, args, checkpoint, config.weights_key)
        if found is None:
            raise
        side, said = found["img_size"], ", ".join(f"{key} = {value}" for key, value in found.items())
        raise ClassifierError(
            f"The weights in '{config.checkpoint}' were trained on images of {side} x {side}, and '{architecture}' is "
            f"built for another size: set architecture_args = {{ {said} }}."
        ) from None


def _architecture_of(checkpoint: Checkpoint, config: ClassifierConfig) -> str:
    """Return the architecture that the checkpoint's metadata name, as `spruce-audit train classifier` writes them."""
    assert config.checkpoint is not None
    named = checkpoint.about.get("architecture", SMALL_CONVNEXT_NAME if is_shipped(config.checkpoint) else None)
    if not isinstance(named, str):
        raise ClassifierError(
            f"Checkpoint '{config.checkpoint}' does not say which architecture it belongs to: set architecture (a timm "
            "name) or factory."
        )
    return named


def _content_of(config: ClassifierConfig, network: nn.Module, file: str | None, folder: Path | None) -> str | None:
    """Return a hash of the files that answer, for `Classifier.content`; `file` is what a program was read from."""
    if config.factory is not None:
        # A function of arrays may ask a service or a file that nobody knows of.
        return None if is_black_box(network) else code_of_factory(config.factory, folder)
    return hash_file(Path(file)) if file is not None and Path(file).is_file() else ""


def _limits(config: ClassifierConfig, labels: Sequence[str]) -> tuple[float, ...]:
    """Return the log-odds of the threshold of each of the `labels`; raises ClassifierError for a name that is none."""
    given = config.threshold
    of_label = given if isinstance(given, dict) else dict.fromkeys(labels, 0.5 if given is None else given)
    for name in of_label:
        if name not in labels:
            raise ClassifierError(
                f"Threshold of classifier '{config.name}' names '{name}', which is no label: {', '.join(labels)}."
            )
    return tuple(math.log(p) - math.log1p(-p) for p in (of_label.get(name, 0.5) for name in labels))


def load_classifier(
    config: ClassifierConfig,
    image_shape: tuple[int, int, int],
    class_names: Sequence[str],
    folder: Path | None = None,
    *,
    independent: bool = False,
) -> Classifier:
    """Load the classifier that `config` names, on the CPU and in evaluation mode, for the data it is to be audited on.

    `image_shape` (C, H, W) and `class_names` are the data's; logits come out in the order of `class_names`. A factory
    finds modules in `folder`, the configuration's. Where the classes are `independent`, an image may have any number of
    them. Raises ClassifierError naming file, tensor or setting, and
    ConfigError for shipped weights that do not exist.
    """
    given = InputSettings(config.classes, config.mean, config.std, config.input_size, config.channels).with_origin(
        "configuration"
    )
    contained = kind_and_place(config)
    request = Request(config, given, contained[1] if contained else "", image_shape[0], tuple(class_names), folder)
    if contained is not None:
        loaded = container(contained[0], config).load(request)
    elif config.file is not None:
        check_code(config)
        loaded = _load_program(config, given)
    elif config.checkpoint is None:
        loaded = _load_by_factory_alone(config, given, folder)
    else:
        loaded = _load_checkpoint(request)
    network, settings = loaded.network, loaded.settings
    why = why_not_pixel_units(settings.mean, settings.std)
    if why is not None:
        raise ClassifierError(f"The metadata that classifier '{config.name}' came with say {why}.")
    half = [p for p in network.parameters() if p.is_floating_point() and p.dtype != torch.float32]
    if half and not isinstance(network, torch.fx.GraphModule):
        network.float()
    threshold = None if independent else config.threshold
    if isinstance(threshold, dict):
        raise ClassifierError(
            f"Classifier '{config.name}' has thresholds of single labels, where every image is of one class: give one "
            "number."
        )
    order = None if settings.classes is None else class_order(settings.classes, class_names, config.name)
    height, width = image_shape[1:] if settings.input_size is None else (settings.input_size, settings.input_size)
    origins: dict[str, Origin] = {
        "size": settings.origins.get("input_size", "data"),
        "channels": settings.origins.get("channels", "data"),
        "mean": settings.origins.get("mean", "default"),
        "std": settings.origins.get("std", "default"),
        "classes": settings.origins.get("classes", "data"),
        "weights": loaded.by,
    }
    classifier = Classifier(
        network,
        name=config.name,
        class_names=class_names,
        input_shape=(settings.channels or image_shape[0], height, width),
        mean=settings.mean,
        std=settings.std,
        order=order,
        left_out=0 if settings.classes is None else len(settings.classes) - len(class_names),
        source=loaded.source,
        weights=loaded.weights,
        origins=origins,
        answer=AnswerSettings(config.output, config.head, config.scale, threshold, config.features, independent),
    )
    classifier.content = _content_of(config, network, contained[1] if contained else config.file, folder)
    classifier.limits = _limits(config, class_names) if independent else ()
    classifier.eval().prefer_channels_last()
    found = (*loaded.notices, *notices_of(classifier, settings, image_shape))
    classifier.notices = tuple(Notice(subject=config.name, kind=kind, text=f"{text}.") for kind, text in found)
    return classifier
