"""The kinds of containers that a classifier may come in, by the word before the colon: `hf:FOLDER`, `xrv:NAME`.

Another package adds a kind by an entry point of the group `spruce_audit.containers`, a `Container`.
"""

from collections.abc import Iterable
from pathlib import Path

from audit.classifiers.containers import hugging_face, monai_bundle, onnx_file, timm_hub, torchvision_model, xray_vision
from audit.classifiers.containers.programs import beyond_arithmetic
from audit.classifiers.loaded import Container
from audit.config import ClassifierConfig, container_of
from audit.errors import ConfigError
from audit.runtime.registry import Registry

ONNX = ".onnx"
"""Suffix of files that need no kind before them."""

CONTAINERS: Registry[Container] = Registry(
    "containers",
    "kind of container",
    {
        "hf": Container(hugging_face.load, "file", own_weights=True),
        "monai": Container(monai_bundle.load, "file", own_weights=True),
        "onnx": Container(onnx_file.load, "file", own_weights=True),
        "torchvision": Container(torchvision_model.load, "architecture", own_weights=False),
        "xrv": Container(xray_vision.load, "architecture", own_weights=False),
        "timm": Container(timm_hub.load, "architecture", own_weights=True),
        "hf-hub": Container(timm_hub.load, "architecture", own_weights=True),
    },
)


def kind_and_place(config: ClassifierConfig) -> tuple[str, str] | None:
    """Return the kind of container that `config` names and what stands behind it; None: it names none."""
    found = container_of(config.file) or container_of(config.architecture)
    if found is None and config.file is not None and config.file.lower().endswith(ONNX):
        return "onnx", config.file
    return found


def container(kind: str, config: ClassifierConfig) -> Container:
    """Return the container of `kind`; raises ConfigError if there is none, or if `config` does not suit it."""
    key = "architecture" if config.file is None else "file"
    found = CONTAINERS.get(kind, f"classifiers.{key}")
    if found.key != key:
        raise ConfigError(
            f"Classifier '{config.name}' names '{kind}:' in {key}: it is a kind for the key '{found.key}', so write "
            f'{found.key} = "{getattr(config, key)}".'
        )
    if found.own_weights and config.checkpoint is not None:
        raise ConfigError(
            f"'checkpoint' of classifier '{config.name}' would have no effect, for '{kind}:' brings its weights: "
            "remove it."
        )
    if not found.own_weights and config.checkpoint is None:
        raise ConfigError(f"Classifier '{config.name}' needs a checkpoint beside its architecture.")
    return found


def check_code(config: ClassifierConfig) -> None:
    """Raise ConfigError where the classifier is a program that does more than compute, and nobody has said it may run.

    Everything else is read as data: no other file can bring code, whatever `allow_code` says.
    """
    if config.file is None or config.allow_code or kind_and_place(config):
        return
    more = beyond_arithmetic(Path(config.file))
    if more is not None:
        raise ConfigError(
            f"Classifier '{config.name}' comes as a program, '{config.file}', with more in it than a network's "
            f"arithmetic: {more}. It could read, change and destroy whatever you can: give its network by architecture "
            "or factory and its weights as checkpoint, or, if you trust whoever made the file, set allow_code = true "
            "(for all classifiers: --allow-code)."
        )


def check_containers(classifiers: Iterable[ClassifierConfig]) -> None:
    """Raise ConfigError where a kind of container is unknown or in a key that it is not for, or as `check_code`."""
    for one in classifiers:
        check_code(one)
        contained = kind_and_place(one)
        if contained is not None:
            container(contained[0], one)
