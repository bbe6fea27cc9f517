"""The stages of an audit in their order; the only place that knows it (the way of the data: config to results)."""

import datetime as dt
import json
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor

from audit.classifiers.classifier import Classifier
from audit.classifiers.load import load_classifier
from audit.classifiers.slices import Slices
from audit.common import embed_with_bar, gather
from audit.config import AuditConfig, load_config, recorded
from audit.data.audit_set import AuditSet
from audit.data.describe import describe, describe_shift
from audit.data.load import calibration_split, load_data, load_shift
from audit.environment import Stopwatch, choose_device
from audit.errors import ConfigError, DataError
from audit.explaining import Calibrated, calibrate, explain_model, invert_queries
from audit.gallery import name_examples, name_maps, name_pictures, save_examples, save_maps, save_pictures
from audit.ground import Ground, load_ground
from audit.inversion.invert import Inversion
from audit.inversion.pivotal import editability
from audit.judges import all_verdicts, classifier_judge, decisions, domain_judge
from audit.measuring import Audited, differences, measure_models, unreliable, unreliable_notices
from audit.memory import limited
from audit.metrics.embedding import named
from audit.metrics.transfer import fit_judge
from audit.queries import Selection, select_queries, source_classes
from audit.ranking import rank_models
from audit.report.build import render_report
from audit.results import (
    AuditResult,
    Components,
    InversionSummary,
    ModelResult,
    NotComputed,
    Notice,
    Perceptual,
)
from audit.scoring import Scored, score_model
from audit.seeds import stage_generator
from audit.store import Store, atomic_write_text, staged_output

CALIBRATION_PER_CLASS = 4000
"""Most calibration images a class is learnt from: more change nothing that matters and cost memory."""
SPARE = 12
"""One query image more is inverted for this many asked for."""


def run_audit(
    config: AuditConfig | str | Path, out: str | Path | None = None, cache: str | Path | None = None
) -> AuditResult:
    """Run a whole audit and return its results.

    `config` is a configuration or the path of its TOML file. With `out`, `results.json`, the images and `report.html`
    are written into that folder - all or nothing; without it nothing is written and the image paths in the results
    name no files. `cache` is a folder in which inversions and counterfactuals are kept for later runs. Raises
    AuditError (one sentence: what, where, how to mend) for whatever the caller can mend.
    """
    if isinstance(config, AuditConfig):
        base, settings = Path.cwd(), config
    else:
        base, settings = Path(config).resolve().parent, load_config(config)
    store = None if cache is None else _open_store(Path(cache).expanduser())
    with limited(settings.max_memory), staged_output(Path(out)) if out is not None else nullcontext() as folder:
        result = _run(settings, base, folder, store)
    return result


def _open_store(root: Path) -> Store:
    try:
        root.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=root):
            pass
    except OSError as error:
        raise ConfigError(f"Cache folder '{root}' cannot be written ({error.strerror}): name another one.") from None
    return Store(root)


def _run(config: AuditConfig, base: Path, folder: Path | None, store: Store | None) -> AuditResult:
    watch = Stopwatch()
    device = choose_device(config.device)
    with watch.stage("data"):
        data = load_data(config.data, config.seed)
        audited_set = data.split(config.data.audit_split)
        calibration = None
        # Said before the long stages begin: a wrong split or class name should not cost an hour.
        if config.generator is not None or config.robustness.vulnerability is not None:
            calibration = _capped(data.split(calibration_split(config.data, data)), config.seed)
        if config.generator is not None:
            source_classes(config.queries, data.class_names)
        usual = None if calibration is None else calibration_split(config.data, data)
        described = describe(data, config.data.audit_split, usual)
        if config.data.shift is not None:
            described.notices.extend(describe_shift(load_shift(config.data, config.seed, audited_set)))
    with watch.stage("classifiers"):
        classifiers = [load_classifier(c, data.image_shape, data.class_names).to(device) for c in config.classifiers]
        for classifier in classifiers:
            classifier.slices = Slices(classifier.name, config.max_memory)
        ground = None if config.generator is None else load_ground(config, data, device)
    calibrated: list[Calibrated] = []
    if ground is not None and calibration is not None:
        with watch.stage("calibration"):
            calibrated = [calibrate(c, calibration, config, device) for c in classifiers]
    models = measure_models(classifiers, audited_set, calibration, config, store, watch, device)
    result = AuditResult(
        name=config.name,
        created=dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        complete=True,
        config=recorded(config, base),
        seed=config.seed,
        classes=list(data.class_names),
        data={
            "source": Path(config.data.path).name,
            "images": len(data),
            "audited": len(audited_set),
            "shape": list(data.image_shape),
        },
        data_read=described.read,
        notices=[*described.notices, *(notice for m in models for notice in unreliable_notices(m))],
        models=[_model_result(m) for m in models],
        differences=differences(models, config.seed),
        environment=watch.environment(device),
    )
    if ground is None or calibration is None:
        result.not_computed.append(
            NotComputed(what="counterfactuals, index and ranking", why="the configuration names no generator")
        )
    else:
        _explain_all(config, ground, models, calibrated, audited_set, calibration, result, folder, store, watch, device)
    result.notices += _divided(classifiers)
    name_maps(result, [m.maps for m in models], audited_set.row_ids)
    name_examples(result, [m.examples for m in models])
    if folder is not None:
        save_examples(result, [m.examples for m in models], folder)
        save_maps(result, [m.maps for m in models], audited_set, folder)
    result.environment = watch.environment(device)
    if folder is not None:
        text = json.dumps(result.model_dump(mode="json"), indent=1, allow_nan=False)
        atomic_write_text(folder / "results.json", text)
        with watch.stage("report"):
            render_report(folder / "results.json")
    return result


def _capped(calibration: AuditSet, seed: int) -> AuditSet:
    """At most CALIBRATION_PER_CLASS images of every class, drawn by `seed`."""
    labels = calibration.row_labels
    order = torch.randperm(len(labels), generator=stage_generator(seed, "calibration"))
    rows = [order[labels[order] == c][:CALIBRATION_PER_CLASS] for c in range(len(calibration.class_names))]
    return calibration.select(torch.cat(rows).sort().values)


def _divided(classifiers: Sequence[Classifier]) -> list[Notice]:
    """Say of which classifiers batches were divided to bound the memory."""
    said = {c.name: None if c.slices is None else c.slices.said() for c in classifiers}
    return [Notice(subject=name, kind="memory", text=text) for name, text in said.items() if text is not None]


def _model_result(model: Audited) -> ModelResult:
    return ModelResult(
        name=model.classifier.name,
        rank=None,
        index=None,
        index_interval=None,
        components=Components(),
        weights_sha256=model.classifier.weights_sha256,
        source=model.classifier.source,
        input=model.classifier.input,
        clean=model.clean,
        robust=model.robust,
        unreliable=unreliable(model),
        not_computed=list(model.not_computed),
    )


def _explain_all(
    config: AuditConfig, ground: Ground, models: list[Audited], calibrated: list[Calibrated], audited: AuditSet,
    calibration: AuditSet, result: AuditResult, folder: Path | None, store: Store | None, watch: Stopwatch,
    device: torch.device,
) -> None:  # fmt: skip
    """Query images, inversion, counterfactuals, metrics, ranking and pictures; fills `result`."""
    result.generator_sha256 = ground.loaded.sha256
    result.encoder_sha256 = ground.encoder_sha256
    result.realism_embedding = result.perceptual_embedding = named(ground.network)
    result.not_computed += ground.missing
    result.notices += ground.notices
    with watch.stage("inversion"):
        rows, indices, inversion = _queries(config, ground, models, audited, result, store, device)
    queries, labels = rows.images(), rows.row_labels
    explained = []
    for model, known in zip(models, calibrated, strict=True):
        with watch.stage("counterfactuals"):
            made = explain_model(
                model.classifier,
                known,
                config,
                ground,
                queries,
                labels,
                model.logits[indices],
                inversion,
                store,
                device,
            )
            explained.append(made)
    targets = [e.targets for e in explained]
    if any(not torch.equal(targets[0], other) for other in targets[1:]):
        result.not_computed.append(
            NotComputed(
                what="distribution metrics and realism at one n and target for all models",
                why=f"with queries.target = '{config.queries.target}' models were asked for different target classes; "
                "name a fixed target class to compare them exactly",
            )
        )
    with watch.stage("metrics"):
        embedded = embed_with_bar(ground.network, calibration, device, "embedding calibration images")
        asked = sorted({int(t) for one in targets for t in one.unique()})
        common = gather(rows, queries, inversion, calibration, embedded, asked, ground, config.seed, device)
        domain = fit_judge(ground.network.name, embedded, calibration.row_labels)
        judges = [classifier_judge(m.classifier, m.clean.accuracy.value or 0.0, device) for m in models]
        real = embed_with_bar(ground.network, audited, device, "embedding audited images")
        judges.append(domain_judge(domain, ground.network, real, audited.row_labels, device))
        verdicts = all_verdicts(
            [m.classifier for m in models], judges, [e.found.images for e in explained], targets, queries, labels,
            inversion.images, config.seed, device,
        )  # fmt: skip
        scored = [
            score_model(m.classifier.name, common, e.found, e.targets, e.operating_point, v, config)
            for m, e, v in zip(models, explained, verdicts, strict=True)
        ]
        if ground.lpips is not None:
            for one, made in zip(scored, explained, strict=True):
                one.summary.lpips = Perceptual(
                    value=float(ground.lpips.distance_all(made.found.images, inversion.images).mean()),
                    embedding=named(ground.lpips),
                )
    with watch.stage("ranking"):
        _rank(result, scored, config)
    result.inversion = _inversion_summary(inversion, ground, config, device)
    name_pictures(result, common, inversion)
    if folder is not None:
        save_pictures(result, common, [e.found for e in explained], folder)


def _queries(
    config: AuditConfig, ground: Ground, models: list[Audited], audited: AuditSet, result: AuditResult,
    store: Store | None, device: torch.device,
) -> tuple[AuditSet, Tensor, Inversion]:  # fmt: skip
    """Choose the query images and invert them: the rows, their positions in the audit split, their inversions.

    A few more than asked for are inverted, to replace those that a model decides otherwise after inversion alone: they
    would count as counterfactuals without an edit.
    """
    wanted = config.queries.n
    spare = config.queries.model_copy(update={"n": wanted + max(2, wanted // SPARE)})
    predicted = {m.classifier.name: m.predicted for m in models}
    chosen = select_queries(audited.row_labels, predicted, spare, audited.class_names, config.seed)
    result.queries_asked = wanted
    for row in result.models:
        row.left_out = chosen.left_out[row.name]
    if len(chosen.indices) < 2:
        raise DataError(_too_few(chosen, models))
    rows = audited.select(chosen.indices)
    inversion = invert_queries(config, ground, rows.images(), store, device)
    stable = torch.ones(len(rows), dtype=torch.bool)
    for model, row in zip(models, result.models, strict=True):
        same = decisions(model.classifier, inversion.images, device) == rows.row_labels
        row.left_out_by_inversion = int((~same).sum())
        stable &= same
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


def _too_few(chosen: Selection, models: list[Audited]) -> str:
    counts = ", ".join(f"{m.classifier.name} misses {sum(chosen.left_out[m.classifier.name].values())}" for m in models)
    return (
        f"Only {len(chosen.indices)} image(s) of the source classes are classified correctly by all models ({counts}): "
        "audit more images, set queries.classes, or leave a model out."
    )


def _rank(result: AuditResult, scored: list[Scored], config: AuditConfig) -> None:
    ranking = rank_models([one.scores for one in scored], config.ranking, config.seed)
    for row, one, place in zip(result.models, scored, ranking.models, strict=True):
        row.rank, row.index, row.index_interval = place.rank, place.index, place.interval
        row.components, row.component_intervals = place.components, place.component_intervals
        row.counterfactuals, row.queries = one.summary, one.rows
        row.not_computed += [*one.not_computed, *place.not_computed]
    result.comparisons = ranking.comparisons
    result.not_computed += ranking.not_computed


@torch.no_grad()
def _editability(inversion: Inversion, ground: Ground, config: AuditConfig, device: torch.device) -> float | None:
    """Mean over the images of `pivotal.editability`; None where no weights were tuned."""
    if not inversion.deltas:
        return None
    parts = []
    for rows in torch.arange(len(inversion.pivots)).split(config.inversion.batch_size):
        deltas = {name: values[rows].to(device) for name, values in inversion.deltas.items()}
        parts.append(editability(ground.loaded.generator, inversion.pivots[rows].to(device), deltas, config.seed).cpu())
    return float(torch.cat(parts).mean())


def _inversion_summary(
    inversion: Inversion, ground: Ground, config: AuditConfig, device: torch.device
) -> InversionSummary:
    def mean(values: Tensor | None) -> float | None:
        return None if values is None else float(values.mean())

    perceptual = mean(inversion.perceptual)
    return InversionSummary(
        method=inversion.method,
        n=len(inversion.images),
        mse=float(inversion.mse.mean()),
        mse_max=float(inversion.mse.max()),
        encoder_mse=mean(inversion.encoder_mse),
        pivot_mse=mean(inversion.pivot_mse),
        editability=_editability(inversion, ground, config, device),
        perceptual=None if perceptual is None else Perceptual(value=perceptual, embedding=named(ground.network)),
    )
