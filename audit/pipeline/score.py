"""From counterfactuals to numbers: one model's rows, summaries and the arrays that its index is drawn from."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import torch
from torch import Tensor

from audit.config import AuditConfig
from audit.counterfactual.protocol import Counterfactuals
from audit.embeddings.embedding import embed_all, named
from audit.errors import MetricError
from audit.metrics.components import (
    ModelScores,
    TargetKernels,
    localisation_scores,
    sparsity_scores,
    target_kernels,
)
from audit.metrics.distribution import EmbeddedSets, Measure, canonical_kinds, distribution_row
from audit.metrics.edit import changed_share, edit_map, mean_absolute
from audit.metrics.intervals import wilson_interval
from audit.metrics.kernels import KERNELS
from audit.metrics.localisation import localise, region_share
from audit.metrics.perceptual import perceptual_all
from audit.metrics.transfer import Verdicts, agreement, judge_row, transfer_scores
from audit.pipeline.shared import Common
from audit.results import MAIN_REGION, Distribution, Interval, NotComputed, Perceptual, QueryRow
from audit.results import Counterfactuals as CounterfactualSummary
from audit.runtime.seeds import stage_generator

PERMUTATIONS = 999


def mean_interval(values: Tensor, level: float = 0.95) -> Interval:
    """Mean of `values` `[N]` with its normal-approximation interval."""
    finite = values[values.isfinite()].double()
    if len(finite) == 0:
        return Interval(value=None, level=level)
    mean = float(finite.mean())
    if len(finite) < 2:
        return Interval(value=mean, level=level, n=1)
    half = NormalDist().inv_cdf((1 + level) / 2) * float(finite.std()) / len(finite) ** 0.5
    return Interval(value=mean, low=mean - half, high=mean + half, level=level, n=len(finite))


@dataclass(frozen=True)
class Scored:
    """One model's part of the results."""

    summary: CounterfactualSummary
    rows: list[QueryRow]
    scores: ModelScores
    not_computed: list[NotComputed]


def _distributions(
    common: Common, found: Counterfactuals, targets: Tensor, embedded: Tensor, config: AuditConfig
) -> tuple[dict[str, list[Distribution]], tuple[TargetKernels, ...], list[NotComputed], dict[str, str]]:
    """Rows of FID and MMD, the kernels behind realism, and what was refused on too few images, by target class."""
    tables: dict[str, list[Distribution]] = {"fid": [], "cmmd": [], "mmd": []}
    kernels: list[TargetKernels] = []
    missing: list[NotComputed] = []
    reasons: dict[str, str] = {}
    fewest, kernel = config.metrics.min_images, KERNELS[config.metrics.realism_kernel]
    kinds: tuple[Measure, ...] = (("fid", "biased"), ("mmd", "biased"), ("mmd", "unbiased"))
    canonical = {n.name: embed_all(n, found.images, 32, common.device) for n in common.canonical}
    for target in targets.unique().tolist():
        rows = (targets == target).nonzero()[:, 0]
        real = common.real[target]
        sets = EmbeddedSets(real.name, embedded[rows], common.embedded_inversions[rows], real.embedded)

        def generator(name: str = real.name) -> torch.Generator:
            # The same splits of the real images for every row and model, so that floors compare.
            return stage_generator(config.seed, f"distributions/{name}")

        try:
            for measure in kinds:
                row = distribution_row(measure, common.network, sets, generator(), fewest)
                tables[row.metric].append(row)
            for network in common.canonical:
                made, before = canonical[network.name][rows], common.canonical_inversions[network.name][rows]
                seen = EmbeddedSets(real.name, made, before, real.canonical[network.name])
                for measure in canonical_kinds(network.name):
                    row = distribution_row(measure, network, seen, generator(), fewest)
                    tables[row.metric].append(row)
            kernels.append(target_kernels(sets, rows, found.flipped[rows], generator(), fewest, kernel=kernel))
        except MetricError as refused:
            paths = [f"counterfactuals.{table}.{real.name}" for table in tables]
            what = f"FID, MMD and realism towards '{real.name}'"
            missing.append(NotComputed(what=what, why=str(refused), paths=[*paths, "components.realism"]))
            reasons["realism"] = str(refused)
    return tables, tuple(kernels), missing, reasons


def score_model(
    name: str,
    common: Common,
    found: Counterfactuals,
    targets: Tensor,
    operating_point: Tensor,
    verdicts: Sequence[Verdicts],
    config: AuditConfig,
) -> Scored:
    """Score one model's counterfactuals `found` towards `targets` `[N]` of the common query images.

    `operating_point` `[K]` is the confidence asked for; `verdicts` are the judges' on these very counterfactuals.
    """
    edit = edit_map(found.images, common.inversions)
    l1 = mean_absolute(found.images, common.inversions)
    embedded = embed_all(common.network, found.images, 256, common.device)
    tables, kernels, missing, reasons = _distributions(common, found, targets, embedded, config)
    nearest = torch.empty(len(targets))
    for target in targets.unique().tolist():
        rows = targets == target
        nearest[rows] = common.real[target].nearest[rows]
    local = {region: localise(edit, mask) for region, mask in common.regions.items()}
    main = local.get(MAIN_REGION)
    if main is None or not main["mass"].isfinite().any():
        reasons["localisation"] = "the data give no region (mask or box) for the query images"
    if not verdicts:
        reasons["transfer"] = "there is no judge: one model and no domain embedding"
    distance = perceptual_all(common.perceptual, found.images, common.inversions, 128, common.device)
    generator = stage_generator(config.seed, "permutation")
    aimed = found.feature_target_flips
    summary = CounterfactualSummary(
        n=len(targets),
        flip_ratio=wilson_interval(int(found.flipped.sum()), len(targets)),
        reached=float(found.reached.float().mean()),
        feature_target_flips=None if aimed is None else float(aimed.float().mean()),
        operating_point={common.class_names[t]: float(operating_point[t]) for t in targets.unique().tolist()},
        confidence=mean_interval(found.confidence),
        l1=mean_interval(l1),
        changed_share=float(changed_share(found.images, common.inversions).mean()),
        perceptual=Perceptual(value=float(distance.mean()), embedding=named(common.perceptual)),
        regions=[region_share(region, edit, mask, PERMUTATIONS, generator) for region, mask in common.regions.items()],
        judges=[judge_row(one, targets, found.flipped) for one in verdicts],
        **tables,
    )
    agreed = {one.judge: agreement(one.counterfactuals, targets, found.flipped) for one in verdicts}
    rows = [
        QueryRow(
            query=common.ids[i],
            source=common.class_names[int(common.labels[i])],
            target=common.class_names[int(targets[i])],
            flipped=bool(found.flipped[i]),
            reached=bool(found.reached[i]),
            step=int(found.step[i]),
            flip_step=int(found.flip_step[i]) if found.flip_step[i] >= 0 else None,
            confidence=float(found.confidence[i]),
            l1=float(l1[i]),
            perceptual=float(distance[i]),
            mass={region: _or_none(values["mass"][i]) for region, values in local.items()},
            area={region: _or_none(values["area"][i]) for region, values in local.items()},
            agreed_by={judge: bool(says[i]) for judge, says in agreed.items()},
            trace=[round(float(p), 4) for p in found.trace[i]],
        )
        for i in range(len(targets))
    ]
    scores = ModelScores(
        name=name,
        flipped=found.flipped,
        sparsity=sparsity_scores(l1, nearest, found.flipped),
        localisation=None if main is None else localisation_scores(main["mass"], main["area"], found.flipped),
        transfer=transfer_scores(verdicts, targets, found.flipped) if verdicts else None,
        realism=kernels,
        reasons=reasons,
    )
    return Scored(summary, rows, scores, missing)


def _or_none(value: Tensor) -> float | None:
    return float(value) if value.isfinite() else None
