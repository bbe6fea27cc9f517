"""Which class a query image is to be changed into: a fixed class, the runner-up, or the nearest decision boundary.

Source: Litsos 2025 §5.1.1, step 1. A misclassified image always goes to its true label. For the others "nearest" climbs
`|softmax(C(G(w))) - Y_c|^2` (eq. 5.1.6) from the pivot in the generator's latent space; the class behind the first
boundary crossed is the target. Where none is crossed within the step limit (a saturated softmax or a black box has no
gradient to climb) the runner-up is taken.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from audit.classifiers.classifier import Classifier
from audit.classifiers.mode import preserve_mode
from audit.config import CounterfactualConfig
from audit.counterfactual.descent import Iterate, Start, descend
from audit.counterfactual.protocol import Inverted
from audit.errors import ConfigError
from audit.generator.held import Held
from audit.generator.protocol import Generator
from audit.runtime.memory import allowed, at_once, in_slices

NOT_EXPLAINED = -1
"""Target of an image that already is, and is seen as, the fixed target class."""


def choose_targets(
    target: str, logits: Tensor, labels: Tensor, class_names: Sequence[str], nearest: Callable[[Tensor], Tensor]
) -> Tensor:
    """Return the target class of every query image, int64 `[N]`; NOT_EXPLAINED where there is nothing to change.

    `target` is a class name, "nearest" or "runner-up"; `logits [N, K]` are the classifier's on the query images.
    `nearest` finds the class behind the nearest boundary from the predicted ones `[N]` (`nearest_targets`); it is
    called where it decides. Raises ConfigError for an unknown class.
    """
    logits, labels = logits.cpu(), labels.cpu()
    predicted = logits.argmax(dim=1)
    second = runner_up(logits)
    if target == "runner-up" or (target == "nearest" and logits.shape[1] == 2):
        chosen = second
    elif target == "nearest":
        chosen = nearest(predicted)
        chosen = torch.where(chosen == NOT_EXPLAINED, second, chosen)
    elif target in class_names:
        index = list(class_names).index(target)
        chosen = torch.where(predicted == index, NOT_EXPLAINED, index)
    else:
        raise ConfigError(
            f"Key 'queries.target' names '{target}', which is not one of the classes: give 'nearest', 'runner-up' or "
            f"one of {', '.join(class_names)}."
        )
    return torch.where(predicted == labels, chosen, labels)


def runner_up(logits: Tensor) -> Tensor:
    """Class with the second largest of `logits [N, K]`, int64 `[N]`."""
    return logits.topk(2, dim=1).indices[:, 1]


def nearest_targets(
    classifier: Classifier, generator: Generator, inversion: Inverted, sources: Tensor, config: CounterfactualConfig
) -> Tensor:
    """Return the first class other than `sources [N]` that gradient ascent from the pivots meets, int64 `[N]`.

    At most `config.steps` steps of `config.lr` spreads of random codes; NOT_EXPLAINED where no boundary was crossed, as
    by every image where the classifier has no gradients.
    """
    if not classifier.differentiable:
        return torch.full_like(sources, NOT_EXPLAINED).cpu()
    device = generator.mean_code.device

    def climb(rows: slice, settings: CounterfactualConfig = config) -> Tensor:
        places = torch.arange(len(sources))[rows]
        deltas = Held({name: delta[places].to(device) for name, delta in inversion.deltas.items()})
        start = inversion.pivots[rows].to(device), deltas
        return _climb(classifier, generator, start, sources[rows].to(device), settings).cpu()

    once = config.model_copy(update={"steps": 1})
    with preserve_mode(classifier):
        wanted = min(config.batch_size, len(sources))
        most = at_once(wanted, lambda: climb(slice(1), once), device, allowed(device))
        return torch.cat([*in_slices(len(sources), most, climb), sources[:0].cpu()])


def _climb(
    classifier: Classifier, generator: Generator, start: Start, sources: Tensor, config: CounterfactualConfig
) -> Tensor:
    found = torch.full_like(sources, NOT_EXPLAINED)

    def likeness(iterate: Iterate) -> Tensor:
        probabilities = iterate.logits.softmax(dim=1)
        own = one_hot(sources[iterate.rows], probabilities.shape[1]).to(probabilities)
        return -(probabilities - own).square().sum(dim=1)

    def crossed(iterate: Iterate) -> Tensor:
        decision = iterate.logits.argmax(dim=1)
        across = decision != sources[iterate.rows]
        found[iterate.rows] = torch.where(across, decision, NOT_EXPLAINED)
        return across

    descend(classifier, generator, start, config, likeness, crossed, schedule=lambda step, steps: 1.0)
    return found
