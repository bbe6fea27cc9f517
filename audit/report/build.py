"""Builds the report: reads `results.json` and the images beside it, writes one HTML file that needs nothing else.

Where there are too many query images for one file, the others stand in files beside it, each of which needs nothing
else either.
"""

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from audit.errors import ResultsError
from audit.report import (
    accounts,
    attribution,
    baseline,
    calibration,
    certificate,
    classes,
    figures,
    gallery,
    jinja,
    labels,
    methods,
    provenance,
    reliance,
    robustness,
    sites,
    text,
    transfer,
    verdict,
)
from audit.results import AdversarialExample, AuditResult, Distribution, ModelResult, Query, read_results
from audit.storage.files import atomic_write_text


def render_report(results_path: str | Path, out: str | Path | None = None) -> Path:
    """Write the report of `results_path` and return its path; see `render_files`."""
    return render_files(results_path, out)[0]


def render_files(results_path: str | Path, out: str | Path | None = None) -> list[Path]:
    """Write the report of `results_path`, by default `report.html` beside it; return its files, the report first.

    Raises ResultsError if the results or one of their images cannot be read, or if the report would take the place of a
    file that is no report; then nothing is written.
    """
    source = Path(results_path)
    target = source.with_name("report.html") if out is None else Path(out)
    _check_place(target)
    pages = report_pages(read_results(source), source.parent, target.name)
    files = {target.with_name(name): page for name, page in pages.items()}
    for file in files:
        _check_place(file)
    try:
        for file, page in reversed(files.items()):  # the report last: what it links to is there
            atomic_write_text(file, page)
    except OSError as error:
        raise ResultsError(f"The report cannot be written to '{target}': {error.strerror}.") from None
    return list(files)


def _check_place(target: Path) -> None:
    """Raise ResultsError if `target` is there and is not a report, which names its maker near the top."""
    try:
        with target.open("rb") as file:
            known = jinja.MARK.encode() in file.read(2000)
    except OSError:  # not there, or a folder: writing it will say what is wrong
        return
    if not known:
        raise ResultsError(f"'{target}' is there and is no report of spruce-audit: name another file by --out.")


def report_pages(result: AuditResult, folder: Path, name: str = "report.html") -> dict[str, str]:
    """Return the files of the report of `result` by their names, `name` first; its images lie in `folder`."""
    models, labelled = text.in_order(result), result.label_counts is not None
    parts = [(label, part, [model.of_label(label) for model in models]) for label, part in labels.parts(result)]
    # Of several labels, what is measured of single labels stands for one label of a model each.
    subjects = labels.apart(models) if labelled else models
    alone = result.model_copy(update={"models": subjects})
    edits = gallery.read_edits(subjects, folder)
    scale = figures.common_scale(list(edits.values()))
    means, mean_scale = _mean_edits(models, edits)
    groups = gallery.files_of(
        gallery.in_turn([gallery.query_views(part, some, folder, edits, scale) for _, part, some in parts])
    )
    stem, suffix = Path(name).stem, Path(name).suffix
    files = [name, *(f"{stem}-{number}{suffix}" for number in range(2, len(groups) + 1))]
    environment = jinja.environment()
    script = jinja.source("report.js")
    numbers = [(group[0].number, group[-1].number) for group in groups if group]
    shared = {
        "result": result,
        "models": models,
        "script": Markup(script),  # noqa: S704 - a file of the package
        "script_hash": "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        "text": text,
        "labelled": labelled,
        "asked": sum(len(part.queries) for _, part, _ in parts),
        "regions": _region_names(subjects, [query for _, part, _ in parts for query in part.queries]),
        "scale": scale,
        "pages": [(file, *ends) for file, ends in zip(files, numbers, strict=False)],  # there may be no query image
    }

    def shown(template: str, file: str, views: list[gallery.QueryView], visible: int, **more: object) -> str:
        outcomes = list(dict.fromkeys(cell.outcome for view in views for cell in view.cells if cell is not None))
        return environment.get_template(template).render(
            shared, here=file, views=views, visible=visible, outcomes=outcomes, **more
        )

    report = shown(
        "report.html.j2",
        name,
        groups[0],
        gallery.VISIBLE_QUERIES,
        figures=figures,
        verdict=labels.verdict(result) if labelled else verdict.verdict(result),
        findings=[
            *(labels.distrust(result) if labelled else robustness.distrust(result)),
            *(verdict.unfinished(result) if labelled else verdict.cautions(result)),
            *labels.entangled(models),
            *reliance.findings(alone),
            *text.findings(alone),
        ],
        subjects=subjects,
        labels=labels,
        label_pictures=labels.attacked(models, folder),
        robustness=robustness,
        provenance=provenance,
        certificate=certificate,
        attacks=robustness.attack_columns(models),
        headline=robustness.headline_columns(models),
        classes=classes,
        sites=sites,
        calibration=calibration,
        class_counts=next((found for m in models if (found := classes.class_counts(m, result.classes))), {}),
        confused=[m for m in models if m.clean.confusion is not None and len(m.clean.confusion) == len(result.classes)],
        told=classes.told_of_classes(models, verdict.told_column(result)),
        clean_counts=robustness.counts(m.clean.n for m in models if m.clean.n),
        attacked={fragile: _attacked(models, folder, fragile) for fragile in (False, True)},
        staged=list(robustness.cascades(models)),
        transfers=transfer.transfer_tables(models),
        distances=any(m.robust.distances for m in models),
        changes=baseline.changes(result),
        metrics=robustness.difference_metrics(result.differences),
        pairs=list(dict.fromkeys((d.a, d.b) for d in result.differences)),
        checks=robustness.check_names(models),
        doubts=robustness.doubts(models),
        corruptions=robustness.corruption_names(models),
        corruption_counts=robustness.counts(m.robust.corruptions.n for m in models if m.robust.corruptions),
        corruption_clean=any(m.robust.corruptions and m.robust.corruptions.clean_accuracy for m in models),
        corruption_constants=robustness.corruption_lists(models),
        shifted=any(m.robust.shift is not None for m in models),
        vulnerable=[m for m in models if m.robust.vulnerability is not None],
        kept=robustness.vulnerability_curves(models),
        maps=_vulnerability_maps(models, folder),
        examples=_vulnerability_examples(models, folder),
        attribution=attribution,
        attributed=any(m.attributions for m in subjects),
        attribution_examples=[] if groups[0] else attribution.examples(subjects, folder),
        ranked=any(text.finite(m.index) for m in models),
        explained=any(m.counterfactuals is not None for m in subjects),
        # Without a generator the table of accuracies is the first, and none of the index's columns is empty.
        listed=any(text.finite(m.index) or m.counterfactuals is not None for m in models),
        accounts=[
            replace(one, model=labels.called(one.model, label))
            for label, part, some in parts
            for one in accounts.accounts(part, some, folder)
        ],
        method_names=list(
            dict.fromkeys(accounts.method_name(m.counterfactuals) for m in subjects if m.counterfactuals)
        ),
        means=means,
        mean_scale=mean_scale,
        probability=_probabilities(result),
        needed=_images_needed(result),
        tiers=_tiers(models),
        separation=_separation(result),
        weights=text.weights(result),
        curves=robustness.accuracy_curves(models),
        distributions=_distributions(subjects),
        reliance=reliance,
        relied=reliance.measured(subjects),
        reliance_pictures=reliance.pictures(subjects, folder),
        methods=methods.compared(result, subjects, folder, scale),
        traces={m.name: _traces(m) for m in subjects},
        composition={} if result.inversion is None else result.inversion.composition,
        shared_rank=_shared_ranks(models),
        not_computed=_not_computed(result, [*models, *subjects] if labelled else models),
    )
    others = zip(files[1:], groups[1:], strict=True)
    return {name: report} | {file: shown("page.html.j2", file, views, len(views)) for file, views in others}


def _mean_edits(models: Sequence[ModelResult], edits: dict[str, NDArray[np.uint8]]) -> tuple[dict[str, str], float]:
    """Return every model's mean edit map over the query images, drawn to one scale, and that scale."""
    means: dict[str, NDArray[np.float64]] = {}
    for model in models:
        named = [row.edit_image for row in model.queries if row.edit_image is not None]
        maps = [edits[name] for name in named if name in edits]
        if maps and len({m.shape for m in maps}) == 1:
            means[model.name] = np.mean(maps, axis=0)
    scale = figures.common_scale([np.rint(mean).astype(np.uint8) for mean in means.values()])
    uris = {name: figures.heat_uri(mean / 255 * figures.EDIT_FULL_SCALE, scale) for name, mean in means.items()}
    return uris, scale


def _attacked(
    models: Sequence[ModelResult], folder: Path, fragile: bool
) -> list[tuple[ModelResult, list[tuple[AdversarialExample, list[tuple[str, str]]]]]]:
    """Return every model's first fooled or its most `fragile` images, each with three pictures and what they show."""
    rows = []
    for model in models:
        found = [one for one in model.robust.examples if (one.distance is not None) is fragile]
        cells = [(one, figures.attacked_pictures(folder, one)) for one in found]
        if cells:
            rows.append((model, cells))
    return rows


def _vulnerability_maps(models: Sequence[ModelResult], folder: Path) -> dict[str, str]:
    """Return every model's mean vulnerability map, drawn to one scale."""
    named = {m.name: m.robust.vulnerability.map_image for m in models if m.robust.vulnerability is not None}
    maps = {
        name: np.asarray(figures.read_image(folder, file).convert("L"), dtype=np.float64) / 255
        for name, file in named.items()
        if file is not None
    }
    top = max((float(values.max()) for values in maps.values()), default=0.0)
    return {name: figures.heat_uri(values, top or 1.0) for name, values in maps.items()}


def _vulnerability_examples(models: Sequence[ModelResult], folder: Path) -> list[tuple[str, list[dict[str, str]]]]:
    """Return every model's maps of single images; each map is drawn to its own scale, for it sums to the same."""
    rows = []
    for model in models:
        cells = []
        for example in model.robust.vulnerability.examples if model.robust.vulnerability else []:
            values = np.asarray(figures.read_image(folder, example.map_image).convert("L"), dtype=np.float64) / 255
            image = figures.file_uri(folder, example.image)
            cells.append(
                {"id": example.id, "image": image, "map": figures.heat_uri(values, float(values.max()) or 1.0)}
            )
        if cells:
            rows.append((model.name, cells))
    return rows


def _region_names(models: Sequence[ModelResult], queries: Sequence[Query]) -> list[str]:
    """Return the regions in the order of their colours: the one that carries the class first."""
    names = [r.region for m in models if m.counterfactuals for r in m.counterfactuals.regions]
    names += [name for query in queries for name in query.region_images]
    names += [r.region for m in models if m.robust.vulnerability for r in m.robust.vulnerability.regions]
    names += [r.region for m in models for one in m.attributions for r in one.regions]
    return sorted(dict.fromkeys(names), key=lambda name: name != text.MAIN_REGION)


def _probabilities(result: AuditResult) -> dict[tuple[str, str], float]:
    """Return P(row above column) for both directions of every comparison."""
    table = {(c.a, c.b): c.probability for c in result.comparisons if text.finite(c.probability)}
    return {**{(b, a): 1 - p for (a, b), p in table.items()}, **table}


def _images_needed(result: AuditResult) -> dict[tuple[str, str], str]:
    """Return for both directions of a comparison how many query images would tell the two apart, where it is known."""
    found = {(c.a, c.b): accounts.about(c.images_needed) for c in result.comparisons if c.images_needed is not None}
    return {**found, **{(b, a): images for (a, b), images in found.items()}}


def _tiers(models: Sequence[ModelResult]) -> list[tuple[str, float, float | None, float | None, int]]:
    """Return the rows of the chart of indices."""
    return [
        (model.name, model.index, *(model.index_interval or (None, None)), model.rank)
        for model in models
        if model.index is not None and text.finite(model.index) and model.rank is not None
    ]


def _separation(result: AuditResult) -> float:
    ranking = result.config.get("ranking")
    value = ranking.get("separation") if isinstance(ranking, dict) else None
    return float(value) if isinstance(value, int | float) else 0.95


def _shared_ranks(models: Sequence[ModelResult]) -> set[int]:
    ranks = [model.rank for model in models if model.rank is not None]
    return {rank for rank in ranks if ranks.count(rank) > 1}


def _not_computed(result: AuditResult, models: Sequence[ModelResult]) -> list[tuple[str, str, str]]:
    """Return (what, why, for whom) of everything that is missing; one line where all models miss it alike."""
    rows = [(note.what, note.why, "") for note in result.not_computed]
    by_note: dict[tuple[str, str], list[str]] = {}
    for model in models:
        for note in model.not_computed:
            by_note.setdefault((note.what, note.why), []).append(model.name)
    rows += [
        (*note, "all models" if len(names) == len(models) > 1 else ", ".join(names)) for note, names in by_note.items()
    ]
    return rows


def _distributions(models: Sequence[ModelResult]) -> list[tuple[str, Distribution]]:
    """Return (model, distance) so that the numbers which may be compared stand one below the other."""
    rows = [
        (model.name, row)
        for model in models
        if (scores := model.counterfactuals) is not None
        for row in (*scores.mmd, *scores.cmmd, *scores.fid)
    ]
    kinds = list(dict.fromkeys((r.metric, r.estimator, r.embedding.name, r.target) for _, r in rows))
    return sorted(
        rows, key=lambda pair: kinds.index((pair[1].metric, pair[1].estimator, pair[1].embedding.name, pair[1].target))
    )


def _traces(model: ModelResult) -> Markup:
    """Return the chart of one model; the goal is drawn where all its targets share one operating point."""
    points = set(model.counterfactuals.operating_point.values()) if model.counterfactuals else set()
    goal = points.pop() if len(points) == 1 else None
    label = f"Probability of the target class by optimisation step, {model.name}, {len(model.queries)} images"
    return figures.trace_chart([row.trace for row in model.queries], goal, label)
