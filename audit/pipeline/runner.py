"""The stages of an audit in their order; the only place that knows it (the way of the data: config to results)."""

import datetime as dt
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from audit.classifiers.checkpoint import existing_file
from audit.classifiers.load import load_classifier
from audit.classifiers.slices import Slices
from audit.config import AuditConfig, ClassifierConfig, is_shipped, load_config, note_on_spelling, recorded
from audit.counterfactual.methods import choose_method
from audit.data.audit_set import AuditSet
from audit.data.describe import describe, describe_shift
from audit.data.fingerprint import fingerprint, listing_fingerprint
from audit.data.load import calibration_split, load_data, load_shift
from audit.errors import ClassifierError, ConfigError, Terminated
from audit.generator.readers import READERS
from audit.pipeline.explain import Calibrated, calibrate, check_target
from audit.pipeline.explanation import Explanation, Run, explain_all
from audit.pipeline.first_look import Look, first_looks
from audit.pipeline.networks import check_embeddings, load_networks
from audit.pipeline.pictures import name_examples, name_maps, save_examples, save_maps, save_pictures
from audit.pipeline.queries import source_classes
from audit.pipeline.robustness import (
    Audited,
    differences,
    measure_models,
    model_notices,
    nothing_measured,
    notices_of_answers,
    still_there,
    unreliable,
)
from audit.pipeline.writing import inputs_of, write_audit
from audit.results import MEANINGFULNESS, AuditResult, Components, Failure, ModelResult, NotComputed, Notice, Robust
from audit.robustness.corruptions.run import check_names
from audit.runtime.environment import Stopwatch, choose_device
from audit.runtime.faults import kept_apart, reason, stage_kept
from audit.runtime.memory import limited
from audit.runtime.seeds import stage_generator
from audit.storage.cache import Store
from audit.storage.output import Output, open_output

CALIBRATION_PER_CLASS = 4000
"""Most calibration images a class is learnt from: more change nothing that matters and cost memory."""


def run_audit(
    config: AuditConfig | str | Path, out: str | Path | None = None, cache: str | Path | None = None
) -> AuditResult:
    """Run a whole audit and return its results.

    `config` is a configuration or the path of its TOML file. With `out`, `results.json`, the images and `report.html`
    are written into that folder, which may be new, empty or an earlier audit's: only files that an audit wrote are
    replaced. Without it nothing is written and the image paths in the results name no files. `cache` is a folder in
    which inversions and counterfactuals are kept for later runs. Raises AuditError (one sentence: what, where, how to
    mend) for whatever the caller can mend; of these, `writing.ReportError` holds results that are stored.
    """
    if isinstance(config, AuditConfig):
        base, file, settings = Path.cwd(), None, config
    else:
        base, file, settings = Path(config).resolve().parent, Path(config), load_config(config)
    kept = None if cache is None else Path(cache).expanduser()
    inputs = inputs_of(settings, file, kept)
    with limited(settings.max_memory), open_output(Path(out), inputs) if out is not None else nullcontext() as output:
        return _run(settings, base, output, None if kept is None else _open_store(kept))


def _open_store(root: Path) -> Store:
    try:
        root.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=root):
            pass
    except OSError as error:
        raise ConfigError(f"Cache folder '{root}' cannot be written ({error.strerror}): name another one.") from None
    return Store(root)


def _run(config: AuditConfig, base: Path, output: Output | None, store: Store | None) -> AuditResult:
    watch = Stopwatch()
    device = choose_device(config.device)
    # Said before the long stages begin: a misspelt name or a file that is not there should not cost an hour.
    if config.robustness.corruptions is not None and config.robustness.corruptions.names is not None:
        check_names(config.robustness.corruptions.names)
    check_embeddings(config)
    method = choose_method(config.counterfactual, config.seed)
    if config.generator is not None:
        READERS.get(config.generator.format, "generator.format")
    with watch.stage("data"):
        data = load_data(config.data, config.seed)
        audited_set = data.split(config.data.audit_split)
        calibration = None
        if config.generator is not None or config.robustness.vulnerability is not None:
            calibration = _capped(data.split(calibration_split(config.data, data)), config.seed)
        if config.generator is not None:
            source_classes(config.queries, data.class_names)
        foreign = None if config.data.shift is None else load_shift(config.data, config.seed, audited_set)
        usual = None if calibration is None else calibration_split(config.data, data)
        described = describe(data, config.data.audit_split, usual)
        hashed = fingerprint(audited_set)
        if foreign is not None:
            described.notices.extend(describe_shift(foreign))
    with watch.stage("classifiers"):
        models, unloaded = _load(config, base, data, device)
        networks = None if config.generator is None else load_networks(config, data, device)
    with watch.stage("sanity"):
        looks = first_looks([m.classifier for m in models], config, audited_set, device)
    calibrated: dict[str, Calibrated] = {}
    unexplained: dict[str, Failure] = {}
    if networks is not None and calibration is not None:
        with watch.stage("calibration"):
            calibrated, unexplained = _calibrate(models, calibration, config, device)
    lost = measure_models(models, audited_set, calibration, foreign, config, store, watch, device)
    if not any(model.outcomes for model in models):
        raise ClassifierError(_none_left([*unloaded.values(), *(m.failed for m in models if m.failed is not None)]))
    for model in models:
        model.failed = model.failed or unexplained.get(model.name)
    rows = {m.name: _model_result(m, looks[m.name]) for m in models}
    result = AuditResult(
        name=config.name,
        created=dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        complete=False,
        config=recorded(config, base),
        seed=config.seed,
        classes=list(data.class_names),
        data={
            "source": Path(config.data.path).name,
            "images": len(data),
            "audited": len(audited_set),
            "shape": list(data.image_shape),
            "audited_sha256": hashed,
            **({} if calibration is None else {"calibration_sha256": listing_fingerprint(calibration)}),
        },
        data_read=described.read,
        notices=[
            *_spelling(config),
            *described.notices,
            *(notice for m in models for notice in m.classifier.notices),
            *(notice for look in looks.values() for notice in look.notices),
            *(notice for m in models for notice in (*notices_of_answers(m, audited_set), *model_notices(m))),
        ],
        models=[rows.get(c.name) or _unloaded(c, unloaded[c.name], data.class_names) for c in config.classifiers],
        differences=differences(models, config.seed),
        environment=watch.environment(device),
    )
    explanation: Explanation | None = None
    if networks is None or calibration is None:
        result.not_computed.append(
            NotComputed(
                what="counterfactuals, index and ranking",
                why="the configuration names no generator",
                paths=list(MEANINGFULNESS),
            )
        )
    else:
        run = Run(config, networks, audited_set, calibration, store, method, watch, device)
        with stage_kept("counterfactuals, index and ranking", lost, MEANINGFULNESS):
            explanation = explain_all(run, still_there(models), calibrated, result)
    for model in models:
        row = rows[model.name]
        row.failed = model.failed
        if row.counterfactuals is not None and model.blind is not None:
            row.counterfactuals.untrusted = [model.blind]
    maps = {m.name: m.maps for m in models if m.maps is not None}
    examples = {m.name: m.examples for m in models}
    name_maps(result, maps, audited_set.row_ids)
    name_examples(result, examples)
    result.not_computed += lost
    result.notices += _divided(models)
    result.notices += [Notice(subject="audit", kind="stage-failed", text=f"{n.what}: {n.why}") for n in lost]
    result.complete = not lost and all(m.failed is None for m in result.models)
    result.environment = watch.environment(device)

    def save(folder: Path) -> None:
        if explanation is not None:
            save_pictures(result, explanation.common, explanation.made, folder)
        save_examples(result, examples, folder)
        save_maps(result, maps, audited_set, folder)

    if output is not None:
        write_audit(result, output, save, watch)
    return result


def _load(
    config: AuditConfig, base: Path, data: AuditSet, device: torch.device
) -> tuple[list[Audited], dict[str, Failure]]:
    """Load every classifier; those that cannot be loaded are told by name, and all that is left out raises.

    A file that is not there is a mistake of the configuration, which is said at once.
    """
    for one in config.classifiers:
        _check_files(one)
    models: list[Audited] = []
    failed: dict[str, Failure] = {}
    for one in config.classifiers:
        try:
            classifier = load_classifier(one, data.image_shape, data.class_names, base).to(device)
        except (KeyboardInterrupt, Terminated, ConfigError):
            raise
        except BaseException as error:  # noqa: BLE001 - foreign code may raise anything, SystemExit included
            failed[one.name] = Failure(stage="loading", why=reason(error))
        else:
            classifier.slices = Slices(one.name, config.max_memory)
            models.append(Audited(classifier, nothing_measured(data.class_names)))
    if not models:
        raise ClassifierError(_none_left(list(failed.values())))
    return models, failed


def _check_files(config: ClassifierConfig) -> None:
    """Raise ClassifierError for a file of the configuration that is not there."""
    if config.file is not None:
        existing_file(config.file, "Classifier file")
    if config.checkpoint is not None and not is_shipped(config.checkpoint):
        existing_file(config.checkpoint, "Checkpoint")
    place, _, _ = (config.factory or "").rpartition(":")
    if place.endswith(".py"):
        existing_file(place, "Factory file")


def _spelling(config: AuditConfig) -> list[Notice]:
    """Tell the user which spelling of an earlier version the configuration uses."""
    generator = None if config.generator is None else config.generator.path
    note = note_on_spelling(generator, config.inversion.encoder, *(one.checkpoint for one in config.classifiers))
    return [] if note is None else [Notice(subject="audit", kind="former-spelling", text=note)]


def _none_left(failures: list[Failure]) -> str:
    """Return why nothing could be audited: the first reason, and how many more there are."""
    first, others = failures[0].why, len(failures) - 1
    tail = f" None of the other {others} classifiers could be audited either." if others > 1 else ""
    tail = " The other classifier could not be audited either." if others == 1 else tail
    return f"{first}{tail}"


def _calibrate(
    models: list[Audited], calibration: AuditSet, config: AuditConfig, device: torch.device
) -> tuple[dict[str, Calibrated], dict[str, Failure]]:
    """Learn what is usual for every model; one that cannot be explained is told by name, and measured all the same."""
    found: dict[str, Calibrated] = {}
    for model in models:
        with kept_apart(model, "calibration"):
            found[model.name] = calibrate(model.classifier, calibration, config, device)
            check_target(model.classifier, found[model.name], config.queries.target)
    failed = {model.name: model.failed for model in models if model.failed is not None}
    for model in models:
        model.failed = None
    return {name: one for name, one in found.items() if name not in failed}, failed


def _unloaded(config: ClassifierConfig, failed: Failure, class_names: Sequence[str]) -> ModelResult:
    """Return the row of a model that could not be loaded: its name, its source and the reason."""
    source = config.file or config.factory or config.architecture or config.checkpoint or ""
    return ModelResult(
        name=config.name,
        rank=None,
        index=None,
        index_interval=None,
        components=Components(),
        weights_sha256=None,
        source=source if is_shipped(source) else Path(source).name,
        failed=failed,
        clean=nothing_measured(class_names),
        robust=Robust(),
    )


def _capped(calibration: AuditSet, seed: int) -> AuditSet:
    """At most CALIBRATION_PER_CLASS images of every class, drawn by `seed`."""
    labels = calibration.row_labels
    order = torch.randperm(len(labels), generator=stage_generator(seed, "calibration"))
    rows = [order[labels[order] == c][:CALIBRATION_PER_CLASS] for c in range(len(calibration.class_names))]
    return calibration.select(torch.cat(rows).sort().values)


def _divided(models: Sequence[Audited]) -> list[Notice]:
    """Say of which classifiers batches were divided to bound the memory."""
    slices = {m.name: m.classifier.slices for m in models}
    said = {name: None if one is None else one.said() for name, one in slices.items()}
    return [Notice(subject=name, kind="memory", text=text) for name, text in said.items() if text is not None]


def _model_result(model: Audited, look: Look) -> ModelResult:
    return ModelResult(
        name=model.name,
        rank=None,
        index=None,
        index_interval=None,
        components=Components(),
        weights_sha256=model.classifier.weights_sha256,
        source=model.classifier.source,
        input=model.classifier.input,
        sanity=look.readings,
        clean=model.clean,
        robust=model.robust,
        unreliable=unreliable(model),
        not_computed=list(model.not_computed),
    )
