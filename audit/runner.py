"""The stages of an audit in their order; the only place that knows it (the way of the data: config to results)."""

import datetime as dt
import json
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, fields
from pathlib import Path

import torch
from torch import Tensor

from audit.classifiers.classifier import Classifier
from audit.classifiers.load import load_classifier
from audit.classifiers.mode import preserve_mode
from audit.config import AuditConfig, load_config
from audit.counterfactual.exceptional import fit_calibration
from audit.counterfactual.iterates import operating_points
from audit.counterfactual.spruce import Counterfactuals, explain
from audit.counterfactual.targets import NOT_EXPLAINED, choose_targets
from audit.data.audit_set import AuditSet
from audit.data.load import calibration_split, load_data
from audit.embedded import path as embedded_path
from audit.environment import Stopwatch, choose_device
from audit.errors import DataError, GeneratorError, MetricError
from audit.generator.features import DiscriminatorFeatures
from audit.generator.load import LoadedGenerator, check_fits, load_generator
from audit.inversion.encoder import load_encoder
from audit.inversion.invert import Inversion, invert
from audit.metrics.canonical import Lpips, available, load_inception, load_lpips
from audit.metrics.edit import edit_map
from audit.metrics.embedding import Embedder, FeatureNetwork, embed_all
from audit.metrics.phantom_factors import load_phantom_factors
from audit.metrics.transfer import Verdicts, fit_judge
from audit.pictures import file_names, folder_name, save_edit, save_image, save_mask
from audit.progress import stage_progress
from audit.queries import Selection, select_queries
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
from audit.robustness.pgd import pgd_attack
from audit.scoring import Common, RealTargets, Scored, judge_images, named, score_model
from audit.seeds import stage_generator
from audit.store import Entry, Store, atomic_write_text, hash_tensor, staged_output

REAL_TARGETS = 1000
"""Most real images of a target class that distributions and nearest neighbours are taken from."""
JUDGE_EPS = 8 / 255
"""Radius of the pixel-space adversarial examples by which a judge's power is measured."""


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


@dataclass(frozen=True)
class Explained:
    """One model's counterfactuals towards its targets."""

    found: Counterfactuals
    targets: Tensor
    operating_point: Tensor


@dataclass(frozen=True)
class Ground:
    """The networks that draw and measure: generator, encoder, embedding, canonical metrics."""

    loaded: LoadedGenerator
    encoder: torch.nn.Module | None
    encoder_sha256: str | None
    network: FeatureNetwork
    inception: list[Embedder]
    lpips: Lpips | None
    missing: list[NotComputed]


def run_audit(
    config: AuditConfig | str | Path, out: str | Path | None = None, cache: str | Path | None = None
) -> AuditResult:
    """Run a whole audit and return its results.

    `config` is a configuration or the path of its TOML file. With `out`, `results.json`, the images and `report.html`
    are written into that folder - all or nothing; without it nothing is written and the image paths in the results
    name no files. `cache` is a folder in which inversions and counterfactuals are kept for later runs. Raises
    AuditError (one sentence: what, where, how to mend) for whatever the caller can mend.
    """
    settings = config if isinstance(config, AuditConfig) else load_config(config)
    store = None if cache is None else Store(Path(cache).expanduser())
    with staged_output(Path(out)) if out is not None else nullcontext() as folder:
        return _run(settings, folder, store)


def _run(config: AuditConfig, folder: Path | None, store: Store | None) -> AuditResult:
    watch = Stopwatch()
    device = choose_device(config.device)
    with watch.stage("data"):
        data = load_data(config.data, config.seed)
        audited_set = data.split(config.data.audit_split)
    with watch.stage("classifiers"):
        classifiers = [load_classifier(c, data.image_shape, data.class_names).to(device) for c in config.classifiers]
        ground = None if config.generator is None else _load_ground(config, data, device)
    models = [_measure(c, audited_set, config, watch, device) for c in classifiers]
    result = AuditResult(
        name=config.name,
        created=dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        complete=True,
        config=config.model_dump(mode="json"),
        seed=config.seed,
        classes=list(data.class_names),
        data={"source": data.source, "images": len(data), "audited": len(audited_set), "shape": list(data.image_shape)},
        models=[_model_result(m) for m in models],
        environment=watch.environment(device),
    )
    if ground is None:
        result.not_computed.append(
            NotComputed(what="counterfactuals, index and ranking", why="the configuration names no generator")
        )
    else:
        calibration = data.split(calibration_split(config.data, data))
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


def _load_ground(config: AuditConfig, data: AuditSet, device: torch.device) -> Ground:
    assert config.generator is not None
    loaded = load_generator(config.generator.path, device)
    check_fits(loaded.generator, data.image_shape)
    encoder, encoder_sha = None, None
    encoder_path = config.inversion.encoder or _encoder_beside(config.generator.path)
    if encoder_path is not None:
        found = load_encoder(encoder_path, loaded.sha256, device)
        encoder, encoder_sha = found.encoder, found.sha256
    missing: list[NotComputed] = []
    inception: list[Embedder] = []
    lpips: Lpips | None = None
    if config.metrics.canonical != "off":
        there = available()
        for key, what in (
            ("inception-v3-fid", "FID in Inception-v3"),
            ("lpips-v0.1-vgg", "LPIPS v0.1 (VGG-16)"),
            ("clip", "CMMD in CLIP ViT-L/14-336"),
        ):
            if isinstance(there[key], str):
                missing.append(NotComputed(what=what, why=str(there[key])))
        if config.metrics.canonical == "require" and len(missing) > 1:
            raise MetricError(f"metrics.canonical is 'require' but {missing[0].what} is not there: {missing[0].why}.")
        if not isinstance(there["inception-v3-fid"], str):
            inception.append(load_inception().to(device))
        if not isinstance(there["lpips-v0.1-vgg"], str):
            lpips = load_lpips("vgg").to(device)
    network = _domain_embedding(config, loaded, device)
    return Ground(loaded, encoder, encoder_sha, network, inception, lpips, missing)


def _encoder_beside(generator: str) -> str | None:
    """The encoder that was shipped or trained with a generator, or None."""
    if generator.startswith("embedded:"):
        name = generator.removeprefix("embedded:")
        return (
            generator
            if embedded_path("generators", name).parents[1].joinpath(f"encoders/{name}.safetensors").is_file()
            else None
        )
    beside = Path(generator).with_name("encoder.safetensors")
    return str(beside) if beside.is_file() else None


def _domain_embedding(config: AuditConfig, loaded: LoadedGenerator, device: torch.device) -> FeatureNetwork:
    """The network that no audited model had a part in (the choice is named in the results)."""
    wanted = config.metrics.embedding
    phantom = config.data.path == "phantom"
    if wanted == "phantom-factors" or (wanted == "auto" and phantom):
        return load_phantom_factors(embedded_path("embeddings", "phantom-factors")).to(device)
    if loaded.discriminator is None:
        raise GeneratorError(
            "The generator file holds no discriminator, whose features are the ground of realism: train the generator "
            "with `spruce-audit train generator`, which stores both."
        )
    return DiscriminatorFeatures(loaded.discriminator)


def _cached(store: Store | None, stage: str, compute: Callable[[], Entry], **inputs: object) -> Entry:
    if store is None:
        return compute()
    return store.get_or_compute(store.key(stage, **inputs), compute)


def _invert(
    config: AuditConfig, ground: Ground, queries: Tensor, store: Store | None, device: torch.device
) -> Inversion:
    """Inversions depend on generator, images and settings only: computed once, shared by all models, kept in the store."""

    def compute() -> Entry:
        with stage_progress("inversion (images)", len(queries)) as advance:
            found = invert(
                ground.loaded.generator, queries.to(device), config.inversion, config.seed, ground.network, ground.encoder,
                advance,
            )  # fmt: skip
        return found.to_entry()

    entry = _cached(
        store,
        "inversion",
        compute,
        generator=ground.loaded.sha256,
        encoder=ground.encoder_sha256,
        embedding=ground.network.weights_sha256,
        images=queries,
        settings=config.inversion,
        seed=config.seed,
    )
    return Inversion.from_entry(entry)


@torch.no_grad()
def _calibration_features(
    classifier: Classifier, calibration: AuditSet, batch_size: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    features, logits = [], []
    with preserve_mode(classifier), stage_progress(f"calibration {classifier.name}", len(calibration)) as advance:
        for images, _, _ in calibration.batches(batch_size):
            x, y = classifier.features_and_logits(images.to(device))
            features.append(x.cpu())
            logits.append(y.cpu())
            advance(len(images))
    return torch.cat(features), torch.cat(logits)


def _explain_model(
    model: Audited, config: AuditConfig, ground: Ground, queries: Tensor, labels: Tensor, logits: Tensor,
    inversion: Inversion, calibration: AuditSet, store: Store | None, device: torch.device,
) -> Explained:  # fmt: skip
    classifier, generator = model.classifier, ground.loaded.generator

    def compute() -> Entry:
        features, real_logits = _calibration_features(classifier, calibration, config.robustness.batch_size, device)
        decided = real_logits.argmax(1)
        fitted = fit_calibration(
            features, decided, classifier.num_classes, config.counterfactual, classifier.class_names, config.seed,
            classifier.name,
        )  # fmt: skip
        points = operating_points(real_logits.softmax(1), calibration.row_labels, decided)
        targets = choose_targets(
            config.queries.target, logits, labels, classifier.class_names, classifier, generator, inversion,
            config.counterfactual,
        )  # fmt: skip
        assert not bool((targets == NOT_EXPLAINED).any()), "query images of the target class are never selected"
        with stage_progress(f"counterfactuals {classifier.name}", len(queries)) as advance:
            found = explain(
                classifier, generator, inversion, queries, labels, targets, fitted, points, config.counterfactual,
                ground.network, advance,
            )  # fmt: skip
        tensors = {f.name: getattr(found, f.name) for f in fields(Counterfactuals)}
        return Entry(tensors | {"targets": targets, "operating_point": points}, {})

    entry = _cached(
        store,
        "counterfactuals",
        compute,
        classifier=classifier.weights_sha256,
        source=classifier.source,
        mean=classifier.mean,
        std=classifier.std,
        input_shape=list(classifier.input_shape),
        inversion=inversion.images,
        pivots=inversion.pivots,
        images=queries,
        embedding=ground.network.weights_sha256,
        calibration=[calibration.source, hash_tensor(calibration.row_labels), len(calibration)],
        data=config.data,
        settings=config.counterfactual,
        target=config.queries.target,
        seed=config.seed,
    )
    tensors = dict(entry.tensors)
    targets, points = tensors.pop("targets"), tensors.pop("operating_point")
    return Explained(Counterfactuals(**tensors), targets, points)


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


def _adversarial(
    models: list[Audited], queries: Tensor, labels: Tensor, config: AuditConfig, device: torch.device
) -> dict[str, Tensor]:
    """Pixel-space adversarial examples of the query images against each model, for measuring the judges' power."""
    made = {}
    for model in models:
        generator = stage_generator(config.seed, "judges", device)
        made[model.classifier.name] = torch.cat([
            pgd_attack(
                model.classifier, images.to(device), y.to(device), eps=JUDGE_EPS, steps=20, generator=generator
            ).cpu()
            for images, y in zip(queries.split(64), labels.split(64), strict=True)
        ])  # fmt: skip
    return made


@torch.no_grad()
def _decide(classifier: Classifier, images: Tensor, device: torch.device) -> Tensor:
    with preserve_mode(classifier):
        return torch.cat([classifier(part.to(device)).argmax(1).cpu() for part in images.split(128)])


def _all_verdicts(
    models: list[Audited], explained: list[Explained], config: AuditConfig, ground: Ground, queries: Tensor,
    labels: Tensor, inversions: Tensor, audited: AuditSet, calibration: AuditSet, device: torch.device,
) -> list[list[Verdicts]]:  # fmt: skip
    """Per model the verdicts of all judges that had no part in making its counterfactuals."""
    adversarial = _adversarial(models, queries, labels, config, device)
    fooled = {m.classifier.name: _decide(m.classifier, adversarial[m.classifier.name], device) for m in models}
    embedded = embed_all(ground.network, calibration, 256, device)
    domain = fit_judge(ground.network.name, embedded, calibration.row_labels)
    real = domain.predict(embed_all(ground.network, audited, 256, device))
    judges: list[tuple[str, float, Callable[[Tensor], Tensor]]] = [
        (
            m.classifier.name,
            float((m.predicted == audited.row_labels).float().mean()),
            lambda images, c=m.classifier: _decide(c, images, device),
        )
        for m in models
    ]
    judges.append(
        (
            domain.name,
            float((real == audited.row_labels).float().mean()),
            lambda images: judge_images(domain, ground.network, images, device),
        )
    )
    verdicts: list[list[Verdicts]] = [[] for _ in models]
    for name, accuracy, decide in judges:
        on_inversions = decide(inversions)
        rejected: list[Tensor] = []
        for model, target in zip(models, (e.targets for e in explained), strict=True):
            maker = model.classifier.name
            works = fooled[maker] == target
            if maker != name and bool(works.any()):
                rejected.append(decide(adversarial[maker][works]) != target[works])
        share = float(torch.cat(rejected).float().mean()) if rejected else None
        for position, (model, one) in enumerate(zip(models, explained, strict=True)):
            if model.classifier.name != name:
                verdicts[position].append(Verdicts(name, accuracy, decide(one.found.images), on_inversions, share))
    return verdicts


def _explain_all(
    config: AuditConfig, ground: Ground, models: list[Audited], audited: AuditSet, calibration: AuditSet,
    result: AuditResult, folder: Path | None, store: Store | None, watch: Stopwatch, device: torch.device,
) -> None:  # fmt: skip
    """Query images, inversion, counterfactuals, metrics, ranking and pictures; fills `result`."""
    result.generator_sha256, result.encoder_sha256 = ground.loaded.sha256, ground.encoder_sha256
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
    queries, labels = rows.images(), rows.row_labels
    with watch.stage("inversion"):
        inversion = _invert(config, ground, queries, store, device)
    explained = []
    for model in models:
        with watch.stage("counterfactuals"):
            logits = model.logits[chosen.indices]
            explained.append(
                _explain_model(model, config, ground, queries, labels, logits, inversion, calibration, store, device)
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
        verdicts = _all_verdicts(
            models, explained, config, ground, queries, labels, inversion.images, audited, calibration, device
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
    _pictures(result, common, inversion, explained, folder)


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


def _pictures(
    result: AuditResult, common: Common, inversion: Inversion, explained: list[Explained], folder: Path | None
) -> None:
    """Name every picture in the results and, where there is an output folder, write it."""
    files = file_names(common.ids)
    for i, name in enumerate(files):
        masks = {region: f"images/queries/{name}-{region}.png" for region, m in common.regions.items() if m[i].any()}
        query = Query(
            id=common.ids[i],
            label=common.class_names[int(common.labels[i])],
            image=f"images/queries/{name}.png",
            inversion_image=f"images/queries/{name}-inversion.png",
            region_images=masks,
            inversion_mse=float(inversion.mse[i]),
            inversion_perceptual=None if inversion.perceptual is None else float(inversion.perceptual[i]),
        )
        result.queries.append(query)
        if folder is not None:
            save_image(common.queries[i], folder / query.image)
            save_image(inversion.images[i], folder / query.inversion_image)
            for region, path in masks.items():
                save_mask(common.regions[region][i], folder / path)
    for position, (model, one) in enumerate(zip(result.models, explained, strict=True)):
        base = f"images/{folder_name(model.name, position)}"
        edits = edit_map(one.found.images, inversion.images)
        for i, row in enumerate(model.queries):
            row.counterfactual_image = f"{base}/{files[i]}-counterfactual.png"
            row.semifactual_image = f"{base}/{files[i]}-semifactual.png"
            row.edit_image = f"{base}/{files[i]}-edit.png"
            if folder is not None:
                save_image(one.found.images[i], folder / row.counterfactual_image)
                save_image(one.found.semifactuals[i], folder / row.semifactual_image)
                save_edit(edits[i], folder / row.edit_image)
