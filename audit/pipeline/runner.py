"""The stages of an audit in their order; the only place that knows it (the way of the data: config to results)."""

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

from audit.classifiers.containers.table import check_containers
from audit.config import AuditConfig, Effort, allowing_code, load_config, with_baseline
from audit.counterfactual.methods import ChosenMethod, choose_methods
from audit.errors import ConfigError
from audit.generator.readers import READERS
from audit.pipeline.answers import answers_of
from audit.pipeline.assemble import Findings, assemble, save_all
from audit.pipeline.attribution import attribute_models
from audit.pipeline.calibrate import Calibrated, calibrate_models
from audit.pipeline.context import Context
from audit.pipeline.divided import Order, Site, spread
from audit.pipeline.estimate import Estimate, estimate
from audit.pipeline.explain import Subject
from audit.pipeline.first_look import Look, first_looks
from audit.pipeline.images import Images, read_images
from audit.pipeline.label_explanations import explain_labels, rely_on_labels
from audit.pipeline.labels import measure_labels
from audit.pipeline.meaningfulness import explain_models
from audit.pipeline.models import load_models, none_left
from audit.pipeline.networks import Networks, check_embeddings, load_networks
from audit.pipeline.node import set_up_ahead
from audit.pipeline.parts import parts_of_answers, parts_of_models, parts_of_scores, parts_on_batches
from audit.pipeline.queries import inversions_ahead
from audit.pipeline.reliance import measure_reliance
from audit.pipeline.robustness import Robustness, measure_models
from audit.pipeline.writing import check_same_audit, inputs_of, write_audit
from audit.reliance.attribution import check_captum
from audit.reliance.interventions import choose_interventions
from audit.results import AuditResult, Failure
from audit.robustness.attacks.registry import check_attacks
from audit.robustness.corruptions.run import check_names
from audit.runtime.engine import open_engine
from audit.runtime.environment import Stopwatch, choose_device
from audit.runtime.memory import limited
from audit.runtime.progress import is_shown, remark
from audit.storage.cache import Store
from audit.storage.output import Output, open_output


def run_audit(
    config: AuditConfig | str | Path,
    out: str | Path | None = None,
    cache: str | Path | Store | None = None,
    *,
    effort: Effort | None = None,
    baseline: str | Path | None = None,
    overwrite: bool = False,
    allow_code: bool = False,
    share: Literal["minimal"] | None = None,
) -> AuditResult:
    """Run a whole audit and return its results.

    `config` is a configuration or the path of its TOML file; an `effort` comes before the file's. With `out`,
    `results.json`, the images and `report.html` are written into that folder, which may be new, empty or an earlier
    audit's: only files that an audit wrote are replaced, and only by the same configuration unless told to `overwrite`.
    With `share` what may leave the site is written beside them, for `spruce-audit merge`.
    Without `out` nothing is written and the image paths in the results name no files. `cache` is a folder, or a
    store with a bound, that keeps the result of every stage: a run that was killed goes on where it was, and an audit
    that shares work with an earlier one reads it. `baseline` is an old checkpoint of the only classifier: it is audited
    too, for a gate to compare with. With `allow_code`, programs (TorchScript, torch.export) that do more than compute
    are run, which can do whatever you can. Raises AuditError (one sentence: what, where, how to mend) for whatever the
    caller can mend; of these, `writing.ReportError` holds results that are stored.
    """
    if isinstance(config, AuditConfig):
        base, file, settings = Path.cwd(), None, config
    else:
        base, file, settings = Path(config).resolve().parent, Path(config), load_config(config, effort)
    if baseline is not None:
        settings = with_baseline(settings, baseline)
    settings = allowing_code(settings) if allow_code else settings
    store = cache if isinstance(cache, Store) or cache is None else Store(Path(cache).expanduser())
    inputs = inputs_of(settings, file, None if store is None else store.root)
    if out is not None and not overwrite:
        check_same_audit(Path(out).expanduser(), settings, base)
    device = choose_device(settings.device)
    with ExitStack() as stack:
        stack.enter_context(limited(settings.max_memory))
        output = None if out is None else stack.enter_context(open_output(Path(out), inputs))
        engine = stack.enter_context(open_engine(settings, device))
        if store is not None:
            _check_writable(store.root)
            store.bound()
        elif engine is not None:  # results come from where they are computed by way of a store
            store = Store(Path(stack.enter_context(TemporaryDirectory(prefix="spruce-audit-"))))
        return _run(Context(settings, base, device, store, Stopwatch(), engine), output, share)


def estimate_audit(config: str | Path, effort: Effort | None = None) -> Estimate:
    """Read the data, load the networks and measure a few steps: how long the audit will take, and in how much memory.

    Raises AuditError for what the caller can mend, as `run_audit` would.
    """
    settings, base = load_config(config, effort), Path(config).resolve().parent
    check_parts(settings)
    with limited(settings.max_memory):
        context = Context(settings, base, choose_device(settings.device), None, Stopwatch())
        images = read_images(context)
        networks = None if settings.generator is None else load_networks(settings, images.all, context.device)
        return estimate(context, images, load_models(context, images).classifiers, networks)


def _check_writable(root: Path) -> None:
    try:
        root.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=root):
            pass
    except OSError as error:
        raise ConfigError(f"Cache folder '{root}' cannot be written ({error.strerror}): name another one.") from None


def _run(context: Context, output: Output | None, share: str | None) -> AuditResult:
    config, watch = context.config, context.watch
    methods = check_parts(config)
    interventions = {} if config.reliance is None else choose_interventions(config.reliance)
    set_up_ahead(context)
    with watch.stage("data"):
        images = read_images(context)
    with watch.stage("classifiers"):
        models = load_models(context, images)
        networks = None if config.generator is None else load_networks(config, images.all, context.device)
    if images.all.is_multi_label:
        labelled = measure_labels(context, images, models.classifiers)
        if not labelled.answered:
            raise none_left([*models.failed.values(), *(m.failed for m in labelled.models if m.failed is not None)])
        if networks is not None:
            labelled = explain_labels(context, labelled, replace(networks, judges=models.judges), methods)
        labelled = rely_on_labels(context, labelled, interventions)
        looks = {one.name: Look() for one in models.classifiers}
        return _finished(context, Findings(images, models, looks, {}, labelled.overview, None, labelled), output, share)
    if is_shown() and context.engine is None:  # of one process
        with watch.stage("estimate"):
            found = estimate(context, images, models.classifiers, networks)
        remark(f"Estimate: {found.sentence()}", ahead=sum(found.seconds.values()))
    named = {one.name: one for one in (*models.classifiers, *models.judges)}
    audited = [one.name for one in models.classifiers if one.content is not None]  # of others nothing is kept
    site = Site(context, images.all, images.calibration, named.__getitem__, lambda: networks)
    spread(site, "parts: answers", parts_of_answers(audited))
    with watch.stage("sanity"):
        looks = first_looks(context, models.classifiers, images.audited)
    calibrated: dict[str, Calibrated | Failure] = {}
    if networks is not None and images.calibration is not None:
        with watch.stage("calibration"):
            calibrated = calibrate_models(context, models.classifiers, images.calibration)
    attacks = parts_on_batches(config, len(images.audited), audited)
    inversions = _inversions_ahead(context, images, networks, calibrated)
    spread(site, "parts: batches", [*attacks, *inversions, *parts_of_scores(config)])
    spread(site, "parts: models", parts_of_models(audited))
    robustness = measure_models(context, images, models.classifiers)
    if not any(one.outcomes for one in robustness.models):
        raise none_left([*models.failed.values(), *(m.failed for m in robustness.models if m.failed is not None)])
    relied = measure_reliance(context, images, robustness.models, interventions)
    meaningfulness = None
    if networks is not None:
        subjects = _subjects(robustness, calibrated)
        meaningfulness = explain_models(context, images, subjects, replace(networks, judges=models.judges), methods)
    attributions = attribute_models(context, images, robustness.models, meaningfulness)
    findings = Findings(
        images, models, looks, calibrated, robustness, meaningfulness, relied=relied, attributions=attributions
    )
    return _finished(context, findings, output, share)


def _inversions_ahead(
    context: Context, images: Images, networks: Networks | None, calibrated: Mapping[str, Calibrated | Failure]
) -> list[Order]:
    """Return what inverts the images that will be explained, where an engine does that beside the attacks."""
    if networks is None or context.engine is None:
        return []
    classifiers = [one.classifier for one in calibrated.values() if not isinstance(one, Failure)]
    try:
        predicted = {one.name: answers_of(context, one, images.audited).argmax(1) for one in classifiers}
        return inversions_ahead(context, networks, images.audited, predicted)
    except Exception:  # noqa: BLE001 - the stage itself fails at it, and says so
        return []


def _finished(context: Context, findings: Findings, output: Output | None, share: str | None) -> AuditResult:
    result = assemble(context, findings)
    if output is not None:
        save = partial(save_all, result, findings)
        write_audit(result, output, save, context.watch, share=share is not None)
    return result


def check_parts(config: AuditConfig) -> tuple[ChosenMethod, ...]:
    """Fail fast where the configuration names a part that is not there; return the counterfactual methods it names."""
    check_attacks(config.robustness)
    if config.robustness.corruptions is not None and config.robustness.corruptions.names is not None:
        check_names(config.robustness.corruptions.names)
    check_captum(config.attribution)
    check_embeddings(config)
    check_containers((*config.classifiers, *config.judge_checkpoints))
    if config.generator is not None:
        READERS.get(config.generator.format, "generator.format")
    return choose_methods(config.counterfactual, config.seed)


def _subjects(robustness: Robustness, calibrated: Mapping[str, Calibrated | Failure]) -> list[Subject]:
    """Return the models that can be explained: those that were calibrated and have not failed since."""
    found = []
    for model in robustness.models:
        known = calibrated[model.name]
        if model.failed is None and model.logits is not None and not isinstance(known, Failure):
            found.append(Subject(known, model.logits, model.clean))
    return found
