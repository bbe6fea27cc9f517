"""Attribution maps of every model's decisions: on its query images, where the edits can be seen beside them.

Needs no generator; without counterfactuals the maps are of the attacked images. A method that a model does not allow
is noted, and costs nothing else.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from audit.classifiers.black_box import REASON
from audit.data.audit_set import AuditSet
from audit.metrics.intervals import bootstrap_mean
from audit.metrics.localisation import region_share
from audit.pipeline.context import Context
from audit.pipeline.images import Images
from audit.pipeline.meaningfulness import Meaningfulness
from audit.pipeline.robustness import Measured
from audit.pipeline.score import PERMUTATIONS
from audit.reliance.attribution import GRADIENTS, Attributed, attribute
from audit.results import Attribution, AttributionMap, AuditResult, Failure, Interval, NotComputed
from audit.robustness.balls import attacked_rows
from audit.runtime.faults import stage_kept, tried
from audit.runtime.progress import stage_progress
from audit.storage.pictures import file_names, save_image

STAGE = "attribution"


@dataclass(frozen=True)
class Ascribed:
    """What was found of one model on `rows`: for each method a row of the results, and its maps `[N, H, W]`."""

    rows: AuditSet
    found: tuple[Attribution, ...]
    made: Mapping[str, Attributed]
    notes: tuple[NotComputed, ...] = ()


@dataclass(frozen=True)
class Attributions:
    """What was found of each model, by name, and the stages that failed as a whole."""

    models: Mapping[str, Ascribed] = field(default_factory=dict)
    lost: tuple[NotComputed, ...] = ()

    def notes(self, model: str) -> tuple[NotComputed, ...]:
        """Return what could not be drawn of one model."""
        return self.models[model].notes if model in self.models else ()


def attribute_models(
    context: Context, images: Images, models: Sequence[Measured], second: Meaningfulness | None
) -> Attributions:
    """Draw the attribution maps that the configuration asks for, of all models that have not failed."""
    settings = context.config.attribution
    if settings is None:
        return Attributions()
    lost: list[NotComputed] = []
    found: dict[str, Ascribed] = {}
    asked = {} if second is None or second.inversion is None else second.asked
    with context.watch.stage(STAGE), stage_kept(STAGE, lost, ["attributions"]):
        for model in (one for one in models if one.failed is None):
            some = asked[model.name].rows if model.name in asked else None
            rows = attacked_rows(images.audited, settings.n, context.config.seed) if some is None else some
            found[model.name] = _ascribed(context, rows.select(range(min(settings.n, len(rows)))), model)
    return Attributions(found, tuple(lost))


def _ascribed(context: Context, rows: AuditSet, model: Measured) -> Ascribed:
    settings, seed = context.config.attribution, context.config.seed
    assert settings is not None
    images = rows.images().to(context.device)
    found: list[Attribution] = []
    made: dict[str, Attributed] = {}
    notes: list[NotComputed] = []
    blind = model.blind if model.classifier.differentiable else f"{REASON}."
    for method in settings.methods:
        if blind is not None and method in GRADIENTS:
            notes.append(_note(method, blind))
            continue
        with stage_progress(f"{method} of {model.name}", 2 * len(rows)) as advance:
            work = partial(attribute, method, model.classifier, images, settings, seed, advance)
            one = tried(
                STAGE,
                partial(
                    context.of(model.classifier).kept, STAGE, work, (attribute.__module__,), method=method,
                    images=images, settings=settings.model_dump(exclude={"methods", "n"}), seed=seed,
                ),
            )  # fmt: skip
        if isinstance(one, Failure):
            notes.append(_note(method, one.why))
        else:
            found.append(_row(context, rows, one))
            made[method] = one
    return Ascribed(rows, tuple(found), made, tuple(notes))


def _note(method: str, why: str) -> NotComputed:
    return NotComputed(what=f"attribution by {method}", why=why, paths=[f"attributions.{method}"])


def _row(context: Context, rows: AuditSet, one: Attributed) -> Attribution:
    generator = context.rng(f"attribution/{one.method}")
    regions = [region_share(name, one.maps, rows.region(name), PERMUTATIONS, generator) for name in rows.regions]
    similarity = bootstrap_mean(one.similarities, generator) if len(one.similarities) else Interval(value=None)
    return Attribution(method=one.method, n=len(rows), regions=regions, similarity=similarity)


def with_maps_of(attributions: Attributions, model: str, folder: str) -> list[Attribution]:
    """Return what was found of `model` with the names of its pictures in `folder`."""
    ascribed = attributions.models.get(model)
    if ascribed is None:
        return []
    rows = ascribed.rows
    labels, names = rows.row_labels.tolist(), file_names(rows.row_ids)
    return [
        one.model_copy(
            update={
                "examples": [
                    AttributionMap(
                        id=row_id,
                        label=rows.class_names[label],
                        predicted=rows.class_names[answer],
                        image=f"{folder}/attribution-{name}.png",
                        map_image=f"{folder}/attribution-{name}-{one.method}.png",
                    )
                    for row_id, label, answer, name in zip(
                        rows.row_ids, labels, ascribed.made[one.method].classes.tolist(), names, strict=True
                    )
                ]
            }
        )
        for one in ascribed.found
    ]


def save_attributions(result: AuditResult, attributions: Attributions, folder: Path) -> None:
    """Write the named maps, each over its largest value, and the images they belong to."""
    for model in result.models:
        ascribed = attributions.models.get(model.name)
        if ascribed is None:
            continue
        images = ascribed.rows.images()
        for one in model.attributions:
            for image, values, example in zip(images, ascribed.made[one.method].maps, one.examples, strict=False):
                save_image(image, folder / example.image)
                save_image((values / values.max().clamp_min(1e-12))[None], folder / example.map_image)
