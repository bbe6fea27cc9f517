"""What the models decide by: how they react to changes of their images that have no part in the class.

Needs no generator. A model that fails here keeps all that was measured of it before.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from audit.config import RelianceConfig
from audit.data.audit_set import AuditSet
from audit.pipeline.context import Context
from audit.pipeline.images import Images
from audit.pipeline.robustness import Measured, panel_of
from audit.reliance.groups import CLUSTERS, clusters, gaps
from audit.reliance.regions import treated
from audit.reliance.run import Changed, Shown, reactions
from audit.reliance.spec import Intervention
from audit.results import AuditResult, ChangedImage, Group, NotComputed, Reliance, Treated
from audit.robustness.balls import attacked_rows
from audit.runtime.faults import reason, stage_kept
from audit.storage.pictures import save_image

STAGE = "reliance"


@dataclass(frozen=True)
class Relied:
    """What was found of every model, by name, why it was not of the others, and the stages that failed as a whole.

    `examples` are images that an intervention changes the decision on, by model and intervention.
    """

    found: Mapping[str, Reliance] = field(default_factory=dict)
    examples: Mapping[str, Mapping[str, Changed]] = field(default_factory=dict)
    notes: Mapping[str, NotComputed] = field(default_factory=dict)
    lost: tuple[NotComputed, ...] = ()


def measure_reliance(
    context: Context, images: Images, models: Sequence[Measured], interventions: Mapping[str, Intervention]
) -> Relied:
    """Measure what all models that have not failed react to; where the configuration asks for nothing, nothing."""
    settings = context.config.reliance
    asked = [model for model in models if model.failed is None]
    if settings is None or not asked:
        return Relied()
    lost: list[NotComputed] = []
    found: dict[str, Reliance] = {}
    examples: dict[str, Mapping[str, Changed]] = {}
    panel = panel_of(context, asked)
    with context.watch.stage(STAGE), stage_kept(STAGE, lost, [STAGE]):
        some = attacked_rows(images.audited, settings.n, context.config.seed)
        shown = Shown(some, context.config.robustness.batch_size, context.device, context.config.seed)
        reacted = reactions(panel, shown, interventions)
        regions: dict[str, list[Treated]] = {name: [] for name in reacted}
        for region in images.audited.regions:
            for name, rows in treated(panel, shown, region).items():
                regions[name] += rows
        standing = [model for model in asked if model.name in panel.standing]
        groups = _groups(context, images.audited, settings, standing)
        for name in panel.standing:
            found[name] = Reliance(
                n=len(some), interventions=reacted[name].rows, regions=regions[name], groups=groups[name]
            )
            examples[name] = reacted[name].examples
    notes = {name: NotComputed(what=STAGE, why=reason(error), paths=[STAGE]) for name, error in panel.failed.items()}
    return Relied(found, examples, notes, tuple(lost))


def _groups(
    context: Context, audited: AuditSet, settings: RelianceConfig, models: Sequence[Measured]
) -> dict[str, list[Group]]:
    """Compare accuracy on all audited images by columns of metadata, and by images that look alike."""
    columns: dict[str, Sequence[str]] = dict(audited.row_groups)
    if settings.clusters:
        batch, seed = context.config.robustness.batch_size, context.config.seed
        find = partial(clusters, audited, settings.clusters, batch, seed)
        columns[CLUSTERS] = context.stages.kept(
            CLUSTERS, find, (clusters.__module__,), images=audited.content, count=settings.clusters, seed=seed
        )
    labels = audited.row_labels
    return {
        model.name: gaps(model.predicted == labels, labels, columns, settings.min_group, context.rng("reliance/groups"))
        for model in models
    }


def with_examples(relied: Relied, model: str, folder: str) -> Reliance | None:
    """Return what was found of a model, with the names in `folder` of the pictures of its examples."""
    found, examples = relied.found.get(model), relied.examples.get(model, {})
    if found is None:
        return None
    rows = []
    for place, row in enumerate(found.interventions):
        if row.name in examples:
            one, file = examples[row.name], f"{folder}/reliance-{place}"
            example = ChangedImage(
                id=one.id,
                before=one.before,
                after=one.after,
                image=f"{file}.png",
                changed_image=f"{file}-changed.png",
            )
            row = row.model_copy(update={"example": example})
        rows.append(row)
    return found.model_copy(update={"interventions": rows})


def save_changed(result: AuditResult, relied: Relied, folder: Path) -> None:
    """Write the named pictures of images that an intervention changes the decision on, before and after."""
    for model in result.models:
        for row in model.reliance.interventions if model.reliance is not None else ():
            if row.example is not None:
                one = relied.examples[model.name][row.name]
                save_image(one.image, folder / row.example.image)
                save_image(one.changed, folder / row.example.changed_image)
