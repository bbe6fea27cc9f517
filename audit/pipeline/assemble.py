"""The results of an audit, put together once from what its stages found, failures included."""

import datetime as dt
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from audit.classifiers.classifier import Classifier
from audit.config import AuditConfig, ClassifierConfig, is_shipped, note_on_spelling, recorded
from audit.data.fingerprint import listing_fingerprint
from audit.embeddings.embedding import named
from audit.pipeline.attribution import Attributions, save_attributions, with_maps_of
from audit.pipeline.calibrate import Calibrated
from audit.pipeline.certificate import certificate
from audit.pipeline.context import Context
from audit.pipeline.first_look import Look
from audit.pipeline.images import Images
from audit.pipeline.influence import influence_notices
from audit.pipeline.labels import (
    Labelled,
    LabelRun,
    label_counts,
    label_differences,
    label_notices,
    label_rows,
    label_summary,
)
from audit.pipeline.meaningfulness import STAGE, Meaningfulness
from audit.pipeline.mixture import mixture_notices
from audit.pipeline.models import Models
from audit.pipeline.networks import Networks, judged_by_steering
from audit.pipeline.pictures import (
    example_rows,
    label_folder,
    method_folder,
    picture_folder,
    query_rows,
    save_compared,
    save_examples,
    save_maps,
    save_pictures,
    shared_ids,
    with_maps,
    with_pictures,
)
from audit.pipeline.queries import source_classes
from audit.pipeline.reliance import Relied, save_changed, with_examples
from audit.pipeline.robustness import (
    Measured,
    Robustness,
    differences,
    model_notices,
    nothing_measured,
    notices_of_answers,
    unreliable,
)
from audit.results import (
    MEANINGFULNESS,
    AuditResult,
    Components,
    Difference,
    Failure,
    LabelExplanation,
    LabelResult,
    Measurements,
    ModelResult,
    NotComputed,
    Notice,
    Query,
    Robust,
)
from audit.robustness.precision import LowPasses
from audit.storage.pictures import file_names


@dataclass(frozen=True)
class Findings:
    """What the stages of an audit found; `meaningfulness` is None without a generator.

    Where images have any number of labels, all numbers are in `labels`, and `robustness` says only what failed.
    """

    images: Images
    models: Models
    looks: Mapping[str, Look]
    calibrated: Mapping[str, Calibrated | Failure]
    robustness: Robustness
    meaningfulness: Meaningfulness | None
    labels: Labelled | None = None
    relied: Relied = field(default_factory=Relied)
    attributions: Attributions = field(default_factory=Attributions)

    @property
    def lost(self) -> list[NotComputed]:
        """The stages that failed as a whole."""
        second = () if self.meaningfulness is None else self.meaningfulness.lost
        return [*self.robustness.lost, *self.relied.lost, *second, *self.attributions.lost]

    @property
    def networks(self) -> Networks | None:
        """The networks behind the counterfactuals; None: there are none."""
        if self.meaningfulness is not None:
            return self.meaningfulness.networks
        return None if self.labels is None else self.labels.networks


def assemble(context: Context, findings: Findings) -> AuditResult:
    """Return the results, with the names of all pictures."""
    config, images = context.config, findings.images
    rows = _model_rows(context, findings)
    explanations = _explanations(config, findings)
    return AuditResult(
        name=config.name,
        created=dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        complete=not findings.lost and all(row.failed is None for row in rows),
        config=recorded(config, context.base),
        seed=config.seed,
        classes=list(images.all.class_names),
        data=_data(config, images),
        data_read=images.read,
        label_counts=None if findings.labels is None else label_counts(images.audited),
        models=rows,
        notices=[
            *_notices(config, findings),
            *_mixture(config, images, rows, explanations.get("queries", ())),
            *_influence(findings, rows),
        ],
        differences=_differences(findings, config.seed),
        not_computed=[*_not_computed(findings), *findings.lost],
        environment=context.watch.environment(context.device),
        **_instruments(config, findings.networks),
        **explanations,
    )


def _not_computed(findings: Findings) -> list[NotComputed]:
    """Return what could not be computed for all models, though no stage failed."""
    if findings.networks is None:
        return [NotComputed(what=STAGE, why="the configuration names no generator", paths=list(MEANINGFULNESS))]
    if findings.meaningfulness is not None:
        return list(findings.meaningfulness.notes)
    assert findings.labels is not None
    return [*findings.networks.missing, *(note for run in findings.labels.runs for note in run.notes)]


def _explanations(config: AuditConfig, findings: Findings) -> dict[str, Any]:
    """Return the fields of the results that concern the counterfactuals of all models, label by label of labels."""
    if findings.meaningfulness is not None:
        return _shared(config, findings.meaningfulness, "images/queries")
    found = {
        run.name: LabelExplanation(**_shared(config, run.second, label_folder("images/queries", run.name, place)))
        for place, run in enumerate(() if findings.labels is None else findings.labels.runs)
        if run.second is not None
    }
    return {"label_explanations": found}


def _shared(config: AuditConfig, second: Meaningfulness, folder: str) -> dict[str, Any]:
    """Return what the counterfactuals of all models have in common; pictures of the query images go into `folder`."""
    ranking = second.ranking
    drawn = None if second.inversion is None else second.reference
    return {
        "comparisons": [] if ranking is None else ranking.comparisons,
        "index_weights": {} if ranking is None else dict(ranking.used),
        "queries": [] if drawn is None else query_rows(drawn, folder),
        "queries_asked": 0 if second.selection is None else config.queries.n,
        "inversion": second.inversion,
    }


def _instruments(config: AuditConfig, networks: Networks | None) -> dict[str, Any]:
    """Return the fields of the results that say what counterfactuals are drawn and measured with."""
    if networks is None:
        return {}
    return {
        "generator_sha256": networks.loaded.sha256,
        "generator_package": networks.loaded.package,
        "encoder_sha256": networks.encoder_sha256,
        "perceptual_embedding": named(networks.perceptual),
        "realism_embedding": named(networks.embedding),
        "realism_kernel": config.metrics.realism_kernel,
        "component_definitions": 4,
        "judged_by_steering": judged_by_steering(config, networks),
    }


def save_all(result: AuditResult, findings: Findings, folder: Path) -> None:
    """Write the pictures that `result` names into `folder`."""
    _save_explanations(result, findings.meaningfulness, folder)
    save_changed(result, findings.relied, folder)
    rows = {model.name: model for model in result.models}
    for one in findings.robustness.models:
        made = [(rows[one.name].robust, one, findings.images)]
        if findings.labels is not None:
            made = [(rows[one.name].labels[run.name].robust, m, run.images) for run, m in findings.labels.of(one.name)]
        for robust, measured, images in made:
            save_examples(robust, measured.examples, folder)
            save_maps(robust, measured.maps, images.audited, folder)
    save_attributions(result, findings.attributions, folder)
    for run in () if findings.labels is None else findings.labels.runs:
        of_label = result.of_label(run.name)
        _save_explanations(of_label, run.second, folder)
        save_changed(of_label, run.relied, folder)
        save_attributions(of_label, run.attributions, folder)


def _save_explanations(result: AuditResult, second: Meaningfulness | None, folder: Path) -> None:
    if second is not None and second.reference is not None and result.queries:
        save_pictures(result, second.reference, second.explained, folder)
        save_compared(result, second.explained, second.compared, folder)


def _data(config: AuditConfig, images: Images) -> dict[str, Any]:
    calibration = images.calibration
    return {
        "source": Path(config.data.path).name,
        "images": len(images.all),
        "audited": len(images.audited),
        "shape": list(images.all.image_shape),
        "audited_sha256": images.audited_sha256,
        **({} if calibration is None else {"calibration_sha256": listing_fingerprint(calibration)}),
    }


QUICK = Notice(
    subject="audit",
    kind="quick",
    text="it was run with the effort 'quick': on fewer images and with fewer attack steps than by default, so that "
    "intervals are wider and robust accuracies higher than those of a standard audit.",
)


def _notices(config: AuditConfig, findings: Findings) -> list[Notice]:
    audited, networks = findings.images.audited, findings.networks
    models = findings.robustness.models
    return [
        *_spelling(config),
        *([QUICK] if config.effort == "quick" else []),
        *findings.images.notices,
        *(notice for one in models for notice in one.classifier.notices),
        *(notice for look in findings.looks.values() for notice in look.notices),
        *(notice for one in models for notice in (*notices_of_answers(one, audited), *model_notices(one))),
        *(() if findings.labels is None else label_notices(findings.labels)),
        *(() if networks is None else networks.notices),
        *_divided(findings.models.classifiers),
        *(Notice(subject="audit", kind="stage-failed", text=f"{n.what}: {n.why}") for n in findings.lost),
    ]


def _mixture(
    config: AuditConfig, images: Images, models: Sequence[ModelResult], queries: Sequence[Query]
) -> list[Notice]:
    """Tell unequal shares of the classes among the query images; there are none of all labels together."""
    names = images.all.class_names
    sources = [names[c] for c in source_classes(config.queries, names)] if queries else []
    return mixture_notices(models, queries, sources)


def _influence(findings: Findings, models: Sequence[ModelResult]) -> list[Notice]:
    """Tell which query images alone decide what models answer to."""
    if findings.meaningfulness is None or findings.meaningfulness.panel is None:
        return []
    ids = {model.name: [row.query for row in model.queries] for model in models if model.queries}
    responses = findings.meaningfulness.panel.responses
    return influence_notices({name: one for name, one in responses.items() if name in ids}, ids)


def _differences(findings: Findings, seed: int) -> list[Difference]:
    if findings.labels is not None:
        return label_differences(findings.labels, seed)
    return differences(findings.robustness.models, seed)


def _spelling(config: AuditConfig) -> list[Notice]:
    """Tell the user which spelling of an earlier version the configuration uses."""
    generator = None if config.generator is None else config.generator.path
    note = note_on_spelling(
        generator,
        config.inversion.encoder,
        *(one.checkpoint for one in (*config.classifiers, *config.judge_checkpoints)),
    )
    return [] if note is None else [Notice(subject="audit", kind="former-spelling", text=note)]


def _divided(classifiers: Sequence[Classifier]) -> list[Notice]:
    """Say of which classifiers batches were divided to bound the memory."""
    said = {one.name: None if one.slices is None else one.slices.said() for one in classifiers}
    return [Notice(subject=name, kind="memory", text=text) for name, text in said.items() if text is not None]


def _model_rows(context: Context, findings: Findings) -> list[ModelResult]:
    """Return one row for every classifier of the configuration, in its order."""
    measured = {one.name: one for one in findings.robustness.models}
    rows = []
    for position, one in enumerate(context.config.classifiers):
        if one.name in findings.models.failed:
            rows.append(_unloaded(one, findings.models.failed[one.name], findings.images.all.class_names))
        else:
            rows.append(_row(findings, measured[one.name], picture_folder(one.name, position)))
        rows[-1] = rows[-1].model_copy(update={"role": one.role})
    return rows if findings.labels is None else [_with_labels(context, findings, row) for row in rows]


def _with_labels(context: Context, findings: Findings, row: ModelResult) -> ModelResult:
    """Return the row of a model with what was measured of its labels."""
    assert findings.labels is not None
    position = [one.name for one in context.config.classifiers].index(row.name)
    runs = findings.labels.of(row.name)
    if not runs:
        return row
    labels = label_rows(findings.labels, row.name)
    for place, (run, model) in enumerate(runs):
        folder = label_folder(picture_folder(row.name, position), run.name, place)
        labels[run.name] = _label_row(run, model, labels[run.name], folder)
    summary = label_summary(context, findings.labels, row.name)
    return row.model_copy(update={"labels": labels, "label_summary": summary})


def _label_row(run: LabelRun, model: Measured, row: LabelResult, folder: str) -> LabelResult:
    """Return the `row` of one label of a model with what was found beside its scores; its pictures go into `folder`."""
    name, explained = model.name, run.explained
    notes = [] if explained is None else [explained.missing.get(name)]
    notes = [note for note in (*notes, run.relied.notes.get(name)) if note is not None]
    row = row.model_copy(
        update={
            "robust": _robust(run.models, run.images, model, folder),
            "reliance": with_examples(run.relied, name, folder),
            "attributions": with_maps_of(run.attributions, name, folder),
            "not_computed": [*row.not_computed, *notes, *run.attributions.notes(name)],
        }
    )
    return row if run.second is None else row.model_copy(update=_explained(run.second, model, row, folder))


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


def _row(findings: Findings, model: Measured, folder: str) -> ModelResult:
    """Return the row of a model that was measured; its pictures go into `folder`."""
    name, classifier = model.name, model.classifier
    calibrated, note = findings.calibrated.get(name), findings.relied.notes.get(name)
    failed = model.failed or (calibrated if isinstance(calibrated, Failure) else None)
    row = ModelResult(
        name=name,
        rank=None,
        index=None,
        index_interval=None,
        components=Components(),
        weights_sha256=classifier.weights_sha256,
        source=classifier.source,
        input=classifier.input,
        sanity=findings.looks[name].readings,
        certificate=certificate(classifier, findings.looks[name], model.checks),
        precision=model.low.precision if isinstance(model.low, LowPasses) else "float32",
        failed=failed,
        unreliable=unreliable(model),
        clean=model.clean,
        robust=_robust(findings.robustness.models, findings.images, model, folder),
        reliance=with_examples(findings.relied, name, folder),
        attributions=with_maps_of(findings.attributions, name, folder),
        not_computed=[
            *model.not_computed,
            *([] if note is None else [note]),
            *findings.attributions.notes(name),
        ],
    )
    second = findings.meaningfulness
    return row if second is None else row.model_copy(update=_explained(second, model, row, folder))


def _robust(models: Sequence[Measured], images: Images, model: Measured, folder: str) -> Robust:
    """Return what was measured of the robustness of one of `models`, with the names of its pictures."""
    update: dict[str, Any] = {"examples": example_rows(model.examples, folder)}
    summary = model.robust.vulnerability
    if model.maps is not None and summary is not None:
        ids = images.audited.row_ids
        files = dict(zip(ids, file_names(ids), strict=True))
        shared = shared_ids(one.maps for one in models if one.maps is not None)
        update["vulnerability"] = with_maps(summary, model.maps, shared, files, folder)
    return model.robust.model_copy(update=update)


def _explained(second: Meaningfulness, model: Measured, row: Measurements, folder: str) -> dict[str, Any]:
    """Return the fields of the model's `row` that the second half fills."""
    name = model.name
    update: dict[str, Any] = {
        "failed": row.failed or second.failed.get(name),
        "left_out": {} if second.selection is None else second.selection.left_out.get(name, {}),
        "left_out_by_inversion": second.left_out_by_inversion.get(name, 0),
        "unpaired": name in second.unpaired,
    }
    if second.selection is not None and name in second.selection.nothing:
        nothing = NotComputed(what=STAGE, why=second.selection.nothing[name], paths=list(MEANINGFULNESS))
        update["not_computed"] = [*row.not_computed, nothing]
    places = {} if second.ranking is None else {one.name: one for one in second.ranking.models}
    if name not in places:
        return update
    place, scored = places[name], second.scored[name]
    summary, queries = scored.summary, scored.rows
    compared = {method: one.row for (of, method), one in second.compared.items() if of == name}
    if model.blind is not None:
        summary = summary.model_copy(update={"untrusted": [model.blind]})
    if second.inversion is not None and second.queries is not None:
        ids = second.asked[name].rows.row_ids
        queries = with_pictures(queries, ids, folder)
        compared = {
            method: one.model_copy(
                update={"queries": with_pictures(one.queries, ids, method_folder(folder, method, i))}
            )
            for i, (method, one) in enumerate(compared.items())
        }
    return update | {
        "rank": place.rank,
        "index": place.index,
        "index_interval": place.interval,
        "veto": place.veto,
        "components": place.components,
        "component_intervals": place.component_intervals,
        "counterfactuals": summary,
        "queries": queries,
        "methods": compared,
        "not_computed": [*row.not_computed, *scored.not_computed, *place.not_computed],
    }
