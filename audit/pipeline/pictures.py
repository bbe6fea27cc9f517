"""The pictures of an audit: their names in the results and their files beside `results.json`."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import torch

from audit.counterfactual.protocol import Counterfactuals
from audit.data.audit_set import AuditSet
from audit.metrics.edit import edit_map
from audit.pipeline.compare import Compared
from audit.pipeline.explain import Explained
from audit.pipeline.queries import Queries
from audit.pipeline.reference import Reference
from audit.results import (
    EDIT_FULL_SCALE,
    AdversarialExample,
    AuditResult,
    NotComputed,
    Query,
    QueryRow,
    Robust,
    Vulnerability,
    VulnerabilityExample,
)
from audit.robustness.examples import Fooled
from audit.robustness.vulnerability.map import VulnerabilityMaps
from audit.storage.pictures import file_names, folder_name, save_edit, save_image, save_mask

EXAMPLE_MAPS = 6
"""Images whose vulnerability maps are shown."""


def picture_folder(model: str, position: int) -> str:
    """Folder of the pictures of the model at `position` in the results, relative to the results' folder."""
    return f"images/{folder_name(model, position)}"


def label_folder(folder: str, label: str, position: int) -> str:
    """Folder of the pictures of one label, inside the `folder` of its model."""
    return f"{folder}/labels/{folder_name(label, position)}"


def method_folder(folder: str, method: str, position: int) -> str:
    """Folder of the pictures of a compared method, inside the `folder` of its model."""
    return f"{folder}/methods/{folder_name(method, position)}"


def query_rows(reference: Reference, folder: str) -> list[Query]:
    """List the query images, with the names of their pictures in `folder`."""
    inversion, rows, labels = reference.queries.inversion, reference.queries.rows, reference.queries.labels
    return [
        Query(
            id=rows.row_ids[i],
            label=rows.class_names[int(labels[i])],
            image=f"{folder}/{name}.png",
            inversion_image=f"{folder}/{name}-inversion.png",
            region_images={r: f"{folder}/{name}-{r}.png" for r, m in reference.regions.items() if m[i].any()},
            inversion_mse=float(inversion.mse[i]),
            inversion_perceptual=None if inversion.perceptual is None else float(inversion.perceptual[i]),
        )
        for i, name in enumerate(file_names(rows.row_ids))
    ]


def with_pictures(rows: Sequence[QueryRow], ids: tuple[str, ...], folder: str) -> list[QueryRow]:
    """Return one model's rows of the first query images of `ids` with the names of their pictures in `folder`."""
    return [
        row.model_copy(
            update={
                "counterfactual_image": f"{folder}/{name}-counterfactual.png",
                "semifactual_image": f"{folder}/{name}-semifactual.png",
                "edit_image": f"{folder}/{name}-edit.png",
            }
        )
        for name, row in zip(file_names(ids), rows, strict=False)
    ]


def save_pictures(result: AuditResult, reference: Reference, explained: Mapping[str, Explained], folder: Path) -> None:
    """Write the named pictures of the query images, and of the counterfactuals by the name of their model."""
    for i, query in enumerate(result.queries):
        save_image(reference.queries.images[i], folder / str(query.image))
        save_image(reference.inversions[i], folder / str(query.inversion_image))
        for region, path in query.region_images.items():
            save_mask(reference.regions[region][i], folder / path)
    for model in result.models:
        if not model.queries:
            continue
        _save_rows(model.queries, explained[model.name].counterfactuals, explained[model.name].queries, folder)


def save_compared(
    result: AuditResult,
    explained: Mapping[str, Explained],
    compared: Mapping[tuple[str, str], Compared],
    folder: Path,
) -> None:
    """Write the named pictures of the methods compared with, by the names of model and method."""
    for model in result.models:
        for method, row in model.methods.items():
            found = compared[model.name, method].counterfactuals
            if found is not None:
                _save_rows(row.queries, found, explained[model.name].queries, folder)


def _save_rows(rows: Sequence[QueryRow], found: Counterfactuals, queries: Queries, folder: Path) -> None:
    edits = edit_map(found.images, queries.inversion.images)
    for i, row in enumerate(rows):
        save_image(found.images[i], folder / str(row.counterfactual_image))
        save_image(found.semifactuals[i], folder / str(row.semifactual_image))
        save_edit(edits[i], EDIT_FULL_SCALE, folder / str(row.edit_image))


def shared_ids(maps: Iterable[VulnerabilityMaps]) -> set[str]:
    """Return the images that all `maps` were made of, which are shown first, so that models can be compared."""
    made = [set(one.ids) for one in maps]
    return set.intersection(*made) if made else set()


def with_maps(
    summary: Vulnerability, maps: VulnerabilityMaps, shared: set[str], files: Mapping[str, str], folder: str
) -> Vulnerability:
    """Return one model's `summary` with the names of its mean map and of those of a few images, `shared` ones first.

    `files` gives the file name of every audited image.
    """
    chosen = sorted(maps.ids, key=lambda row_id: row_id not in shared)[:EXAMPLE_MAPS]
    examples = [
        VulnerabilityExample(
            id=row_id,
            image=f"images/vulnerability/{files[row_id]}.png",
            map_image=f"{folder}/vulnerability-{files[row_id]}.png",
        )
        for row_id in chosen
    ]
    return summary.model_copy(update={"map_image": f"{folder}/vulnerability.png", "examples": examples})


def save_maps(robust: Robust, made: VulnerabilityMaps | None, audited: AuditSet, folder: Path) -> None:
    """Write one model's named maps `[H, W]`, white where a pixel is always needed, and the images they belong to."""
    named = robust.vulnerability
    if made is None or named is None or named.map_image is None:
        return
    rows = {row_id: i for i, row_id in enumerate(audited.row_ids)}
    save_image(made.maps.mean(0, keepdim=True), folder / named.map_image)
    places = {row_id: i for i, row_id in enumerate(made.ids)}
    for example in named.examples:
        save_image(made.maps[places[example.id]][None], folder / example.map_image)
        save_image(audited.images(torch.tensor([rows[example.id]]))[0], folder / example.image)


def example_rows(found: Sequence[Fooled], folder: str) -> list[AdversarialExample]:
    """List one model's attacked images with the names of their pictures in `folder`."""
    return [
        AdversarialExample(
            id=one.id,
            label=one.label,
            predicted=one.predicted,
            metric=one.metric,
            image=f"{folder}/attacked-{name}.png",
            adversarial_image=f"{folder}/attacked-{name}-adversarial.png",
            perturbation_image=f"{folder}/attacked-{name}-perturbation.png",
            scale=0.5 / float((one.adversarial - one.image).abs().max()),
            distance=one.distance,
        )
        for name, one in zip(file_names(tuple(one.id for one in found)), found, strict=True)
    ]


def save_examples(robust: Robust, made: Sequence[Fooled], folder: Path) -> None:
    """Write the named pictures of one model's attacked images: as they were, what was added, and as they are."""
    for example, one in zip(robust.examples, made, strict=True):
        save_image(one.image, folder / example.image)
        save_image(one.adversarial, folder / example.adversarial_image)
        added = (one.adversarial - one.image) * example.scale + 0.5
        save_image(added, folder / example.perturbation_image)


def without_pictures(result: AuditResult) -> AuditResult:
    """Return a copy that names no picture, and says so: what can be stored before the pictures are."""
    bare = result.model_copy(deep=True)
    of_labels = (query for label in bare.label_explanations.values() for query in label.queries)
    for query in (*bare.queries, *of_labels):
        query.image = query.inversion_image = None
        query.region_images = {}
    for part in (part for model in bare.models for part in (model, *model.labels.values())):
        for row in (*part.queries, *(one for method in part.methods.values() for one in method.queries)):
            row.counterfactual_image = row.semifactual_image = row.edit_image = None
        if part.robust.vulnerability is not None:
            part.robust.vulnerability.map_image = None
            part.robust.vulnerability.examples = []
        part.robust.examples = []
        for one in part.attributions:
            one.examples = []
        for intervention in part.reliance.interventions if part.reliance is not None else ():
            intervention.example = None
    bare.not_computed.append(NotComputed(what="pictures", why="the audit ended before they were written"))
    return bare
