"""Checks of a model as it was loaded, on a few images: its gradient against slopes, and torch.compile against eager."""

import copy
import shutil
from collections.abc import Callable

import torch
from torch import Tensor

from audit.classifiers.black_box import REASON, is_black_box
from audit.classifiers.classifier import Classifier
from audit.classifiers.gradients import Exact, Score, compare_slopes
from audit.classifiers.mode import preserve_mode
from audit.classifiers.probe import first_line, same
from audit.classifiers.slices import sparing
from audit.results import LoadingCheck
from audit.runtime.memory import out_of_memory
from audit.runtime.seeds import lent_randomness, stage_generator

IMAGES = 3
GRADIENT, COMPILED = "gradient", "compiled"
DRAWS = "it draws at random, so that two answers to one image differ"
LEADS = "it leads where it says"
ASTRAY = (
    "it does not lead where it says (a rounding, a branch that is cut off, or an estimator in the place of the "
    "derivative), so that attacks and counterfactuals follow a wrong way"
)
MOST_PARAMETERS = 100_000_000
"""A copy in float64 of a larger network would take more than a gigabyte."""
MOST_DIFFERENCE = 1e-3
"""Of the largest logit, that compiled kernels may add up otherwise."""


def _not_tried(name: str, why: str) -> LoadingCheck:
    return LoadingCheck(name=name, passed=None, finding=f"Not tried: {why}.")


def draws_at_random(classifier: Classifier) -> bool:
    """Whether the loader saw that the network answers the same image differently each time."""
    return any(notice.kind == "random-forward" for notice in classifier.notices)


def _margin(classifier: Classifier, best: Tensor) -> Score:
    """The lead of the best class over the second as they were at first, `best` `[N, 2]`: what attacks work against."""

    def score(images: Tensor) -> Tensor:
        chosen = classifier(images).gather(1, best[: len(images)])
        return chosen[:, 0] - chosen[:, 1]

    return score


def _precise(classifier: Classifier, images: Tensor, logits: Tensor) -> Classifier | None:
    """Return a copy of `classifier` that computes in float64; None where there is none that answers alike."""
    if classifier.is_program or images.device.type == "mps":
        return None
    if sum(p.numel() for p in classifier.parameters()) > MOST_PARAMETERS:
        return None
    try:
        found = copy.deepcopy(classifier).double()
        found.slices = None
        answered = found(images.double())
    except Exception:  # noqa: BLE001 - foreign code that insists on float32, or cannot be copied
        return None
    return found if answered.dtype == torch.float64 and same(answered.to(logits), logits) else None


def gradient_check(classifier: Classifier, images: Tensor) -> LoadingCheck:
    """Hold the gradient at the first of `images` `[N, C, H, W]` in [0, 1] against central differences.

    They are taken in a float64 copy of the network where one can be had, and else in the network itself.
    """
    if is_black_box(classifier):
        return _not_tried(GRADIENT, REASON)
    if draws_at_random(classifier):
        return _not_tried(GRADIENT, DRAWS)
    images = images[:IMAGES]

    def compared() -> LoadingCheck:
        with torch.no_grad():
            logits = classifier(images)
            if logits.shape[1] < 2:
                return _not_tried(GRADIENT, "it has one class only")
            best = logits.topk(2, dim=1).indices
            precise = _precise(classifier, images, logits)
        kind = torch.float32 if precise is None else torch.float64
        exact = Exact(_margin(precise or classifier, best), kind)
        found = compare_slopes(_margin(classifier, best), exact, images, stage_generator(0, "certificate/directions"))
        how = "a float64 copy of it" if precise is not None else "itself, in float32"
        return LoadingCheck(
            name=GRADIENT,
            passed=found.agree,
            value=found.error,
            limit=found.limit,
            finding=f"On {len(images)} images the gradient and central differences in {how} differ by "
            f"{found.error:.2g} of the slope at the median: {LEADS if found.agree else ASTRAY}.",
        )

    return _made(classifier, GRADIENT, compared, images.device)


def _made(classifier: Classifier, name: str, check: Callable[[], LoadingCheck], device: torch.device) -> LoadingCheck:
    with preserve_mode(classifier), lent_randomness(device):
        try:
            found = sparing(classifier, check)
        except Exception as error:
            if out_of_memory(error):
                raise
            return _not_tried(name, f"it fails ({first_line(error).rstrip('.')})")
    return found


def compiled_check(classifier: Classifier, images: Tensor, wanted: str) -> LoadingCheck:
    """Compare the answers to the first of `images` with those of the network that torch.compile makes of it.

    `wanted`: "on", "off", or "auto", which is on for a GPU; compiling takes half a minute and more on processors.
    """
    images = images[:IMAGES]
    if wanted == "off" or (wanted == "auto" and images.device.type != "cuda"):
        return _not_tried(COMPILED, f'compiled = "{wanted}"{" compiles on a GPU only" if wanted == "auto" else ""}')
    if is_black_box(classifier):
        return _not_tried(COMPILED, REASON)
    if classifier.is_program:
        return _not_tried(COMPILED, "it is a program already, which torch.compile does not take")
    if draws_at_random(classifier):
        return _not_tried(COMPILED, DRAWS)
    if images.device.type == "cpu" and not any(map(shutil.which, ("c++", "g++", "clang++", "cl"))):
        return _not_tried(COMPILED, "there is no C++ compiler on this machine")

    def compared() -> LoadingCheck:
        with torch.no_grad():
            eager = classifier(images)
            prepared = classifier.prepare(images)
            before = classifier.network(prepared)
            try:
                after = torch.compile(classifier.network)(prepared)
            finally:
                torch.compiler.reset()
        error = float((after - before).abs().max() / eager.abs().max().clamp_min(1e-12))
        agree = error <= MOST_DIFFERENCE
        seen = f"On {len(images)} images the compiled network's logits differ by {error:.2g} of the largest"
        meaning = "it answers alike" if agree else "what is deployed compiled is not what was audited"
        return LoadingCheck(
            name=COMPILED, passed=agree, value=error, limit=MOST_DIFFERENCE, finding=f"{seen}: {meaning}."
        )

    return _made(classifier, COMPILED, compared, images.device)
