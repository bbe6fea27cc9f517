"""`torchvision:NAME`: a classification model of torchvision, with a checkpoint of one's own."""

import difflib

import torch
from torch import nn
from torchvision import models

from audit.classifiers.input_settings import InputSettings
from audit.classifiers.loaded import Loaded, Request, opened_checkpoint, with_weights
from audit.classifiers.probe import first_line
from audit.errors import ClassifierError


def _names() -> list[str]:
    return models.list_models(module=models)


def _build(name: str, classes: int, args: dict[str, object]) -> nn.Module:
    if name not in _names():
        near = difflib.get_close_matches(name, _names(), n=1, cutoff=0.0)[0]
        raise ClassifierError(f"'torchvision:{name}' is no classification model of torchvision: did you mean '{near}'?")
    if refused := {"weights", "weights_backbone", "progress"} & set(args):
        raise ClassifierError(f"architecture_args may not hold '{min(refused)}': weights come from the checkpoint.")
    try:
        # Building draws initial weights from the global generator: lend it a copy.
        with torch.random.fork_rng(devices=[]):
            network: nn.Module = models.get_model(name, weights=None, **{"num_classes": classes, **args})
    except (TypeError, ValueError, RuntimeError) as error:
        raise ClassifierError(
            f"'torchvision:{name}' cannot be built with architecture_args {args} ({first_line(error)}): give keyword "
            "arguments that torchvision takes for it."
        ) from None
    return network


def _defaults(name: str) -> InputSettings:
    """Return how torchvision's own weights of the model want their images, which others need not."""
    taken = models.get_model_weights(name).DEFAULT.transforms()
    size = taken.crop_size[0]
    return InputSettings(None, tuple(taken.mean), tuple(taken.std), size, 3).with_origin("library")


def load(request: Request) -> Loaded:
    """Build the model for the checkpoint's classes and copy its weights; raises ClassifierError."""
    name, config = request.place, request.config
    checkpoint, settings = opened_checkpoint(config, request.given)
    classes = len(settings.classes or request.class_names)
    network = _build(name, classes, dict(config.architecture_args))
    settings = settings.completed_by(_defaults(name))
    return with_weights(config, network, settings, checkpoint, f"torchvision:{name}")
