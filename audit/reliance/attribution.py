"""Attribution maps: which pixels a decision is ascribed to, as baselines beside the edit maps of counterfactuals.

Grad-CAM (Selvaraju et al. 2017, arXiv 1610.02391), Integrated Gradients (Sundararajan et al. 2017, arXiv 1703.01365)
and occlusion (Zeiler and Fergus 2014), the last two by captum. All explain the log-odds of the class that the model
answers: a logit alone says nothing where one class's is fixed, as it is behind a single output.

A map that looks the same when the weights mean nothing tells of the image, not of the model. The sanity check (Adebayo
et al. 2018, arXiv 1810.03292) draws each map again with all weights shuffled, each parameter among its own values, and
tells the rank correlation of the two.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec

import torch
from scipy.stats import spearmanr
from torch import Tensor, nn
from torch.nn.functional import interpolate

from audit.classifiers.mode import preserve_mode
from audit.classifiers.slices import sparing, undivided
from audit.config import AttributionConfig
from audit.errors import ConfigError, MetricError
from audit.reliance.layers import placed_outputs
from audit.robustness.attacks.checks import checked_logits
from audit.robustness.attacks.losses import whole_log_odds
from audit.runtime.memory import allowed, at_once, in_slices
from audit.runtime.progress import Advance
from audit.runtime.seeds import stage_generator

GRADIENTS = ("grad-cam", "integrated-gradients")
"""Methods that follow gradients, which a black box has none of."""
TOGETHER = 4
"""Images explained together: occlusion and Integrated Gradients ask about many changed copies of each."""


def check_captum(config: AttributionConfig | None) -> None:
    """Raise ConfigError where attributions are asked for and captum is not installed."""
    by_captum = [] if config is None else [name for name in config.methods if name != "grad-cam"]
    if by_captum and find_spec("captum") is None:
        raise ConfigError(
            f"'{by_captum[0]}' of attribution.methods needs captum, which is not installed: "
            "pip install 'spruce-audit[attribution]'."
        )


def log_odds(classifier: nn.Module, images: Tensor, classes: Tensor) -> Tensor:
    """Return the log-odds `[N]` that `classifier` gives to `classes` `[N]`."""
    return whole_log_odds(checked_logits(classifier, images).float(), classes)


def _grad_cam(classifier: nn.Module, images: Tensor, classes: Tensor, config: AttributionConfig) -> Tensor:
    """Return the maps of the last layer with places of which most have a gradient: the class token's block has none."""
    images = images.detach().requires_grad_()
    *_, height, width = getattr(classifier, "input_shape", images.shape)  # what the network itself receives
    with torch.enable_grad():
        evidence, found = placed_outputs(
            classifier, partial(log_odds, classifier, images, classes), (int(height), int(width))
        )
        found = [one for one in found if len(one.output) == len(images) and one.output.requires_grad]
        outputs = [one.output for one in found]
        gradients = torch.autograd.grad(evidence.sum(), outputs, allow_unused=True) if outputs else ()
    for (grid, output), gradient in reversed(list(zip(found, gradients, strict=True))):
        if gradient is not None and float((grid.of(gradient) != 0).any(dim=1).double().mean()) > 0.5:
            weights = grid.of(gradient).mean(dim=(2, 3), keepdim=True)
            small = (weights * grid.of(output.detach())).sum(dim=1, keepdim=True).relu()
            return interpolate(small, images.shape[2:], mode="bilinear", align_corners=False)[:, 0]
    raise MetricError("Grad-CAM needs a layer whose output has places, as a convolution's or a transformer's has.")


def _integrated_gradients(classifier: nn.Module, images: Tensor, classes: Tensor, config: AttributionConfig) -> Tensor:
    from captum.attr import IntegratedGradients

    # From the mean grey of each image: from black, what is dark could never count.
    baseline = images.mean(dim=(2, 3), keepdim=True).expand_as(images)
    found: Tensor = IntegratedGradients(partial(log_odds, classifier)).attribute(
        images, baseline, additional_forward_args=(classes,), n_steps=config.steps, internal_batch_size=32
    )
    return found.sum(dim=1).abs()


def _occlusion(classifier: nn.Module, images: Tensor, classes: Tensor, config: AttributionConfig) -> Tensor:
    from captum.attr import Occlusion

    side = max(round(config.window * min(images.shape[2:])), 1)
    stride = max(side // 2, 1)
    with torch.no_grad():
        found: Tensor = Occlusion(partial(log_odds, classifier)).attribute(
            images,
            (images.shape[1], side, side),
            (images.shape[1], stride, stride),
            baselines=images.mean(dim=(2, 3), keepdim=True).expand_as(images),
            additional_forward_args=(classes,),
            perturbations_per_eval=8,
        )
    return found.sum(dim=1).clamp_min(0)


_METHODS: Mapping[str, Callable[[nn.Module, Tensor, Tensor, AttributionConfig], Tensor]] = {
    "grad-cam": _grad_cam,
    "integrated-gradients": _integrated_gradients,
    "occlusion": _occlusion,
}


def attribution_maps(
    method: str, classifier: nn.Module, images: Tensor, classes: Tensor, config: AttributionConfig, advance: Advance
) -> Tensor:
    """Return the maps `[N, H, W]`, 0 or more, of `images` `[N, C, H, W]` for `classes` `[N]`, on the CPU.

    Grad-CAM and occlusion keep what speaks for the class, Integrated Gradients the size of what speaks for or against
    it. Raises MetricError where the method needs what the model has not.
    """

    def explain(rows: slice) -> Tensor:
        return _METHODS[method](classifier, images[rows], classes[rows], config).detach().float().cpu()

    def work(rows: slice) -> Tensor:
        found = sparing(classifier, partial(explain, rows))
        advance(len(found))
        return found

    with preserve_mode(classifier):
        if method != "grad-cam":
            return torch.cat(in_slices(len(images), TOGETHER, work))
        with undivided(classifier):  # it takes the outputs of layers, of all images that are explained together
            most = at_once(TOGETHER, partial(explain, slice(1)), images.device, allowed(images.device))
            return torch.cat(in_slices(len(images), most, work))


@contextmanager
def shuffled_weights(network: nn.Module, seed: int) -> Iterator[None]:
    """Shuffle every parameter of `network` among its own values for the block, and put them back after it."""
    rng = stage_generator(seed, "attribution/shuffle")
    kept = [parameter.detach().clone() for parameter in network.parameters()]
    try:
        with torch.no_grad():
            for parameter, values in zip(network.parameters(), kept, strict=True):
                order = torch.randperm(values.numel(), generator=rng).to(values.device)
                parameter.copy_(values.flatten()[order].view_as(values))
        yield
    finally:
        with torch.no_grad():
            for parameter, values in zip(network.parameters(), kept, strict=True):
                parameter.copy_(values)


def similarities(maps: Tensor, others: Tensor) -> Tensor:
    """Return the rank correlation `[n]` of maps `[N, H, W]` with `others`, where neither is the same all over."""
    pairs = zip(maps.flatten(1).numpy(), others.flatten(1).numpy(), strict=True)
    return torch.tensor([float(spearmanr(a, b).statistic) for a, b in pairs if a.std() > 0 and b.std() > 0])


@dataclass(frozen=True)
class Attributed:
    """The maps `[N, H, W]` of one method for `classes` `[N]`; `similarities` `[n]` are to those of shuffled weights."""

    method: str
    classes: Tensor
    maps: Tensor
    similarities: Tensor


def attribute(
    method: str, classifier: nn.Module, images: Tensor, config: AttributionConfig, seed: int, advance: Advance
) -> Attributed:
    """Return what `method` says of the class that `classifier` answers to each of `images`, and its sanity check.

    Progress goes on by 2 for each image.
    """
    with preserve_mode(classifier), torch.no_grad():
        classes = checked_logits(classifier, images).argmax(dim=1)
    maps = attribution_maps(method, classifier, images, classes, config, advance)
    with shuffled_weights(classifier, seed):
        try:
            others = attribution_maps(method, classifier, images, classes, config, advance)
        except MetricError:
            others = torch.zeros_like(maps)  # no gradient through shuffled weights: nothing to compare with
    return Attributed(method, classes.cpu(), maps, similarities(maps, others))
