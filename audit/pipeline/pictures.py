"""The pictures of an audit: their names in the results and their files beside `results.json`."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from audit.counterfactual.protocol import Counterfactuals
from audit.data.audit_set import AuditSet
from audit.inversion.invert import Inversion
from audit.metrics.edit import edit_map
from audit.pipeline.shared import Common
from audit.results import AdversarialExample, AuditResult, NotComputed, Query, VulnerabilityExample
from audit.robustness.examples import Fooled
from audit.robustness.vulnerability.map import VulnerabilityMaps
from audit.storage.pictures import file_names, folder_name, save_edit, save_image, save_mask

EXAMPLE_MAPS = 6
"""Images whose vulnerability maps are shown."""


def name_pictures(result: AuditResult, common: Common, inversion: Inversion) -> None:
    """List the query images in the results and name every picture, relative to the results' folder."""
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
        if not model.queries:  # it failed before it was explained
            continue
        for name, row in zip(files, model.queries, strict=True):
            row.counterfactual_image = f"{base}/{name}-counterfactual.png"
            row.semifactual_image = f"{base}/{name}-semifactual.png"
            row.edit_image = f"{base}/{name}-edit.png"


def save_pictures(result: AuditResult, common: Common, made: Mapping[str, Counterfactuals], folder: Path) -> None:
    """Write the named pictures; `made` holds the counterfactuals by the name of their model."""
    for i, query in enumerate(result.queries):
        save_image(common.queries[i], folder / str(query.image))
        save_image(common.inversions[i], folder / str(query.inversion_image))
        for region, path in query.region_images.items():
            save_mask(common.regions[region][i], folder / path)
    for model in result.models:
        if not model.queries:
            continue
        found = made[model.name]
        edits = edit_map(found.images, common.inversions)
        for i, row in enumerate(model.queries):
            save_image(found.images[i], folder / str(row.counterfactual_image))
            save_image(found.semifactuals[i], folder / str(row.semifactual_image))
            save_edit(edits[i], folder / str(row.edit_image))


def name_maps(result: AuditResult, maps: Mapping[str, VulnerabilityMaps], ids: tuple[str, ...]) -> None:
    """Name the mean map of every model and those of a few images: of `ids`, and the same for all models if possible."""
    files = dict(zip(ids, file_names(ids), strict=True))
    shared = set.intersection(*(set(one.ids) for one in maps.values())) if maps else set()
    for position, model in enumerate(result.models):
        one = maps.get(model.name)
        if one is None or model.robust.vulnerability is None:
            continue
        base = f"images/{folder_name(model.name, position)}"
        chosen = sorted(one.ids, key=lambda row_id: row_id not in shared)[:EXAMPLE_MAPS]
        model.robust.vulnerability.map_image = f"{base}/vulnerability.png"
        model.robust.vulnerability.examples = [
            VulnerabilityExample(
                id=row_id,
                image=f"images/vulnerability/{files[row_id]}.png",
                map_image=f"{base}/vulnerability-{files[row_id]}.png",
            )
            for row_id in chosen
        ]


def save_maps(result: AuditResult, maps: Mapping[str, VulnerabilityMaps], audited: AuditSet, folder: Path) -> None:
    """Write the named maps `[H, W]`, white where a pixel is always needed, and the images they belong to."""
    rows = {row_id: i for i, row_id in enumerate(audited.row_ids)}
    for model in result.models:
        one = maps.get(model.name)
        named = model.robust.vulnerability
        if one is None or named is None or named.map_image is None:
            continue
        save_image(one.maps.mean(0, keepdim=True), folder / named.map_image)
        places = {row_id: i for i, row_id in enumerate(one.ids)}
        for example in named.examples:
            save_image(one.maps[places[example.id]][None], folder / example.map_image)
            save_image(audited.images(torch.tensor([rows[example.id]]))[0], folder / example.image)


def name_examples(result: AuditResult, made: Mapping[str, Sequence[Fooled]]) -> None:
    """List every model's attacked images in the results and name their pictures."""
    for position, model in enumerate(result.models):
        found = made.get(model.name, ())
        base = f"images/{folder_name(model.name, position)}"
        for name, one in zip(file_names(tuple(one.id for one in found)), found, strict=True):
            largest = float((one.adversarial - one.image).abs().max())
            model.robust.examples.append(
                AdversarialExample(
                    id=one.id,
                    label=one.label,
                    predicted=one.predicted,
                    metric=one.metric,
                    image=f"{base}/attacked-{name}.png",
                    adversarial_image=f"{base}/attacked-{name}-adversarial.png",
                    perturbation_image=f"{base}/attacked-{name}-perturbation.png",
                    scale=0.5 / largest,
                )
            )


def save_examples(result: AuditResult, made: Mapping[str, Sequence[Fooled]], folder: Path) -> None:
    """Write the named pictures of attacked images: as they were, what was added, and as they are."""
    for model in result.models:
        for example, one in zip(model.robust.examples, made.get(model.name, ()), strict=True):
            save_image(one.image, folder / example.image)
            save_image(one.adversarial, folder / example.adversarial_image)
            added = (one.adversarial - one.image) * example.scale + 0.5
            save_image(added, folder / example.perturbation_image)


def without_pictures(result: AuditResult) -> AuditResult:
    """Return a copy that names no picture, and says so: what can be stored before the pictures are."""
    bare = result.model_copy(deep=True)
    for query in bare.queries:
        query.image = query.inversion_image = None
        query.region_images = {}
    for model in bare.models:
        for row in model.queries:
            row.counterfactual_image = row.semifactual_image = row.edit_image = None
        if model.robust.vulnerability is not None:
            model.robust.vulnerability.map_image = None
            model.robust.vulnerability.examples = []
        model.robust.examples = []
    bare.not_computed.append(NotComputed(what="pictures", why="the audit ended before they were written"))
    return bare
