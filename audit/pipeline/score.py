"""From counterfactuals to numbers: one model's rows, summaries and the arrays that its index is drawn from."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from audit.counterfactual.methods import ChosenMethod
from audit.counterfactual.protocol import Counterfactuals
from audit.embeddings.embedding import Named, named
from audit.errors import MetricError
from audit.metrics.axioms import effectiveness, reversibility, shared_flips
from audit.metrics.components import (
    ModelScores,
    TargetKernels,
    localisation_scores,
    sparsity_scores,
    target_kernels,
)
from audit.metrics.confounder import confounder_share, veto
from audit.metrics.distribution import EmbeddedSets, Measure, canonical_kinds, distribution_row
from audit.metrics.edit import changed_share, edit_map, mean_absolute, ruins, visible
from audit.metrics.intervals import bootstrap_mean, mean_interval, wilson_interval
from audit.metrics.kernels import KERNELS
from audit.metrics.labels import SideEffects
from audit.metrics.localisation import localise, region_share
from audit.metrics.response import Answers
from audit.metrics.transfer import Verdicts, agreement, judge_row, transfer_scores
from audit.pipeline.context import Context
from audit.pipeline.edit_parts import flips_by_part
from audit.pipeline.explain import Explained, OtherLabels
from audit.pipeline.looks import embedded, lpips, perceptual
from audit.pipeline.rank import bootstrap_weights
from audit.pipeline.reference import Reference
from audit.results import (
    MAIN_REGION,
    Aligned,
    Answered,
    Axioms,
    ConfounderShare,
    Distribution,
    MovedLabel,
    NotComputed,
    OffTarget,
    Perceptual,
    QueryRow,
    RegionShare,
)
from audit.results import Counterfactuals as CounterfactualSummary

PERMUTATIONS = 999
NO_REGION = "the data give no region (mask or box) for the query images"
OWN_CLASS = "the images explained are misclassified and belong to their target class as they are"
"""Why what asks whether an edit leads into another class is not measured."""


@dataclass(frozen=True)
class Scored:
    """One model's part of the results."""

    summary: CounterfactualSummary
    rows: list[QueryRow]
    scores: ModelScores
    not_computed: list[NotComputed]


def _distributions(
    context: Context, reference: Reference, explained: Explained, edits: Tensor, valid: Tensor
) -> tuple[dict[str, list[Distribution]], tuple[TargetKernels, ...], list[NotComputed], dict[str, str]]:
    """Rows of FID and MMD, the kernels behind realism, and what was refused on too few images, by target class."""
    found, targets, networks = explained.counterfactuals, explained.targets, reference.networks
    tables: dict[str, list[Distribution]] = {"fid": [], "cmmd": [], "mmd": []}
    kernels: list[TargetKernels] = []
    missing: list[NotComputed] = []
    reasons: dict[str, str] = {}
    settings = context.config.metrics
    fewest, kernel = settings.min_images, KERNELS[settings.realism_kernel]
    kinds: tuple[Measure, ...] = (("fid", "biased"), ("mmd", "biased"), ("mmd", "unbiased"))
    canonical = {n.name: embedded(context, n, found.images, 32) for n in networks.canonical}
    away = ~explained.wrong  # the others are images of their target class as they are: there is no gap to close
    if not bool(away.any()):
        reasons["realism"] = OWN_CLASS
        paths = [f"counterfactuals.{table}" for table in tables]
        missing.append(NotComputed(what="FID and MMD", why=OWN_CLASS, paths=paths))
    for target in targets[away].unique().tolist():
        rows = (away & (targets == target)).nonzero()[:, 0]
        real = reference.real[target]
        fewer = rows[: reference.edits[target]]
        sets, equal = (
            EmbeddedSets(real.name, edits[some], reference.embedded_inversions[some], real.embedded)
            for some in (rows, fewer)
        )

        def generator(name: str = real.name) -> torch.Generator:
            # The same splits of the real images for every row and model, so that floors compare.
            return context.rng(f"distributions/{name}")

        try:
            for measure in kinds:
                row = distribution_row(measure, networks.embedding, equal, generator(), fewest)
                tables[row.metric].append(row)
            for network in networks.canonical:
                made, before = canonical[network.name][fewer], reference.canonical_inversions[network.name][fewer]
                seen = EmbeddedSets(real.name, made, before, real.canonical[network.name])
                for measure in canonical_kinds(network.name):
                    row = distribution_row(measure, network, seen, generator(), fewest)
                    tables[row.metric].append(row)
            kernels.append(target_kernels(sets, rows, valid[rows], generator(), fewest, kernel=kernel))
        except MetricError as refused:
            paths = [f"counterfactuals.{table}.{real.name}" for table in tables]
            what = f"FID, MMD and realism towards '{real.name}'"
            missing.append(NotComputed(what=what, why=str(refused), paths=[*paths, "components.realism"]))
            reasons["realism"] = str(refused)
    return tables, tuple(kernels), missing, reasons


def score_model(
    context: Context,
    reference: Reference,
    explained: Explained,
    verdicts: Sequence[Verdicts],
    method: ChosenMethod,
    *,
    response: Answers | str = "it was not asked",
) -> Scored:
    """Score one model's counterfactuals by what all are compared with; `verdicts` are what the judges say of them.

    `response` is what the model answers to the edits of all, or why nothing.
    """
    found, targets, networks = explained.counterfactuals, explained.targets, reference.networks
    inversions, operating_point = reference.inversions, explained.subject.calibrated.operating_point
    edit, l1 = edit_map(found.images, inversions), mean_absolute(found.images, inversions)
    edits = embedded(context, networks.embedding, found.images)
    others = explained.subject.others
    effects = None if others is None else others.between(inversions, found.images)
    valid = found.flipped if effects is None else effects.valid(found.flipped)
    tables, kernels, missing, reasons = _distributions(context, reference, explained, edits, valid)
    nearest, ruined = torch.empty(len(targets)), torch.zeros(len(targets), dtype=torch.bool)
    for target in targets.unique().tolist():
        rows, real = targets == target, reference.real[target]
        nearest[rows] = real.nearest[rows]
        before = reference.embedded_inversions[rows]
        ruined[rows] = ruins(l1[rows], nearest[rows], edits[rows], before, real.embedded)
    seen = localise(visible(edit), reference.regions[MAIN_REGION]) if MAIN_REGION in reference.regions else None
    local = {region: localise(edit, mask) for region, mask in reference.regions.items()}
    if seen is None or not seen["area"].isfinite().any():
        reasons["localisation"] = NO_REGION
    if isinstance(response, str):
        reasons["response"] = response
    confounder = _confounder(context, reference, edit, found.flipped)
    if isinstance(confounder, NotComputed):
        missing.append(confounder)
        confounder = None
    away = ~explained.wrong
    heard = [one.at(away) for one in verdicts]
    judges, copies = ([one for one in heard if one.is_copy is kind] for kind in (False, True))
    transfer = torch.full((len(targets),), torch.nan, dtype=torch.float64)
    if not judges:
        reasons["transfer"] = "there is no judge: one model and no domain embedding"
    elif not bool(away.any()):
        reasons["transfer"] = OWN_CLASS
    else:
        transfer[away] = transfer_scores(judges, targets[away], valid[away])
    distance = perceptual(context, networks.perceptual, found.images, inversions)
    canonical = None if networks.lpips is None else lpips(context, networks.lpips, found.images, inversions)
    generator = context.rng("permutation")

    def parts(row: RegionShare) -> RegionShare:
        alone, undone = flips_by_part(context, explained, inversions, reference.regions[row.region])
        return row.model_copy(update={"alone": alone, "undone": undone})

    answered = None
    if not isinstance(response, str) and response.is_defined:
        region, rest, acquisition = response.shares(torch.ones(len(targets), dtype=torch.float64)).tolist()
        asked = context.config.ranking.acquisition
        answered = Answered(region=region, rest=rest, acquisition=acquisition if asked else None)
    summary = CounterfactualSummary(
        n=len(targets),
        method=method.name,
        method_package=method.package,
        flip_ratio=wilson_interval(int(found.flipped.sum()), len(targets)),
        corrected=wilson_interval(int(found.flipped[~away].sum()), int((~away).sum())) if not away.all() else None,
        reached=float(found.reached.float().mean()),
        explained=wilson_interval(int((found.flipped & ~ruined).sum()), len(targets)),
        off_target=None if others is None or effects is None else _off_target(context, others, effects, valid),
        unexplained=_unexplained(found, ruined),
        feature_target_flips=_mean(found.feature_target_flips),
        reach=_mean(found.reach),
        carried_target_flips=_mean(found.carried_target_flips),
        operating_point={reference.class_names[t]: float(operating_point[t]) for t in targets.unique().tolist()},
        operating_point_cap=context.config.counterfactual.operating_point_cap,
        converged=_mean(found.converged),
        confidence=mean_interval(found.confidence),
        l1=mean_interval(l1),
        changed_share=float(changed_share(found.images, inversions).mean()),
        lpips=None if networks.lpips is None or canonical is None else _perceptual(canonical, networks.lpips),
        perceptual=_perceptual(distance, networks.perceptual),
        regions=[
            parts(region_share(region, edit, mask, PERMUTATIONS, generator))
            for region, mask in reference.regions.items()
        ],
        confounder=confounder,
        judges=[judge_row(one, targets[away], found.flipped[away]) for one in judges],
        copies=[judge_row(one, targets[away], found.flipped[away]) for one in copies],
        nafr=shared_flips(copies, targets[away], found.flipped[away]) if copies else None,
        answered=answered,
        axioms=Axioms(
            effectiveness=effectiveness(judges, targets[away]) if bool(away.any()) else None,
            **_way_back(explained, inversions),
        ),
        **tables,
    )
    agreed = {one.judge: agreement(one.counterfactuals, targets, found.flipped) for one in verdicts}
    rows = [
        QueryRow(
            query=reference.queries.rows.row_ids[i],
            source=reference.class_names[int(explained.sources[i])],
            target=reference.class_names[int(targets[i])],
            wrong=not bool(away[i]),
            flipped=bool(found.flipped[i]),
            reached=bool(found.reached[i]),
            step=int(found.step[i]),
            flip_step=int(found.flip_step[i]) if found.flip_step[i] >= 0 else None,
            confidence=float(found.confidence[i]),
            l1=float(l1[i]),
            steps=_last(found, i),
            converged=None if found.converged is None else bool(found.converged[i]),
            aligned=_aligned(found, i),
            ruined=bool(ruined[i]),
            off_target=None if effects is None else float(effects.change[i].mean()),
            moved=[] if others is None or effects is None else _names(others, effects.moved[i]),
            push=None if found.push is None else float(found.push[i]),
            reach=None if found.reach is None else float(found.reach[i]),
            feature_target_flips=None if found.feature_target_flips is None else bool(found.feature_target_flips[i]),
            carried_target_flips=None if found.carried_target_flips is None else bool(found.carried_target_flips[i]),
            perceptual=float(distance[i]),
            mass={region: _or_none(values["mass"][i]) for region, values in local.items()},
            area={region: _or_none(values["area"][i]) for region, values in local.items()},
            agreed_by={judge: bool(says[i]) for judge, says in agreed.items()},
            trace=[round(float(p), 4) for p in found.trace[i, : _last(found, i) + 1]],
        )
        for i in range(len(targets))
    ]
    scores = ModelScores(
        name=explained.subject.name,
        flipped=valid,
        sparsity=sparsity_scores(l1, nearest, valid),
        localisation=None if seen is None else localisation_scores(seen["mass"], seen["area"], valid),
        transfer=transfer if judges else None,
        realism=kernels,
        response=None if isinstance(response, str) else response,
        reasons=reasons,
        veto=None if confounder is None else veto(confounder),
    )
    return Scored(summary, rows, scores, [*missing, *_missing_axioms(explained, copies)])


def _off_target(context: Context, others: OtherLabels, effects: SideEffects, valid: Tensor) -> OffTarget:
    """Return what the edits did to the `others`."""
    n, rng = len(valid), context.rng("off target")
    return OffTarget(
        change=bootstrap_mean(effects.change.mean(dim=1), rng),
        flips=bootstrap_mean(effects.moved.double().mean(dim=1), rng),
        valid=wilson_interval(int(valid.sum()), n),
        labels={
            name: MovedLabel(
                change=bootstrap_mean(effects.change[:, place], rng),
                flips=wilson_interval(int(effects.moved[:, place].sum()), n),
            )
            for place, name in enumerate(others.places)
        },
    )


def _names(others: OtherLabels, moved: Tensor) -> list[str]:
    return [name for name, one in zip(others.places, moved.tolist(), strict=True) if one]


def _confounder(
    context: Context, reference: Reference, edit: Tensor, flipped: Tensor
) -> ConfounderShare | NotComputed | None:
    """Return how much of the edits lies in the named confounders, or why it cannot be told; None: none is named."""
    named, config = context.config.regions.confounder, context.config
    if not named:
        return None
    weights = bootstrap_weights(len(edit), config.ranking.bootstrap, config.seed, "confounder")
    share = confounder_share(edit, flipped, reference.regions, named, weights)
    if isinstance(share, str):
        return NotComputed(what="edits in confounders", why=share, paths=["counterfactuals.confounder"])
    return share


def _unexplained(found: Counterfactuals, ruined: Tensor) -> str | None:
    """Say why no edit explains the model, where fewer than half of the images flip without being spoilt; else None."""
    n, spoilt, held = len(ruined), ruined & found.flipped, ~found.flipped
    if 2 * int((spoilt | held).sum()) <= n:
        return None
    reasons = []
    if held.any():
        reasons.append(f"{int(held.sum())} do not flip")
    if spoilt.any():
        reasons.append(
            f"{int(spoilt.sum())} flip only by an edit as large as exchanging the image for the nearest real one of "
            "the target class, which brings it no nearer to any of those"
        )
    going = 0 if found.converged is None else int((~found.converged & (spoilt | held)).sum())
    more = f"; the search for {going} of them had not ended, and more steps may find one" if going else ""
    return f"of {n} query images {' and '.join(reasons)}{more}"


def _way_back(explained: Explained, inversions: Tensor) -> dict[str, Any]:
    """Return the fields of the axioms that rest on the way back."""
    back = explained.back
    if isinstance(back, str):
        return {"reversibility": None, "returned": None}
    there = explained.counterfactuals.images[back.rows]
    ratios = reversibility(inversions[back.rows], there, back.images)
    return {"reversibility": mean_interval(ratios), "returned": float(back.returned.float().mean())}


def _missing_axioms(explained: Explained, copies: Sequence[Verdicts]) -> list[NotComputed]:
    notes = []
    if isinstance(explained.back, str):
        paths = [f"counterfactuals.axioms.{key}" for key in ("reversibility", "returned")]
        notes.append(NotComputed(what="reversibility", why=explained.back, paths=paths))
    if not copies:
        why = f"no judge checkpoint has copy_of = '{explained.subject.name}'"
        notes.append(NotComputed(what="flips shared by a copy", why=why, paths=["counterfactuals.nafr"]))
    return notes


def _mean(values: Tensor | None) -> float | None:
    return None if values is None else float(values.float().mean())


def _last(found: Counterfactuals, row: int) -> int:
    return found.trace.shape[1] - 1 if found.steps is None else int(found.steps[row])


def _aligned(found: Counterfactuals, row: int) -> Aligned | None:
    if found.aligned_l1 is None or found.aligned_confidence is None or found.aligned_steps is None:
        return None
    return Aligned(
        l1=float(found.aligned_l1[row]),
        confidence=float(found.aligned_confidence[row]),
        steps=int(found.aligned_steps[row]),
    )


def _or_none(value: Tensor) -> float | None:
    return float(value) if value.isfinite() else None


def _perceptual(distance: Tensor, network: Named) -> Perceptual:
    return Perceptual(value=float(distance.mean()), embedding=named(network))
