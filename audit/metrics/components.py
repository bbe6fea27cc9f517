"""The components of the meaningfulness index, as functions of images' weights so that a bootstrap can redraw them.

validity      share of counterfactuals that flip the decision;
realism       share of the gap to real target images that the edit closes, (d(inv) - d(cf)) / (d(inv) - floor), with d
              the unbiased squared distance of the chosen kernel (`kernels.py`);
sparsity      1 - L1(cf, inv) / L1(query, nearest real target image);
localisation  (mass - area) / (1 - area): excess inside the region, over chance, of what is seen of the edit;
transfer      how far independent judges follow the flip;
response      of what the model answers to the edits made for all models, the share that it answers to their part
              inside the region (`response.py`).

All are clipped to [0, 1]. One rule holds for all but the last, which rests on the edits of others, too: an edit that
does not flip the decision earns nothing, so a model cannot look sparse or well localised by failing.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from audit.embeddings.embedding import check_embeddings
from audit.metrics.cmmd import SCALE, Kernel, kernel_sum, unit_norm
from audit.metrics.distribution import EmbeddedSets
from audit.metrics.kernels import energy_kernel
from audit.metrics.response import Answers

NOISE_DRAWS = 200
NOISE_IMAGES = 2000


@dataclass(frozen=True)
class TargetKernels:
    """Kernel values of one model's counterfactuals towards one target class; all that realism needs to be redrawn.

    `rows` `[n]` are positions among the query images. `counterfactual` and `inversion` `[n, n]` are kernel matrices,
    `*_real` `[n]` mean kernel values to the real target images, `real` the mean over distinct pairs of those. `noise`
    is the 95th percentile of the absolute distance between two disjoint random parts of the real images, the smaller
    with n of them (at most half): below it a distance cannot be told from none. Distances are in units of 1/1000.

    The floor of the gap is 0: it is the mean of the unbiased split-half distance over all splits, which is 0 exactly,
    as each of its three terms is on average the mean over distinct pairs.
    """

    target: str
    rows: Tensor
    counterfactual: Tensor
    inversion: Tensor
    counterfactual_real: Tensor
    inversion_real: Tensor
    real: float
    noise: float

    def distances(self, weights: Tensor) -> tuple[Tensor, Tensor]:
        """Unbiased distances `[B]` of counterfactuals and inversions to the real images under weights `[B, N]`."""
        mine = weights[:, self.rows]
        return (
            self._distance(self.counterfactual, self.counterfactual_real, mine),
            self._distance(self.inversion, self.inversion_real, mine),
        )

    def _distance(self, within: Tensor, across: Tensor, weights: Tensor) -> Tensor:
        # Weighted U-statistic over pairs of *different* images. A redrawn image met with itself is no pair: its kernel
        # value would count as closeness of the set, and every bootstrap draw would sit above the estimate.
        total, squares = weights.sum(1), weights.square()
        pairs = ((weights @ within) * weights).sum(1) - squares @ within.diagonal()
        return SCALE * (pairs / (total.square() - squares.sum(1)) + self.real - 2 * (weights @ across) / total)


def _split_noise(real: Tensor, n: int, kernel: Kernel, generator: torch.Generator) -> float:
    real = real[torch.randperm(len(real), generator=generator)[:NOISE_IMAGES]]
    m = len(real)
    first = min(n, m // 2)
    ranks = torch.rand(NOISE_DRAWS, m, generator=generator, dtype=torch.float64).argsort(1).argsort(1)
    inside = (ranks < first).double()
    outside = 1 - inside
    matrix = kernel(real, real).fill_diagonal_(0)
    inside_kernel = inside @ matrix
    within = (inside_kernel * inside).sum(1) / (first * (first - 1))
    rest = m - first
    beyond = ((outside @ matrix) * outside).sum(1) / (rest * (rest - 1))
    distance = within + beyond - 2 * (inside_kernel * outside).sum(1) / (first * rest)
    return SCALE * float(distance.abs().quantile(0.95))


def target_kernels(
    sets: EmbeddedSets, rows: Tensor, flipped: Tensor, generator: torch.Generator, min_images: int = 2,
    *, kernel: Kernel = energy_kernel,
) -> TargetKernels:  # fmt: skip
    """Values of `kernel` for the embedded images in `sets`, scaled to unit length.

    `rows` `[n]` are the positions among the queries of the n counterfactuals and inversions, `flipped` `[n]` says which
    counterfactuals changed the decision. An image that does not flip enters with its inversion: it closes nothing of
    the gap. Raises MetricError below `min_images` of either set (four real images at least, to split them).
    """
    check_embeddings(sets.counterfactuals, sets.real, max(2, min_images), f"Realism towards '{sets.target}'")
    check_embeddings(sets.inversions, sets.real, max(2, min_images), f"Realism towards '{sets.target}'")
    check_embeddings(sets.real, sets.real, 4, f"Realism against real images of '{sets.target}'")
    real, inverted = unit_norm(sets.real.cpu()), unit_norm(sets.inversions.cpu())
    edited = torch.where(flipped.cpu()[:, None], unit_norm(sets.counterfactuals.cpu()), inverted)
    m, same = len(real), float(kernel(real[:1], real[:1]))
    return TargetKernels(
        target=sets.target,
        rows=rows.cpu(),
        counterfactual=kernel(edited, edited),
        inversion=kernel(inverted, inverted),
        counterfactual_real=kernel(edited, real).mean(1),
        inversion_real=kernel(inverted, real).mean(1),
        real=(kernel_sum(real, real, kernel) - m * same) / (m * (m - 1)),
        noise=_split_noise(real, len(rows), kernel, generator),
    )


def realism_refusal(kernels: TargetKernels) -> str | None:
    """Why realism is not defined for these kernels: no gap to close. None where it is."""
    _, inversion = kernels.distances(torch.ones(1, int(kernels.rows.max()) + 1, dtype=torch.float64))
    if float(inversion) > kernels.noise:
        return None
    return (
        f"the unedited inversions ({float(inversion):.3g}) are already as close to real '{kernels.target}' images as "
        f"those are to each other ({kernels.noise:.3g}): there is no gap to close"
    )


def realism(groups: Sequence[TargetKernels], weights: Tensor) -> Tensor:
    """Share of the gap closed `[B]` under image weights `[B, N]`: mean over target classes, weighted by their images.

    A class with fewer than two different images in a draw has no distance and is left out of that draw.
    """
    total = torch.zeros(len(weights), dtype=torch.float64)
    closed = torch.zeros_like(total)
    for group in groups:
        counterfactual, inversion = group.distances(weights)
        # A draw with a smaller gap than the noise is read as one with a gap of the noise, not divided by nothing.
        gap = inversion.clamp_min(max(group.noise, 1e-9))
        share = ((inversion - counterfactual) / gap).clamp(0, 1)
        count = torch.where(share.isfinite(), weights[:, group.rows].sum(1), 0.0)
        total += count
        closed += count * share.nan_to_num(0.0)
    return closed / total


def sparsity_scores(edit_l1: Tensor, nearest_l1: Tensor, flipped: Tensor) -> Tensor:
    """Sparsity per image, float64 `[N]`: `edit_l1` to the inversion against `nearest_l1`, the next real target image.

    NaN where the query itself is a real target image (distance 0).
    """
    scores = (1 - edit_l1.double() / nearest_l1.double()).clamp(0, 1)
    return torch.where(flipped, scores, 0.0).masked_fill(nearest_l1 <= 0, torch.nan)


def localisation_scores(mass: Tensor, area: Tensor, flipped: Tensor) -> Tensor:
    """Localisation per image, float64 `[N]`, from `localise`'s mass and area; NaN for an empty or a full mask.

    An edit that nobody sees has no mass anywhere (NaN), and lies nowhere: 0.
    """
    scores = ((mass.double() - area.double()) / (1 - area.double())).nan_to_num(0.0).clamp(0, 1)
    return torch.where(flipped, scores, 0.0).masked_fill(~(area < 1), torch.nan)


@dataclass(frozen=True)
class ModelScores:
    """All that the index of one model rests on: per query image, in the order of the queries, the same for all models.

    `flipped` is bool `[N]`: which counterfactuals are valid, those that flip (of a label: and no other label with it).
    `sparsity`, `localisation` and `transfer` are float64 `[N]` with NaN where not defined, None where not measured;
    `realism` one TargetKernels a target class; `response` what is answered to all edits. `reasons` says per
    missing component why it is missing, `veto` why the model is not meaningful whatever they are.
    """

    name: str
    flipped: Tensor
    sparsity: Tensor | None = None
    localisation: Tensor | None = None
    transfer: Tensor | None = None
    realism: tuple[TargetKernels, ...] = ()
    response: Answers | None = None
    reasons: dict[str, str] = field(default_factory=dict)
    veto: str | None = None


def _mean(scores: Tensor, weights: Tensor) -> Tensor:
    defined = scores.isfinite()
    return (weights @ scores.double().nan_to_num(0.0)) / (weights @ defined.double())


def components(scores: ModelScores, weights: Tensor) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Components `[B]` under image weights `[B, N]` (ones: the plain estimate), and why the missing ones are missing.

    A component that fewer than two images define is missing. NaN in a draw without any defined image.
    """
    values: dict[str, Tensor] = {"validity": _mean(scores.flipped.double(), weights)}
    missing: dict[str, str] = {}
    refusals = [realism_refusal(group) for group in scores.realism]
    groups = [group for group, refusal in zip(scores.realism, refusals, strict=True) if refusal is None]
    if groups:
        values["realism"] = realism(groups, weights)
    else:
        said = "; ".join(refusal for refusal in refusals if refusal)
        missing["realism"] = scores.reasons.get("realism", said or "no target class has enough images")
    for key, given in (
        ("sparsity", scores.sparsity),
        ("localisation", scores.localisation),
        ("transfer", scores.transfer),
    ):
        if given is not None and int(given.isfinite().sum()) >= 2:
            values[key] = _mean(given, weights)
        else:
            why = "not measured" if given is None else f"defined on {int(given.isfinite().sum())} images, 2 are needed"
            missing[key] = scores.reasons.get(key, why)
    if scores.response is not None and scores.response.is_defined:
        values["response"] = scores.response.share(weights)
    else:
        missing["response"] = scores.reasons.get(
            "response", "not measured" if scores.response is None else "it answers to no part of any edit"
        )
    return values, missing
