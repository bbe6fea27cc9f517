"""The stages of an audit in their order; the only place that knows it (the way of the data: config to results)."""

import datetime as dt
import json
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from audit.classifiers.classifier import Classifier, weights_hash
from audit.classifiers.load import load_classifier
from audit.config import AuditConfig, load_config, recorded
from audit.data.audit_set import AuditSet
from audit.data.load import calibration_split, load_data
from audit.environment import Stopwatch, choose_device
from audit.errors import DataError
from audit.explaining import Explained, explain_model, invert_queries
from audit.ground import Ground, load_ground
from audit.inversion.invert import Inversion
from audit.judges import all_verdicts, classifier_judge, decisions, domain_judge
from audit.metrics.edit import edit_map
from audit.metrics.embedding import embed_all
from audit.metrics.transfer import fit_judge
from audit.pictures import file_names, folder_name, save_edit, save_image, save_mask
from audit.queries import Selection, select_queries, source_classes
from audit.ranking import rank_models
from audit.report.build import render_report
from audit.results import (
    AuditResult,
    Clean,
    Components,
    Embedding,
    InversionSummary,
    ModelResult,
    NotComputed,
    Perceptual,
    Query,
    Robust,
)
from audit.robustness.evaluate import clean_of_logits, predict, robust_accuracy
from audit.scoring import Common, RealTargets, Scored, named, score_model
from audit.seeds import stage_generator
from audit.store import Store, atomic_write_text, staged_output

REAL_TARGETS = 1000
"""Most real images of a target class that distributions and nearest neighbours are taken from."""


@dataclass
class Audited:
    """One classifier on its way through the stages."""

    classifier: Classifier
    logits: Tensor
    clean: Clean
    robust: Robust

    @property
    def predicted(self) -> Tensor:
        return self.logits.argmax(1)


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
    store = None if cache is None else Store(Path(cache).expanduser())
    with staged_output(Path(out)) if out is not None else nullcontext() as folder:
        result = _run(settings, base, folder, store)
    return result


def _run(config: AuditConfig, base: Path, folder: Path | None, store: Store | None) -> AuditResult:
    watch = Stopwatch()
    device = choose_device(config.device)
    with watch.stage("data"):
        data = load_data(config.data, config.seed)
        audited_set = data.split(config.data.audit_split)
        calibration = None
        if config.generator is not None:
            # Said before the long stages begin: a wrong split or class name should not cost an hour.
            calibration = data.split(calibration_split(config.data, data))
            source_classes(config.queries, data.class_names)
    with watch.stage("classifiers"):
        classifiers = [load_classifier(c, data.image_shape, data.class_names).to(device) for c in config.classifiers]
        ground = None if config.generator is None else load_ground(config, data, device)
    models = [_measure(c, audited_set, config, watch, device) for c in classifiers]
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
        models=[_model_result(m) for m in models],
        environment=watch.environment(device),
    )
    if ground is None or calibration is None:
        result.not_computed.append(
            NotComputed(what="counterfactuals, index and ranking", why="the configuration names no generator")
        )
    else:
        _explain_all(config, ground, models, audited_set, calibration, result, folder, store, watch, device)
    result.environment = watch.environment(device)
    if folder is not None:
        text = json.dumps(result.model_dump(mode="json"), indent=1, allow_nan=False)
        atomic_write_text(folder / "results.json", text)
        with watch.stage("report"):
            render_report(folder / "results.json")
    return result


def _measure(
    classifier: Classifier, audited: AuditSet, config: AuditConfig, watch: Stopwatch, device: torch.device
) -> Audited:
    with watch.stage("clean accuracy"):
        logits = predict(classifier, audited, config.robustness.batch_size, device)
        clean = clean_of_logits(logits, audited.row_labels, audited.class_names)
    with watch.stage("robust accuracy"):
        robust = robust_accuracy(classifier, audited, config.robustness, config.seed, f"PGD {classifier.name}")
    return Audited(classifier, logits, clean, robust)


def _model_result(model: Audited) -> ModelResult:
    return ModelResult(
        name=model.classifier.name,
        rank=None,
        index=None,
        index_interval=None,
        components=Components(),
        weights_sha256=model.classifier.weights_sha256,
        source=model.classifier.source,
        clean=model.clean,
        robust=model.robust,
    )


def _real_targets(
    calibration: AuditSet, targets: list[int], ground: Ground, config: AuditConfig, device: torch.device
) -> dict[int, RealTargets]:
    found = {}
    labels = calibration.row_labels
    for target in targets:
        rows = (labels == target).nonzero()[:, 0]
        if len(rows) == 0:
            raise DataError(
                f"The calibration split of {calibration.source} has no image of the target class "
                f"'{calibration.class_names[target]}': add some or choose another target."
            )
        order = torch.randperm(len(rows), generator=stage_generator(config.seed, f"real targets/{target}"))
        images = calibration.images(rows[order[:REAL_TARGETS]])
        found[target] = RealTargets(
            calibration.class_names[target], images, embed_all(ground.network, images, 256, device)
        )
    return found


def _explain_all(
    config: AuditConfig, ground: Ground, models: list[Audited], audited: AuditSet, calibration: AuditSet,
    result: AuditResult, folder: Path | None, store: Store | None, watch: Stopwatch, device: torch.device,
) -> None:  # fmt: skip
    """Query images, inversion, counterfactuals, metrics, ranking and pictures; fills `result`."""
    result.generator_sha256 = ground.loaded.sha256
    result.encoder_sha256 = None if ground.encoder is None else weights_hash(ground.encoder.state_dict())
    result.realism_embedding = result.perceptual_embedding = named(ground.network)
    result.not_computed += ground.missing
    predicted = {m.classifier.name: m.predicted for m in models}
    chosen = select_queries(audited.row_labels, predicted, config.queries, audited.class_names, config.seed)
    result.queries_asked = config.queries.n
    for row in result.models:
        row.left_out = chosen.left_out[row.name]
    if len(chosen.indices) < 2:
        raise DataError(_too_few(chosen, models))
    if len(chosen.indices) < config.queries.n:
        result.not_computed.append(
            NotComputed(
                what=f"{config.queries.n - len(chosen.indices)} of {config.queries.n} query images",
                why="the audit split has no more images of the source classes that all models classify correctly",
            )
        )
    rows = audited.select(chosen.indices)
    with watch.stage("inversion"):
        inversion = invert_queries(config, ground, rows.images(), store, device)
    kept = _kept_by_inversion(models, rows.row_labels, inversion, device)
    if len(kept) < len(rows):
        result.not_computed.append(
            NotComputed(
                what=f"counterfactuals of {len(rows) - len(kept)} query images",
                why="a model decides otherwise on their inversion already, so that nothing is left to be edited",
            )
        )
    if len(kept) < 2:
        raise DataError(
            f"The models keep their decision on {len(kept)} of {len(rows)} inverted query images: the inversions (mean "
            f"squared error {float(inversion.mse.mean()):.2g}) are too poor; train the generator longer."
        )
    rows, inversion = rows.select(kept), inversion.select(kept)
    queries, labels = rows.images(), rows.row_labels
    explained = []
    for model in models:
        with watch.stage("counterfactuals"):
            logits = model.logits[chosen.indices[kept]]
            explained.append(
                explain_model(
                    model.classifier, config, ground, queries, labels, logits, inversion, calibration, store, device
                )
            )
    with watch.stage("metrics"):
        names = ["region", *(r for r in rows.regions if r != "region")] if rows.regions else []
        targets = sorted({int(t) for e in explained for t in e.targets.unique()})
        common = Common(
            ids=rows.row_ids,
            labels=labels,
            queries=queries,
            inversions=inversion.images,
            embedded_inversions=embed_all(ground.network, inversion.images, 256, device),
            regions={name: rows.region(name) for name in names},
            real=_real_targets(calibration, targets, ground, config, device),
            network=ground.network,
            canonical=ground.inception,
            class_names=audited.class_names,
            device=device,
        )
        embedded = embed_all(ground.network, calibration, 256, device)
        domain = fit_judge(ground.network.name, embedded, calibration.row_labels)
        judges = [classifier_judge(m.classifier, m.clean.accuracy.value or 0.0, device) for m in models]
        audited_embedded = embed_all(ground.network, audited, 256, device)
        judges.append(domain_judge(domain, ground.network, audited_embedded, audited.row_labels, device))
        verdicts = all_verdicts(
            [m.classifier for m in models],
            judges,
            [e.found.images for e in explained],
            [e.targets for e in explained],
            queries,
            labels,
            inversion.images,
            config.seed,
            device,
        )
        scored = [
            score_model(m.classifier.name, common, e.found, e.targets, e.operating_point, v, config)
            for m, e, v in zip(models, explained, verdicts, strict=True)
        ]
        if ground.lpips is not None:
            for one, made in zip(scored, explained, strict=True):
                one.summary.lpips = Perceptual(
                    value=float(ground.lpips.distance_all(made.found.images, inversion.images).mean()),
                    embedding=Embedding(name=ground.lpips.name, weights_sha256=ground.lpips.weights_sha256),
                )
    with watch.stage("ranking"):
        _rank(result, scored, config)
    result.inversion = _inversion_summary(inversion, ground)
    _name_pictures(result, common, inversion)
    if folder is not None:
        _save_pictures(result, common, inversion, explained, folder)


def _kept_by_inversion(models: list[Audited], labels: Tensor, inversion: Inversion, device: torch.device) -> Tensor:
    """Positions of the images whose inversion every model still assigns to their label.

    An inversion that has flipped on its own would count as a counterfactual without any edit.
    """
    kept = torch.ones(len(labels), dtype=torch.bool)
    for model in models:
        kept &= decisions(model.classifier, inversion.images, device) == labels
    return kept.nonzero()[:, 0]


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


def _inversion_summary(inversion: Inversion, ground: Ground) -> InversionSummary:
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
        perceptual=None if perceptual is None else Perceptual(value=perceptual, embedding=named(ground.network)),
    )


def _name_pictures(result: AuditResult, common: Common, inversion: Inversion) -> None:
    """List the queries in the results and name every picture, relative to the results' folder."""
    files = file_names(common.ids)
    for i, name in enumerate(files):
        result.queries.append(
            Query(
                id=common.ids[i],
                label=common.class_names[int(common.labels[i])],
                image=f"images/queries/{name}.png",
                inversion_image=f"images/queries/{name}-inversion.png",
                region_images={r: f"images/queries/{name}-{r}.png" for r, m in common.regions.items() if m[i].any()},
                inversion_mse=float(inversion.mse[i]),
                inversion_perceptual=None if inversion.perceptual is None else float(inversion.perceptual[i]),
            )
        )
    for position, model in enumerate(result.models):
        base = f"images/{folder_name(model.name, position)}"
        for name, row in zip(files, model.queries, strict=True):
            row.counterfactual_image = f"{base}/{name}-counterfactual.png"
            row.semifactual_image = f"{base}/{name}-semifactual.png"
            row.edit_image = f"{base}/{name}-edit.png"


def _save_pictures(
    result: AuditResult, common: Common, inversion: Inversion, explained: list[Explained], folder: Path
) -> None:
    for i, query in enumerate(result.queries):
        save_image(common.queries[i], folder / query.image)
        save_image(inversion.images[i], folder / query.inversion_image)
        for region, path in query.region_images.items():
            save_mask(common.regions[region][i], folder / path)
    for model, one in zip(result.models, explained, strict=True):
        edits = edit_map(one.found.images, inversion.images)
        for i, row in enumerate(model.queries):
            save_image(one.found.images[i], folder / str(row.counterfactual_image))
            save_image(one.found.semifactuals[i], folder / str(row.semifactual_image))
            save_edit(edits[i], folder / str(row.edit_image))
