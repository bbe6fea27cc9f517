"""`xrv:NAME`: a classifier of torchxrayvision, with a local file of its weights.

These networks take grey images from -1024 to 1024 and have one output a finding. Weights of one source leave outputs
without a name; they are left out, and so are those of findings that the data do not have.
"""

import difflib
from typing import Any

import torch
from torch import Tensor, nn

from audit.classifiers.checkpoint import Checkpoint
from audit.classifiers.feature_networks import linear_of
from audit.classifiers.input_settings import InputSettings
from audit.classifiers.loaded import Loaded, Request, missing_package, opened_checkpoint, with_weights
from audit.errors import ClassifierError

RANGE = 1024.0
OPERATING_POINT = "operating_point"
"""Argument of `architecture_args`: whether each output is shifted so that its operating point is at 0."""


def _described(name: str) -> dict[str, Any]:
    """Return labels, thresholds and resolution that torchxrayvision lists for its weights `name`."""
    try:
        from torchxrayvision.models import model_urls
    except ImportError:
        raise missing_package("xrv", f"'xrv:{name}'") from None
    known = [key for key in model_urls if key.startswith(("densenet", "resnet"))]
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.0)[0]
        raise ClassifierError(f"'xrv:{name}' names no weights of torchxrayvision: did you mean '{near}'?")
    found: dict[str, Any] = model_urls[name]
    return found


def _build(name: str, outputs: int) -> nn.Module:
    """Build the network without weights; torchxrayvision's own ResNet is that of torchvision for grey images."""
    from torchvision import models
    from torchxrayvision.models import DenseNet

    with torch.random.fork_rng(devices=[]):
        if name.startswith("densenet"):
            dense: nn.Module = DenseNet(num_classes=outputs)
            return dense
        network: Any = models.get_model(name.split("-")[0], weights=None, num_classes=outputs)
        network.conv1 = nn.Conv2d(1, 64, kernel_size=7, stride=2, padding=3, bias=False)
        return network


def _plain(label: str) -> str:
    return label.replace("_", " ").casefold()


def _kept(labels: list[str], class_names: tuple[str, ...]) -> tuple[list[int], tuple[str, ...]]:
    """Return the outputs to keep, and what they are called: by the data, where it has them, else as the weights do."""
    own = {_plain(name): name for name in class_names}
    named = [i for i, label in enumerate(labels) if label]
    wanted = [i for i in named if _plain(labels[i]) in own]
    if not wanted:
        return named, tuple(labels[i] for i in named)
    return wanted, tuple(own[_plain(labels[i])] for i in wanted)


def _keep_outputs(network: Any, kept: list[int], thresholds: Tensor | None) -> None:
    """Leave the outputs `kept`, shifted so that those with a threshold are 0 at it."""
    name = "classifier" if hasattr(network, "classifier") else "fc"
    final: nn.Linear = getattr(network, name)
    bias = final.bias.detach()
    if thresholds is not None:
        bias = bias - thresholds.logit().nan_to_num(0.0)
    setattr(network, name, linear_of(final.weight[kept], bias[kept]))


def load(request: Request) -> Loaded:
    """Build the network, copy its weights and name its outputs; raises ClassifierError."""
    name, config = request.place, request.config
    about = _described(name)
    args = dict(config.architecture_args)
    shifted = args.pop(OPERATING_POINT, True)
    if args or not isinstance(shifted, bool):
        raise ClassifierError(f"architecture_args of 'xrv:{name}' may hold '{OPERATING_POINT}', true or false, alone.")
    checkpoint, settings = opened_checkpoint(config, request.given)
    labels = [str(label) for label in about["labels"]]
    loaded = with_weights(config, _build(name, len(labels)), settings, _without_thresholds(checkpoint), f"xrv:{name}")
    kept, classes = _kept(labels, request.class_names)
    thresholds = torch.tensor(about["op_threshs"]) if shifted and "op_threshs" in about else None
    _keep_outputs(loaded.network, kept, thresholds)
    side = int(about["input_resolution"])
    own = InputSettings(classes, (0.5,), (0.5 / RANGE,), side, 1).with_origin("container")
    return Loaded(
        loaded.network,
        settings.completed_by(own),
        loaded.source,
        loaded.weights,
        loaded.by,
        (*loaded.notices, *_notices(labels, kept, thresholds is not None)),
    )


def _without_thresholds(checkpoint: Checkpoint) -> Checkpoint:
    """Leave out the thresholds that whole saved models carry; they are listed with the weights' name."""
    stored = {name: one for name, one in checkpoint.stored.items() if name.rsplit(".", 1)[-1] != "op_threshs"}
    return Checkpoint(stored, checkpoint.about, checkpoint.raw_first, checkpoint.unread)


def _notices(labels: list[str], kept: list[int], shifted: bool) -> list[tuple[str, str]]:
    op_norm = (
        "torchxrayvision answers with op_norm, probabilities bent so that each finding's operating point is at 0.5; "
        "the audit takes the logits before it"
    )
    how = (
        "shifted so that the operating point is at 0, which leaves every decision at 0.5 and every ranking as op_norm "
        f"has them, and not the probabilities; architecture_args = {{ {OPERATING_POINT} = false }} leaves them as "
        "trained"
        if shifted
        else "as they were trained, so that 0.5 is not the operating point"
    )
    found = [("operating-point", f"{op_norm}, {how}")]
    left = [label or f"output {i + 1}" for i, label in enumerate(labels) if i not in kept]
    if left:
        found.append(("outputs-left-out", f"outputs that are no class of the data were left out: {', '.join(left)}"))
    return found
