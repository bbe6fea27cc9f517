"""What of an audit can be computed apart: one model on one batch of images, or one model on all of them.

Processes wait for each other at the end of a set of parts, so that there are few sets and what takes long stands first.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from torch import Tensor

from audit.config import AuditConfig
from audit.data.audit_set import AuditSet
from audit.pipeline.answers import answers_of
from audit.pipeline.calibrate import calibrate
from audit.pipeline.divided import Part, Site
from audit.pipeline.first_look import seen_of
from audit.pipeline.looks import embed_with_bar
from audit.pipeline.robustness import Measured, mapped, nothing_measured, panel_of
from audit.reliance.interventions import INTERVENTIONS, choose_interventions
from audit.reliance.regions import treated
from audit.reliance.run import Shown, reactions
from audit.results import TRANSFER
from audit.robustness.attacks.registry import others_of, stages_of
from audit.robustness.balls import Ball, attacked_rows
from audit.robustness.corruptions.run import corruption_accuracies
from audit.robustness.evaluate import attack_lot, measured_robustness


def parts_of_answers(models: Sequence[str]) -> list[Part]:
    """Return the parts by whose results images are chosen to be explained."""
    return [partial(answered, name=name) for name in models]


def parts_on_batches(config: AuditConfig, audited: int, models: Sequence[str]) -> list[Part]:
    """Return the parts of the stages without a generator, of which there are `audited` images."""
    settings = config.robustness
    asked = [settings.n, *(one.n for one in (settings.corruptions, config.reliance) if one is not None)]
    lots = range(-(-min(max(asked), audited) // settings.batch_size))
    if len(lots) == 1:
        return [partial(on_only_batch, name=name) for name in models]
    return [partial(on_batch, name=name, lot=lot) for name in models for lot in lots]


def parts_of_models(models: Sequence[str]) -> list[Part]:
    """Return the parts that rest on those of all batches."""
    return [partial(on_all, name=name) for name in models]


def parts_of_scores(config: AuditConfig) -> list[Part]:
    """Return the parts of what counterfactuals are scored by, which rest on no other part."""
    if config.generator is None:
        return []
    judges = [partial(judging, name=one.name) for one in config.judge_checkpoints]
    return [*judges, *(partial(embedded, calibration=one) for one in (True, False))]


def answered(site: Site, name: str) -> None:
    """Ask a model for its answers to all audited images, look at it, and learn what is usual for it."""
    context, classifier = site.context, site.model(name)
    answers_of(context, classifier, site.audited)
    seen_of(context, classifier, site.audited)
    if site.calibration is not None and context.config.generator is not None:
        calibrate(context, classifier, site.calibration)


def judging(site: Site, name: str) -> None:
    """Ask a classifier that only judges for its answers."""
    for images in (site.audited, site.calibration):
        if images is not None:
            answers_of(site.context, site.model(name), images)


def embedded(site: Site, calibration: bool) -> None:
    """Show the images to calibrate on, or else the audited ones, to the network that realism rests on."""
    images, networks = site.calibration if calibration else site.audited, site.networks()
    if images is not None and networks is not None:
        embed_with_bar(site.context, networks.embedding, images, "embedding images")


def _model(site: Site, name: str) -> Measured:
    classifier = site.model(name)
    return Measured(classifier, nothing_measured(site.images.class_names), low=site.low(name))


def on_batch(site: Site, name: str, lot: int) -> None:
    """Attack, corrupt and change one batch of images, and ask a model for its answers."""
    context, model = site.context, _model(site, name)
    config, settings, stages = context.config, context.config.robustness, model.stages(context)
    batch = replace(site.audited, lot=lot)
    attack_lot(model.graded, batch, settings, config.seed, stages, shown=TRANSFER in settings.attacks)
    if settings.corruptions is not None:
        corruption_accuracies(
            panel_of(context, [model]), batch, settings.corruptions, config.seed,
            batch_size=settings.batch_size, device=context.device,
        )  # fmt: skip
    if config.reliance is not None and lot * settings.batch_size < min(config.reliance.n, len(batch)):
        # Of an intervention of another package nothing is kept.
        chosen = choose_interventions(config.reliance)
        ours = {name: one for name, one in chosen.items() if INTERVENTIONS.origin(name) is None}
        reactions(panel_of(context, [model]), _shown(site, batch, config.reliance.n), ours)


def on_only_batch(site: Site, name: str) -> None:
    """Do with all images, which are one batch, what is done with every batch, and then what rests on that."""
    on_batch(site, name, 0)
    on_all(site, name)


def on_all(site: Site, name: str) -> None:
    """Do what rests on all batches of one model: trust checks, vulnerability maps, answers without a region."""
    context, model = site.context, _model(site, name)
    config, stages = context.config, model.stages(context)
    # An attack of another package is kept nowhere and would be made here, too.
    if all(one.source is None for one in (*others_of(config.robustness), *stages_of(config.robustness))):
        witness = _unmoved if TRANSFER in config.robustness.attacks else None
        measured_robustness(model.graded, site.audited, config.robustness, config.seed, stages, witness=witness)
    if config.robustness.vulnerability is not None and site.calibration is not None:
        mapped(context, site.audited, site.calibration, model)
    if config.reliance is not None:
        for region in site.audited.regions:
            treated(panel_of(context, [model]), _shown(site, site.audited, config.reliance.n), region)


def _shown(site: Site, images: AuditSet, n: int) -> Shown:
    context = site.context
    some = attacked_rows(images, n, context.config.seed)
    return Shown(some, context.config.robustness.batch_size, context.device, context.config.seed)


def _unmoved(ball: Ball, rows: Tensor, images: Tensor) -> None:
    """Look at attacked images, which are kept for those who will."""
