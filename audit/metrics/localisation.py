"""Where the edit lies: agreement of an edit map with a region (Arras et al. 2022, arXiv:2003.07258; Zhang et al. 2018).

A counterfactual that names the right reason changes the thing itself. Mass inside flatters large regions, so it is
shown beside the region's area share, as lift, with a permutation test. Ties between pixel values count in expectation,
so no score depends on the order of pixels.
"""

import torch
from torch import Tensor

from audit.errors import MetricError
from audit.metrics.intervals import mean_interval
from audit.results import RegionShare


def _check(edit: Tensor, mask: Tensor) -> None:
    if edit.ndim != 3 or edit.shape != mask.shape or mask.dtype != torch.bool:
        raise MetricError(
            f"Localisation is defined between edit maps [N, H, W] and boolean masks of that shape; given "
            f"{tuple(edit.shape)} and {mask.dtype} {tuple(mask.shape)}."
        )
    if not torch.isfinite(edit).all() or (edit < 0).any():
        raise MetricError("An edit map holds negative or non-finite values: it must be |counterfactual - inversion|.")


def _top_inside(edit: Tensor, mask: Tensor, count: Tensor) -> Tensor:
    # Expected number of the `count` largest pixels that lie in the mask; ties at the threshold share the last places.
    order = edit.sort(1, descending=True).values
    threshold = order.gather(1, (count.clamp_min(1) - 1)[:, None])
    above, tied = edit > threshold, edit == threshold
    places = count - above.sum(1)
    return (above & mask).sum(1) + places.double() * (tied & mask).sum(1) / tied.sum(1)


def _auc(edit: Tensor, mask: Tensor, count: Tensor) -> Tensor:
    # Mann-Whitney statistic on mid-ranks, all images at once.
    order = edit.sort(1).values
    below = torch.searchsorted(order, edit.contiguous(), right=False)
    upto = torch.searchsorted(order, edit.contiguous(), right=True)
    ranks = (below + upto + 1).double() / 2
    positives, negatives = count.double(), (edit.shape[1] - count).double()
    statistic = (ranks * mask).sum(1) - positives * (positives + 1) / 2
    return statistic / (positives * negatives)


def localise(edit: Tensor, mask: Tensor) -> dict[str, Tensor]:
    """Scores of edit maps `[N, H, W]` (>= 0) against boolean masks `[N, H, W]`: key -> float64 `[N]`, each in [0, 1].

    mass: share of the edit inside; area: share of the image that the mask covers; rank_accuracy: share of the |M|
    largest pixels inside; pointing: the largest pixel is inside; iou: of mask and the |M| largest pixels; auc: area
    under the ROC curve of the edit as a predictor of the mask. All are NaN where the mask is empty, all but area where
    the edit is zero, auc also where the mask is full. Invariant to positive scaling of the edit. Raises MetricError on
    wrong shapes.
    """
    _check(edit, mask)
    flat, inside = edit.flatten(1).double(), mask.flatten(1)
    total, count, pixels = flat.sum(1), inside.sum(1), inside.shape[1]
    top = _top_inside(flat, inside, count)
    largest = flat == flat.amax(1, keepdim=True)
    values = {
        "mass": (flat * inside).sum(1) / total,
        "rank_accuracy": top / count,
        "pointing": (largest & inside).sum(1).double() / largest.sum(1),
        "iou": top / (2 * count - top),
        "auc": _auc(flat, inside, count),
    }
    defined = (count > 0) & (total > 0)
    values = {key: value.masked_fill(~defined, torch.nan) for key, value in values.items()}
    values["auc"] = values["auc"].masked_fill(count == pixels, torch.nan)
    values["area"] = (count.double() / pixels).masked_fill(count == 0, torch.nan)
    return values


def permutation_p(edit: Tensor, mask: Tensor, n: int, generator: torch.Generator) -> float:
    """One-sided p-value of the mean mass inside against `n` draws of random torus shifts of the masks.

    Each draw shifts every image's mask on its own; the area stays, so the test of mass is the test of lift. The mass
    of all H*W shifts of an image is one circular correlation, taken by FFT. Images with an empty mask or a zero edit
    are left out; NaN if none is left. The null is blind to anatomy: edits and regions that are both central have
    lift for that alone, so read the p-value beside the lift of the other models. `generator` must be on the CPU.
    """
    _check(edit, mask)
    edit, mask = edit.detach().cpu().double(), mask.cpu()
    keep = mask.flatten(1).any(1) & (edit.flatten(1).sum(1) > 0)
    if n < 1 or not keep.any():
        return float("nan")
    share = edit[keep] / edit[keep].sum((1, 2), keepdim=True)
    spectrum = torch.fft.rfft2(share) * torch.fft.rfft2(mask[keep].double()).conj()
    mass = torch.fft.irfft2(spectrum, s=edit.shape[1:]).flatten(1)
    observed = mass[:, 0].mean()
    shifts = torch.randint(mass.shape[1], (len(mass), n), generator=generator)
    drawn = mass.gather(1, shifts).mean(0)
    # The tolerance makes a draw that equals the observed value count as such in spite of rounding in the FFT.
    return (1 + int((drawn >= observed - 1e-9).sum())) / (n + 1)


def region_share(region: str, edit: Tensor, mask: Tensor, permutations: int, generator: torch.Generator) -> RegionShare:
    """Summary over images of `localise` for one named region: means over the images where it is defined."""
    values = localise(edit, mask)
    defined = torch.isfinite(values["mass"])
    n = int(defined.sum())

    def mean(key: str) -> float | None:
        finite = values[key][defined & torch.isfinite(values[key])]
        return float(finite.mean()) if len(finite) else None

    mass, area = mean("mass"), mean("area")
    between = mean_interval(values["mass"])
    return RegionShare(
        region=region,
        n=n,
        skipped=len(edit) - n,
        mass=mass,
        mass_interval=None if between.low is None else (max(between.low, 0.0), min(between.high or 0.0, 1.0)),
        area=area,
        lift=mass / area if mass is not None and area else None,
        p_value=permutation_p(edit, mask, permutations, generator) if n and permutations else None,
        rank_accuracy=mean("rank_accuracy"),
        pointing=mean("pointing"),
        iou=mean("iou"),
        auc=mean("auc"),
    )
