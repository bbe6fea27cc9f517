"""`hf-hub:ORG/NAME` and `timm:NAME.TAG`: a timm model with the weights that a hub holds, from the local cache.

timm's own loader is used, so that what is cached already is found without a network: `HF_HUB_OFFLINE=1` makes that
certain, and `timm.create_model(..., pretrained=True)` on a machine with a network fills the cache. Pickled weights are
read by torch's `weights_only`, and nothing in them is run.
"""

from typing import Any

import timm
import torch

from audit.classifiers.architectures import FORBIDDEN_ARGS
from audit.classifiers.input_settings import InputSettings
from audit.classifiers.loaded import Loaded, Request
from audit.classifiers.probe import first_line
from audit.config import container_of
from audit.errors import ClassifierError
from audit.runtime.memory import out_of_memory


def _timms_name(request: Request) -> str:
    kind, place = container_of(request.config.architecture) or ("", "")
    if kind == "hf-hub":
        return f"hf-hub:{place}"
    if not timm.is_model(place.split(".")[0]):
        raise ClassifierError(f"Architecture 'timm:{place}' is not known to timm: write timm:NAME or timm:NAME.TAG.")
    return place


def _settings(network: Any) -> InputSettings:
    """Return what the weights' own configuration says of their input and classes."""
    about = network.pretrained_cfg
    names = about.get("label_names")
    channels, side = about["input_size"][0], about["input_size"][-1]
    return InputSettings(
        classes=None if not names or len(names) != network.num_classes else tuple(str(name) for name in names),
        mean=tuple(about["mean"]),
        std=tuple(about["std"]),
        input_size=side,
        channels=channels,
    ).with_origin("container")


def load(request: Request) -> Loaded:
    """Load the model and its weights from the cache, or the hub where it can be reached; raises ClassifierError."""
    name, args = _timms_name(request), dict(request.config.architecture_args)
    refused = [key for key in FORBIDDEN_ARGS if key in args]
    if refused:
        raise ClassifierError(f"architecture_args may not hold '{refused[0]}': weights come with the model.")
    try:
        with torch.random.fork_rng(devices=[]):
            network = timm.create_model(name, pretrained=True, **args)
    except Exception as error:
        if out_of_memory(error):
            raise
        raise ClassifierError(
            f"The weights of '{request.config.architecture}' are not in the local cache, or the hub that holds them "
            f"cannot be reached ({first_line(error)}): fetch them once by timm.create_model('{name}', pretrained=True) "
            "on a machine with a network, or give architecture and checkpoint."
        ) from error
    called = f"{request.config.architecture}"
    return Loaded(network, request.given.completed_by(_settings(network)), called, called)
