"""`monai:FOLDER`: the classifier of a MONAI bundle - `models/model.pt`, `configs/inference.json` and `metadata.json`.

A bundle's configuration may hold code (`$...`) and may name anything to be called. Neither is run: the network has to
be a class of `monai.networks.nets` with plain arguments, and the weights are read as data.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from audit.classifiers.checkpoint import read_checkpoint
from audit.classifiers.containers.hugging_face import read_json, understood
from audit.classifiers.fitting import fit_weights
from audit.classifiers.input_settings import InputSettings
from audit.classifiers.loaded import Loaded, Request, missing_package
from audit.classifiers.probe import first_line
from audit.errors import ClassifierError

CONFIGS = ("inference", "evaluate", "train")
NETWORKS = ("network_def", "network", "net")
NETS = "monai.networks.nets"
BY_IMAGE = "NormalizeIntensity"
"""Begin of the transform that normalises every image by its own pixels."""


def _settings_file(folder: Path) -> dict[str, Any]:
    """Return the first of the bundle's configurations that describes a network."""
    for name in CONFIGS:
        file = folder / "configs" / f"{name}.json"
        if file.is_file() and any(key in (said := read_json(file)) for key in NETWORKS):
            return said
    raise ClassifierError(
        f"Bundle '{folder}' has no configs/inference.json that describes a network (network_def): give its network by "
        "factory, and models/model.pt as checkpoint."
    )


def _value(value: Any, said: Mapping[str, Any], folder: Path) -> Any:
    """Return a plain value, looked up where it is a reference; raises ClassifierError for code."""
    for _ in range(5):
        if not isinstance(value, str) or not value.startswith(("@", "$", "%")):
            break
        key = value[1:]
        if value.startswith("@") and key in said:
            value = said[key]
            continue
        raise ClassifierError(
            f"Bundle '{folder}' computes an argument of its network ('{value[:60]}'), which is never run: give the "
            "network by factory, and models/model.pt as checkpoint."
        )
    if isinstance(value, list):
        return [_value(one, said, folder) for one in value]
    return {k: _value(v, said, folder) for k, v in value.items()} if isinstance(value, dict) else value


def _build(said: Mapping[str, Any], folder: Path) -> nn.Module:
    try:
        from monai.networks import nets
    except ImportError:
        raise missing_package("monai", f"'monai:{folder.name}'") from None
    tables = [said[key] for key in NETWORKS if isinstance(said.get(key), dict) and "_target_" in said[key]]
    if not tables:
        raise ClassifierError(
            f"Bundle '{folder}' names no class for its network: give it by factory, and models/model.pt as checkpoint."
        )
    target = str(tables[0]["_target_"])
    place, _, name = target.rpartition(".")
    kind = getattr(nets, name, None) if not place or place == NETS or place.startswith(f"{NETS}.") else None
    if not (isinstance(kind, type) and issubclass(kind, nn.Module)):
        raise ClassifierError(
            f"Bundle '{folder}' names '{target[:80]}' as its network, which is no class of {NETS}: give it by factory, "
            "and models/model.pt as checkpoint."
        )
    given = {k: _value(v, said, folder) for k, v in tables[0].items() if not k.startswith("_")}
    if given.get("pretrained"):
        given["pretrained"] = False  # the bundle's weights follow, and others would have to be fetched
    try:
        with torch.random.fork_rng(devices=[]):
            network: nn.Module = kind(**given)
    except Exception as error:
        raise ClassifierError(
            f"The network of bundle '{folder}', {name}, cannot be built ({first_line(error)}): give it by factory, and "
            "models/model.pt as checkpoint."
        ) from error
    return network


def _only(table: Any) -> Mapping[str, Any]:
    """Return the description of the only input or output of `table`; an empty one if there are several or none."""
    found = list(table.values()) if isinstance(table, dict) else []
    return found[0] if len(found) == 1 and isinstance(found[0], dict) else {}


def settings_of_metadata(about: Mapping[str, Any]) -> InputSettings:
    """Return what `metadata.json` says of size, channels, range and classes; raises ValueError for volumes."""
    data = about.get("network_data_format")
    image, answer = (_only(data.get(key)) if isinstance(data, dict) else {} for key in ("inputs", "outputs"))
    shape, channels, limits = image.get("spatial_shape"), image.get("num_channels"), image.get("value_range")
    if isinstance(shape, list) and len(shape) != 2:
        raise ValueError(f"they have {len(shape)} dimensions, and only flat ones are audited")
    square = isinstance(shape, list) and len(set(map(str, shape))) == 1 and isinstance(shape[0], int)
    mean = std = None
    if isinstance(limits, list) and len(limits) == 2 and limits[0] <= 0 < limits[1]:
        width = float(limits[1] - limits[0])
        mean, std = (-float(limits[0]) / width,), (1 / width,)
    names = answer.get("channel_def")
    outputs = [names[str(i)] for i in range(len(names)) if str(i) in names] if isinstance(names, dict) else []
    return InputSettings(
        classes=tuple(map(str, outputs)) if len(outputs) > 1 else None,
        mean=mean,
        std=std,
        input_size=shape[0] if square and isinstance(shape, list) else None,
        channels=channels if channels in (1, 3) else None,
    )


def _transforms(said: Any) -> list[str]:
    """Return the names of everything that a configuration calls, at any depth."""
    inner = list(said.values()) if isinstance(said, dict) else said if isinstance(said, list) else []
    own = [str(said["_target_"]).rpartition(".")[2]] if isinstance(said, dict) and "_target_" in said else []
    return [*own, *(name for one in inner for name in _transforms(one))]


def load(request: Request) -> Loaded:
    """Build the bundle's network and copy its weights; raises ClassifierError."""
    folder = Path(request.place)
    metadata, said = read_json(folder / "configs" / "metadata.json"), _settings_file(folder)
    own = understood(settings_of_metadata, metadata, folder / "configs" / "metadata.json")
    network, file = _build(said, folder), folder / "models" / "model.pt"
    fit = fit_weights(network, read_checkpoint(file), f"'{file}'")
    notices = []
    if any(name.startswith(BY_IMAGE) for name in _transforms(said.get("preprocessing"))):
        notices.append(
            (
                "normalised-by-image",
                f"the bundle's preprocessing normalises every image by its own pixels ({BY_IMAGE}), which mean and std "
                "cannot say, so that it is given other numbers than it was trained on: give the network by a factory "
                "that does so in its forward, and models/model.pt as checkpoint",
            )
        )
    called = f"monai:{folder.name}"
    weights = f"{called}/models/model.pt" + ("" if fit.entry is None else f": {fit.entry}")
    source = f"{type(network).__name__} of {called}"
    return Loaded(network, request.given.completed_by(own), source, weights, notices=tuple(notices))
