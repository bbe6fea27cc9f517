"""What makes a classifier the one that it is: by this, results of earlier audits are known to be its own.

Weights alone do not say what a network does. Beside them stand the kinds and settings of all its modules, the user's
code as far as it is in files (`Classifier.content`), how images are given to it, the versions of the libraries and the
kind of device; and what else there may be shows in its answers to a few random images, of which two digits count:
another number of threads rounds otherwise. The name is no part of it: the same network under another name has the same
numbers. Where nobody knows the code, as behind a function of arrays, nothing is kept.
"""

import hashlib
from weakref import WeakKeyDictionary

import torch
from torch import nn

from audit.classifiers.classifier import Classifier, weights_hash
from audit.classifiers.mode import preserve_mode
from audit.classifiers.probe import same_draws
from audit.runtime.environment import versions
from audit.storage.keys import key_of
from audit.storage.stages import Stages

ASKED = 4
_PLAIN = (bool, int, float, str, tuple, type(None))
_KNOWN: "WeakKeyDictionary[Classifier, str]" = WeakKeyDictionary()


def identity(classifier: Classifier) -> str:
    """Return the hash of all that the answers of `classifier` depend on, its device included."""
    if classifier not in _KNOWN:
        # Those that are not saved (mean, std, order, label) are among them.
        tensors = dict(classifier.named_parameters()) | dict(classifier.named_buffers())
        inputs = {
            "tensors": weights_hash(tensors),
            "weights": classifier.weights_sha256,
            "input": classifier.input.model_dump(mode="json", exclude={"origins", "weights"}),
            "view": [classifier.reversed_channels, classifier.limits, classifier.class_names],
            "answers": _answers(classifier),
            "content": classifier.content,
            "versions": {name: one for name, one in versions().items() if name != "spruce-audit"},
            "device": classifier.mean.device.type,
        }
        _KNOWN[classifier] = key_of("classifier", _code_of(classifier.network), inputs)
    return _KNOWN[classifier]


def stages_of(stages: Stages, classifier: nn.Module) -> Stages:
    """Return the stages of one classifier; how its batches were divided is kept with every result."""
    if stages.store is None or not isinstance(classifier, Classifier):
        return stages
    if classifier.content is None:
        return Stages()
    slices = classifier.slices
    return stages.on(slices, classifier=identity(classifier), max_memory=None if slices is None else slices.max_memory)


@torch.no_grad()
def _answers(classifier: Classifier) -> tuple[str, list[int]]:
    """Return the size of the logits that the classifier gives to random images, and them in parts of it."""
    rng = torch.Generator().manual_seed(0)
    images = torch.rand(ASKED, *classifier.input_shape, generator=rng).to(classifier.mean.device)
    try:
        with preserve_mode(classifier), same_draws(images):
            logits = classifier(images).float()
    except Exception as error:  # noqa: BLE001 - foreign code; the stages say what is wrong with it
        return type(error).__name__, []
    # A network that answers NaN is refused by the stages.
    largest = float(logits.nan_to_num().abs().max().clamp_min(1e-12))
    return f"{largest:.1e}", (50 * logits / largest).nan_to_num().round().int().flatten().tolist()


def _code_of(network: nn.Module) -> str:
    """Return the hash of what the modules of `network` are, and how they are set."""
    digest = hashlib.sha256()
    for name, part in network.named_modules():
        settings = {key: value for key, value in vars(part).items() if isinstance(value, _PLAIN) and key != "training"}
        digest.update(f"{name} {type(part).__qualname__} {sorted(settings.items())}\n".encode())
        if isinstance(part, torch.jit.ScriptModule | torch.fx.GraphModule):
            digest.update(str(part.code).encode())
    return digest.hexdigest()
