"""An audit's second half: query images, inversion, counterfactuals, their scores and the ranking of the models.

A model that fails on the way is marked and left out; the others complete, on the query images that were chosen.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from audit.config import AuditConfig
from audit.counterfactual.methods import ChosenMethod
from audit.counterfactual.protocol import Counterfactuals
from audit.data.audit_set import AuditSet
from audit.embeddings.embedding import named
from audit.errors import ClassifierError, DataError, ModelFault
from audit.inversion.invert import Inversion
from audit.inversion.pivotal import editability
from audit.metrics.transfer import Verdicts, fit_judge
from audit.pipeline.explain import Calibrated, Explained, explain_model, invert_queries
from audit.pipeline.networks import Networks, judged_by_steering
from audit.pipeline.pictures import name_pictures
from audit.pipeline.queries import Selection, select_queries, source_classes
from audit.pipeline.rank import rank_models
from audit.pipeline.robustness import Audited, still_there
from audit.pipeline.score import Scored, score_model
from audit.pipeline.shared import Common, embed_with_bar, gather
from audit.pipeline.transfer import all_verdicts, classifier_judge, decisions, domain_judge
from audit.results import AuditResult, Failure, InversionSummary, ModelResult, NotComputed, Perceptual
from audit.runtime.environment import Stopwatch
from audit.runtime.faults import kept_apart
from audit.storage.cache import Store

SPARE = 12
"""One query image more is inverted for this many asked for."""

T = TypeVar("T")


@dataclass(frozen=True)
class Run:
    """What every stage of one audit stands on."""

    config: AuditConfig
    networks: Networks
    audited: AuditSet
    calibration: AuditSet
    store: Store | None
    method: ChosenMethod
    watch: Stopwatch
    device: torch.device


@dataclass(frozen=True)
class Explanation:
    """What the pictures are drawn from: the shared images, and every model's counterfactuals by its name."""

    common: Common
    made: dict[str, Counterfactuals]


def explain_all(
    run: Run, models: Sequence[Audited], calibrated: dict[str, Calibrated], result: AuditResult
) -> Explanation:
    """Explain, score and rank `models` (those that have not failed) and fill `result`; names the pictures.

    Raises DataError if too few query images are left, and ClassifierError if no model is.
    """
    networks, watch, device = run.networks, run.watch, run.device
    result.generator_sha256 = networks.loaded.sha256
    result.generator_package = networks.loaded.package
    result.encoder_sha256 = networks.encoder_sha256
    result.realism_embedding, result.perceptual_embedding = named(networks.embedding), named(networks.perceptual)
    result.realism_kernel = run.config.metrics.realism_kernel
    result.judged_by_steering = judged_by_steering(run.config, networks)
    result.not_computed += networks.missing
    result.notices += networks.notices
    with watch.stage("inversion"):
        rows, indices, inversion = _queries(run, models, result)
    queries, labels = rows.images(), rows.row_labels
    explained: dict[str, Explained] = {}
    for model in still_there(models):
        with watch.stage("counterfactuals"), kept_apart(model, "counterfactuals"):
            explained[model.name] = explain_model(
                model.classifier,
                calibrated[model.name],
                run.config,
                networks,
                queries,
                labels,
                model.answers[indices],
                inversion,
                run.store,
                run.method,
            )
    _somebody(models)
    _note_targets(run.config, [one.targets for one in explained.values()], result)
    with watch.stage("metrics"):
        embedded = embed_with_bar(networks.embedding, run.calibration, device, "embedding calibration images")
        asked = sorted({int(t) for one in explained.values() for t in one.targets.unique()})
        common = gather(rows, queries, inversion, run.calibration, embedded, asked, networks, run.config.seed, device)
        verdicts = _without_faults(models, lambda there: _verdicts(run, there, explained, common, embedded))
        scored: dict[str, Scored] = {}
        for model in still_there(models):
            one = explained[model.name]
            with kept_apart(model, "metrics"):
                scored[model.name] = score_model(
                    model.name, common, one.found, one.targets, one.operating_point, verdicts[model.name], run.config
                )
                scored[model.name].summary.method = run.method.name
                scored[model.name].summary.method_package = run.method.package
                if networks.lpips is not None:
                    scored[model.name].summary.lpips = Perceptual(
                        value=float(networks.lpips.distance_all(one.found.images, inversion.images).mean()),
                        embedding=named(networks.lpips),
                    )
    there = _somebody(models)
    with watch.stage("ranking"):
        _rank(result, [scored[model.name] for model in there], run.config)
    result.inversion = _inversion_summary(run, inversion)
    name_pictures(result, common, inversion)
    return Explanation(common, {model.name: explained[model.name].found for model in there})


def _somebody(models: Sequence[Audited]) -> list[Audited]:
    there = still_there(models)
    if not there:
        raise ClassifierError("No model is left to be explained: each of them failed, as is told with its name.")
    return there


def _without_faults(models: Sequence[Audited], stage: Callable[[list[Audited]], T]) -> T:
    """Run `stage` on the models that are there, and again without the one whose network fails in it."""
    while True:
        there = _somebody(models)
        try:
            return stage(there)
        except ModelFault as fault:
            faulty = [model for model in there if model.name == fault.model]
            if not faulty:
                raise
            faulty[0].failed = Failure(stage="metrics", why=str(fault))


def _verdicts(
    run: Run, models: Sequence[Audited], explained: dict[str, Explained], common: Common, embedded: Tensor
) -> dict[str, list[Verdicts]]:
    """What the judges of every model say: the other models, and a predictor in the domain embedding."""
    network, device = run.networks.embedding, run.device
    domain = fit_judge(network.name, embedded, run.calibration.row_labels)
    judges = [classifier_judge(m.classifier, m.clean.accuracy.value or 0.0, device) for m in models]
    real = embed_with_bar(network, run.audited, device, "embedding audited images")
    judges.append(domain_judge(domain, network, real, run.audited.row_labels, device))
    found = [explained[model.name] for model in models]
    verdicts = all_verdicts(
        [m.classifier for m in models], judges, [e.found.images for e in found], [e.targets for e in found],
        common.queries, common.labels, common.inversions, run.config.seed, device,
    )  # fmt: skip
    return {model.name: one for model, one in zip(models, verdicts, strict=True)}


def _note_targets(config: AuditConfig, targets: Sequence[Tensor], result: AuditResult) -> None:
    if any(not torch.equal(targets[0], other) for other in targets[1:]):
        result.not_computed.append(
            NotComputed(
                what="distribution metrics and realism at one n and target for all models",
                why=f"with queries.target = '{config.queries.target}' models were asked for different target classes; "
                "name a fixed target class to compare them exactly",
            )
        )


def _queries(run: Run, models: Sequence[Audited], result: AuditResult) -> tuple[AuditSet, Tensor, Inversion]:
    """Choose the query images and invert them: the rows, their positions in the audit split, their inversions.

    A few more than asked for are inverted, to replace those that a model decides otherwise after inversion alone: they
    would count as counterfactuals without an edit.
    """
    wanted = run.config.queries.n
    rows_of = {row.name: row for row in result.models}
    chosen = _select(run, models, rows_of)
    there = _somebody(models)
    result.queries_asked = wanted
    if len(chosen.indices) < 2:
        raise DataError(_too_few(chosen, there))
    rows = run.audited.select(chosen.indices)
    inversion = invert_queries(run.config, run.networks, rows.images(), run.store, run.device)
    stable = torch.ones(len(rows), dtype=torch.bool)
    for model in there:
        with kept_apart(model, "inversion"):
            same = decisions(model.classifier, inversion.images, run.device) == rows.row_labels
            rows_of[model.name].left_out_by_inversion = int((~same).sum())
            stable &= same
    _somebody(models)
    kept = stable.nonzero()[:wanted, 0]
    if len(kept) < 2:
        raise DataError(
            f"The models keep their decision on {len(kept)} of {len(rows)} inverted query images: the inversions (mean "
            f"squared error {float(inversion.mse.mean()):.2g}) are too poor; train the generator longer."
        )
    if len(kept) < wanted:
        result.not_computed.append(
            NotComputed(
                what=f"counterfactuals of {wanted - len(kept)} of {wanted} query images",
                why="the audit split has no more images of the source classes that all models classify correctly, as "
                "they are and as inversions",
            )
        )
    return rows.select(kept), chosen.indices[kept], inversion.select(kept)


def _select(run: Run, models: Sequence[Audited], rows: dict[str, ModelResult]) -> Selection:
    """Choose the images that all models classify correctly, but for a model that gets none of them right."""
    config, audited = run.config.queries, run.audited
    spare = config.model_copy(update={"n": config.n + max(2, config.n // SPARE)})
    labels, there = audited.row_labels, _somebody(models)
    candidates = torch.isin(labels, torch.tensor(source_classes(config, audited.class_names)))
    blind = [m for m in there if not bool((m.predicted[candidates] == labels[candidates]).any())]
    if len(blind) < len(there):
        for model in blind:
            model.failed = Failure(
                stage="query images",
                why=f"Classifier '{model.name}' gets none of the {int(candidates.sum())} images of the source classes "
                "right, so that there is nothing to explain: check the order of its classes and its mean and std.",
            )
    predicted = {m.name: m.predicted for m in still_there(models)}
    chosen = select_queries(labels, predicted, spare, audited.class_names, run.config.seed)
    for name, counts in chosen.left_out.items():
        rows[name].left_out = counts
    return chosen


def _too_few(chosen: Selection, models: Sequence[Audited]) -> str:
    counts = ", ".join(f"{m.name} misses {sum(chosen.left_out[m.name].values())}" for m in models)
    return (
        f"Only {len(chosen.indices)} image(s) of the source classes are classified correctly by all models ({counts}): "
        "audit more images, set queries.classes, or leave a model out."
    )


def _rank(result: AuditResult, scored: list[Scored], config: AuditConfig) -> None:
    ranking = rank_models([one.scores for one in scored], config.ranking, config.seed)
    rows = {row.name: row for row in result.models}
    for one, place in zip(scored, ranking.models, strict=True):
        row = rows[place.name]
        row.rank, row.index, row.index_interval = place.rank, place.index, place.interval
        row.components, row.component_intervals = place.components, place.component_intervals
        row.counterfactuals, row.queries = one.summary, one.rows
        row.not_computed += [*one.not_computed, *place.not_computed]
    result.comparisons = ranking.comparisons
    result.not_computed += ranking.not_computed


def _editability(run: Run, inversion: Inversion) -> float | None:
    """Mean over the images of `pivotal.editability`; None where no weights were tuned."""
    if not inversion.deltas:
        return None
    parts = []
    for rows in torch.arange(len(inversion.pivots)).split(run.config.inversion.batch_size):
        deltas = inversion.deltas.select(rows)
        parts.append(editability(run.networks.loaded.generator, inversion.pivots[rows], deltas, run.config.seed).cpu())
    return float(torch.cat(parts).mean())


def _inversion_summary(run: Run, inversion: Inversion) -> InversionSummary:
    def mean(values: Tensor | None) -> float | None:
        return None if values is None else float(values.mean())

    perceptual, network = mean(inversion.perceptual), run.networks.perceptual
    return InversionSummary(
        method=inversion.method,
        n=len(inversion.images),
        mse=float(inversion.mse.mean()),
        mse_max=float(inversion.mse.max()),
        encoder_mse=mean(inversion.encoder_mse),
        pivot_mse=mean(inversion.pivot_mse),
        editability=_editability(run, inversion),
        perceptual=None if perceptual is None else Perceptual(value=perceptual, embedding=named(network)),
    )
