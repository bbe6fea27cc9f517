"""The network a training starts from: random, pretrained by timm, or from weights of an earlier training.

A head for another number of classes is replaced by a random one (transfer learning); everything else must fit.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from torch import nn

from audit.classifiers.architectures import SMALL_CONVNEXT_NAME, build_architecture
from audit.classifiers.checkpoint import read_checkpoint
from audit.classifiers.fitting import fit_weights
from audit.classifiers.probe import first_line
from audit.errors import ConfigError
from audit.runtime.seeds import stage_seed
from audit.storage import shipped
from audit.storage.files import hash_file


@dataclass(frozen=True)
class Initial:
    """A network and, for its card, where its weights come from."""

    network: nn.Module
    source: dict[str, Any]


def build_network(architecture: str, num_classes: int, channels: int, args: dict[str, Any], seed: int) -> nn.Module:
    """Build an architecture with weights drawn from `seed`, global RNG untouched; raises ClassifierError if unknown."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(stage_seed(seed, "train/initialise"))
        return build_architecture(architecture, num_classes, channels, args)


def _pretrained(architecture: str, num_classes: int, channels: int, args: dict[str, Any], seed: int) -> Initial:
    with torch.device("meta"):
        build_architecture(architecture, num_classes, channels, args)  # refuses what no weights could mend
    about = None if architecture == SMALL_CONVNEXT_NAME else timm.models.get_pretrained_cfg(architecture)
    if about is None or not about.has_weights:
        raise ConfigError(
            f"timm has no pretrained weights for '{architecture}': set initial = \"none\" or to the path of weights."
        )
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(stage_seed(seed, "train/initialise"))
            network = timm.create_model(
                architecture, pretrained=True, num_classes=num_classes, in_chans=channels, **args
            )
    except Exception as error:  # noqa: BLE001 - a download can fail in any way
        raise ConfigError(
            f"The pretrained weights of '{architecture}' cannot be loaded ({first_line(error)}): connect this machine, "
            'point HF_HOME to a cache that holds them, or set initial = "none" or to the path of weights.'
        ) from None
    tag = f".{about.tag}" if about.tag else ""
    return Initial(network, {"timm": f"{about.architecture}{tag}"})


def _from_file(network: nn.Module, path: Path) -> Initial:
    about = getattr(network, "pretrained_cfg", None) or {}
    classifier = about.get("classifier") or ()
    heads = tuple(f"{name}." for name in ((classifier,) if isinstance(classifier, str) else classifier))
    replaced = fit_weights(network, read_checkpoint(path), f"'{path.name}'", replaced=heads).kept
    return Initial(network, {"file": path.name, "sha256": hash_file(path), "new_head": bool(replaced)})


def initial_network(
    initial: str, architecture: str, num_classes: int, channels: int, args: dict[str, Any], seed: int
) -> Initial:
    """Build `architecture` with the weights that `initial` names: 'none', 'timm', 'shipped:NAME' or a path.

    What is random depends on `seed` alone. Raises ClassifierError (unknown architecture, file missing or not of this
    architecture) or ConfigError (no pretrained weights, or not to be had here).
    """
    if initial == "timm":
        return _pretrained(architecture, num_classes, channels, args, seed)
    network = build_network(architecture, num_classes, channels, args, seed)
    if initial == "none":
        return Initial(network, {"random": True})
    return _from_file(network, shipped.locate("classifiers", initial))
