"""The second half of an audit: query images, inversions, counterfactuals, their scores and the ranking of the models.

A model that fails on the way is left out; the others complete, on the query images that were chosen. What is known is
one frozen value, of which every step makes a new one: the last one stays where a later step fails.
"""

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from torch import Tensor

from audit.counterfactual.iterates import operating_points
from audit.counterfactual.methods import ChosenMethod
from audit.embeddings.embedding import named
from audit.errors import ClassifierError, ModelFault
from audit.inversion.invert import Inversion
from audit.inversion.pivotal import editability
from audit.metrics.edit import mean_absolute
from audit.metrics.intervals import mean_interval
from audit.pipeline.answers import decisions
from audit.pipeline.compare import Compared, compare
from audit.pipeline.context import Context
from audit.pipeline.explain import Explained, Subject, equal_edits, explain_apart, explain_model, way_back
from audit.pipeline.images import Images
from audit.pipeline.looks import embed_with_bar
from audit.pipeline.networks import Networks
from audit.pipeline.pairing import Group
from audit.pipeline.queries import Queries, Selection, choose_queries, invert_queries, null_edits, stable_groups
from audit.pipeline.rank import Ranking, rank_models
from audit.pipeline.reference import Reference, build_reference
from audit.pipeline.response import responses
from audit.pipeline.score import NO_REGION, Scored, score_model
from audit.pipeline.transfer import (
    Panel,
    all_verdicts,
    checkpoint_judges,
    classifier_judge,
    domain_judge,
    fitted_judge,
    goals_of,
)
from audit.results import MEANINGFULNESS, Failure, InversionSummary, NotComputed, Perceptual
from audit.runtime.faults import stage_kept, tried

STAGE = "counterfactuals, index and ranking"
"""What the second half is called where it is not computed."""


@dataclass(frozen=True)
class Meaningfulness:
    """What was found so far; by the name of a model what concerns one, and None or empty what was not come to.

    `pool` are images that were inverted before, the query images among them; None: none were.
    `queries` are the images that are explained of any model, `asked` those of each; `unpaired` are the models that
    share theirs with no other. `compared` holds by the names of model and method what the other methods came to.
    `failed` says why a model was left out, `notes` what could not be computed for the others, `lost` what ended the
    second half as a whole.
    """

    networks: Networks
    method: ChosenMethod
    pool: Queries | None = None
    selection: Selection | None = None
    queries: Queries | None = None
    asked: Mapping[str, Queries] = field(default_factory=dict)
    unpaired: frozenset[str] = frozenset()
    left_out_by_inversion: Mapping[str, int] = field(default_factory=dict)
    explained: Mapping[str, Explained] = field(default_factory=dict)
    reference: Reference | None = None
    panel: Panel | None = None
    scored: Mapping[str, Scored] = field(default_factory=dict)
    ranking: Ranking | None = None
    inversion: InversionSummary | None = None
    compared: Mapping[tuple[str, str], Compared] = field(default_factory=dict)
    failed: Mapping[str, Failure] = field(default_factory=dict)
    notes: tuple[NotComputed, ...] = ()
    lost: tuple[NotComputed, ...] = ()

    def without(self, name: str, failure: Failure) -> "Meaningfulness":
        """Return the same with the model `name` left out."""
        return replace(self, failed={**self.failed, name: failure})

    def noting(self, what: str, why: str) -> "Meaningfulness":
        """Return the same with a note on what could not be computed."""
        return replace(self, notes=(*self.notes, NotComputed(what=what, why=why)))


Steps = Generator[Meaningfulness, None, Meaningfulness]
"""Yields what is known after every step, and returns it after the last one."""


def explain_models(
    context: Context,
    images: Images,
    subjects: Sequence[Subject],
    networks: Networks,
    methods: Sequence[ChosenMethod],
    pool: Queries | None = None,
) -> Meaningfulness:
    """Explain, score and rank the `subjects` by the first of the `methods`, and compare it with the others.

    `pool` are inverted images that hold all that will be explained; None: they are inverted here. What ends the second
    half as a whole is in `lost` of what was found.
    """
    found = Meaningfulness(networks, methods[0], pool, notes=tuple(networks.missing))
    lost: list[NotComputed] = []
    with stage_kept(STAGE, lost, MEANINGFULNESS):
        for known in _steps(context, images, subjects, found, methods[1:]):
            found = known
    return replace(found, lost=tuple(lost))


def _steps(
    context: Context,
    images: Images,
    subjects: Sequence[Subject],
    found: Meaningfulness,
    others: Sequence[ChosenMethod],
) -> Steps:
    found = yield from _choose_queries(context, images, subjects, found)
    found = yield from _explain(context, subjects, found)
    with context.watch.stage("metrics"):
        found = yield from _score(context, images, subjects, found)
    there = _left(subjects, found)
    with context.watch.stage("ranking"):
        scores = [found.scored[one.name].scores for one in there]
        ranking = rank_models(scores, context.config.ranking, context.config.seed, found.unpaired)
        found = replace(found, ranking=ranking, notes=(*found.notes, *ranking.not_computed))
    yield found
    assert found.queries is not None
    with context.watch.stage("inversion"):
        found = replace(found, inversion=_inversion_summary(context, found.networks, found.queries))
    yield found
    for method in others:
        for one in there:
            assert found.reference is not None
            assert found.panel is not None
            compared = compare(context, method, found.reference, found.panel, found.explained[one.name])
            found = replace(found, compared={**found.compared, (one.name, method.name): compared})
            yield found
    return found


def _left(subjects: Sequence[Subject], found: Meaningfulness) -> list[Subject]:
    """Return the subjects that are still to be explained. Raises ClassifierError where there are none."""
    nothing = {} if found.selection is None else found.selection.nothing
    there = [one for one in subjects if one.name not in found.failed and one.name not in nothing]
    if not there and nothing:
        raise ClassifierError("There is nothing to explain: " + " ".join(nothing.values()))
    if not there:
        raise ClassifierError("No model is left to be explained: each of them failed, as is told with its name.")
    return there


def _choose_queries(context: Context, images: Images, subjects: Sequence[Subject], found: Meaningfulness) -> Steps:
    """Choose the query images, invert them, and keep those that their models decide as before."""
    wanted = context.config.queries.n
    with context.watch.stage("inversion"):
        predicted = {one.name: one.logits.argmax(1) for one in _left(subjects, found)}
        selection = choose_queries(context, images.audited, predicted)
        found = replace(found, selection=selection, failed={**found.failed, **selection.failed})
        yield found
        _left(subjects, found)
        if found.pool is None:
            inverted = invert_queries(context, found.networks, images.audited, selection.indices)
        else:
            inverted = found.pool.of(images.audited, selection.indices)
        same: dict[str, Tensor] = {}
        for one in _left(subjects, found):
            decided = tried("inversion", partial(decisions, context, one.classifier, inverted.inversion.images))
            if isinstance(decided, Failure):
                found = found.without(one.name, decided)
            else:
                same[one.name] = decided == predicted[one.name][inverted.positions]
                own = next(group.places for group in selection.groups if one.name in group.models)
                left_out = {**found.left_out_by_inversion, one.name: int((~same[one.name][own]).sum())}
                found = replace(found, left_out_by_inversion=left_out)
            yield found
        stable = stable_groups(inverted, selection.groups, same, wanted)
        found = replace(found, failed={**found.failed, **stable.failed})
        yield found
        _left(subjects, found)
        found = _asking(found, inverted, stable.groups)
    for group in stable.groups:
        missing = wanted - len(group.places)
        if missing > 0:
            only = len(stable.groups) == 1
            models = "all models" if only else ", ".join(group.models)
            found = found.noting(
                what=f"counterfactuals of {missing} of {wanted} query images{'' if only else f' of {models}'}",
                why=f"the audit split has no more images of the source classes that are "
                f"{_PICKED[context.config.queries.pick]} by {models}, as they are and as inversions",
            )
    yield found
    return found


_PICKED = {
    "correct": "classified correctly",
    "wrong": "misclassified",
    "all": "decided in one way",
}
"""Words for the choices of `queries.pick`."""


def _asking(found: Meaningfulness, inverted: Queries, groups: Sequence[Group]) -> Meaningfulness:
    """Return what was found with the queries of the `groups`, which are at places in the `inverted` ones."""
    kept = torch.cat([group.places for group in groups]).unique()
    queries = inverted.select(kept)
    asked: dict[str, Queries] = {}
    for group in groups:
        places = torch.searchsorted(kept, group.places)
        asked |= dict.fromkeys(group.models, queries if len(places) == len(kept) else queries.select(places))
    alone = frozenset(group.models[0] for group in groups if len(group.models) == 1) if len(groups) > 1 else frozenset()
    return replace(found, queries=queries, asked=asked, unpaired=alone)


def _explain(context: Context, subjects: Sequence[Subject], found: Meaningfulness) -> Steps:
    with context.watch.stage("counterfactuals"):
        asked = [(one, found.asked[one.name]) for one in _left(subjects, found)]
        explain_apart(context, found.method, found.networks, asked)
    for one in _left(subjects, found):
        explain = partial(explain_model, context, found.method, found.networks, found.asked[one.name], one)
        with context.watch.stage("counterfactuals"):
            explained = tried("counterfactuals", explain)
        if isinstance(explained, Failure):
            found = found.without(one.name, explained)
        else:
            go_back = partial(way_back, context, found.method, found.networks, explained)
            with context.watch.stage("ways back"):
                back = tried("ways back", go_back)
            explained = replace(explained, back=back.why if isinstance(back, Failure) else back)
            found = replace(found, explained={**found.explained, one.name: explained})
        yield found
    _left(subjects, found)
    shared = [one.targets for name, one in found.explained.items() if name not in found.unpaired]
    if any(not torch.equal(shared[0], targets) for targets in shared):
        found = found.noting(
            what="distribution metrics and realism of the same edits for all models",
            why=f"with queries.target = '{context.config.queries.target}' and queries.pick = "
            f"'{context.config.queries.pick}' models were asked for different target classes; towards each class, "
            "FID and MMD rest on equally many edits of each model",
        )
    yield found
    return found


def _score(context: Context, images: Images, subjects: Sequence[Subject], found: Meaningfulness) -> Steps:
    assert found.queries is not None
    assert images.calibration is not None
    network = found.networks.embedding
    embedded = embed_with_bar(context, network, images.calibration, "embedding calibration images")
    edits = equal_edits(list(found.explained.values()), context.config.metrics.min_images)
    reference = build_reference(context, found.networks, found.queries, images.calibration, embedded, edits)
    panel: Panel | None = None
    while panel is None:
        explained = [found.explained[one.name] for one in _left(subjects, found)]
        try:
            panel = _panel(context, images, explained, reference, embedded)
        except ModelFault as fault:  # of a judge: the others are judged again without it
            if fault.model not in [one.subject.name for one in explained]:
                raise
            found = found.without(fault.model, Failure(stage="metrics", why=str(fault)))
            yield found
    for one in _left(subjects, found):
        name, mine = one.name, found.explained[one.name]
        scored = tried(
            "metrics",
            partial(
                score_model,
                context,
                reference.of(mine.queries),
                mine,
                panel.verdicts[name],
                found.method,
                response=panel.responses.get(name, NO_REGION),
            ),
        )
        if isinstance(scored, Failure):
            found = found.without(name, scored)
        else:
            found = replace(found, scored={**found.scored, name: scored})
        yield found
    found = replace(found, reference=reference, panel=panel)
    yield found
    return found


def _panel(
    context: Context, images: Images, explained: Sequence[Explained], reference: Reference, embedded: Tensor
) -> Panel:
    """What the judges of every model say: the other models, those of the configuration, one in the domain embedding."""
    assert images.calibration is not None
    network, audited, known = reference.networks.embedding, images.audited, images.calibration
    domain = fitted_judge(context, network, embedded, known.row_labels)
    judges = [
        classifier_judge(
            context, one.classifier, one.clean.accuracy.value or 0.0, goals_of(context, one.calibrated.operating_point)
        )
        for one in (each.subject for each in explained)
    ]
    judges += checkpoint_judges(context, reference.networks.judges, audited, known)
    real = embed_with_bar(context, network, audited, "embedding audited images")
    accuracy = float((domain.predict(real) == audited.row_labels).float().mean())
    usual = domain.confidences(embedded)
    goals = goals_of(context, operating_points(usual, known.row_labels, usual.argmax(1)))
    judges.append(domain_judge(context, network, domain, accuracy, goals))
    verdicts = all_verdicts(context, explained, judges, reference.queries)
    return Panel(tuple(judges), verdicts, responses(context, explained, reference))


def _inversion_summary(context: Context, networks: Networks, queries: Queries) -> InversionSummary:
    def mean(values: Tensor | None) -> float | None:
        return None if values is None else float(values.mean())

    inversion = queries.inversion
    perceptual = mean(inversion.perceptual)
    repeated = {1: inversion.images, context.config.metrics.null_edits: null_edits(context, networks, queries)}
    return InversionSummary(
        method=inversion.method,
        n=len(inversion.images),
        mse=float(inversion.mse.mean()),
        mse_max=float(inversion.mse.max()),
        encoder_mse=mean(inversion.encoder_mse),
        pivot_mse=mean(inversion.pivot_mse),
        editability=_editability(context, networks, inversion),
        perceptual=None if perceptual is None else Perceptual(value=perceptual, embedding=named(networks.perceptual)),
        composition={
            times: mean_interval(mean_absolute(images, queries.images[: len(images)]))
            for times, images in repeated.items()
        },
    )


def _editability(context: Context, networks: Networks, inversion: Inversion) -> float | None:
    """Mean over the images of `pivotal.editability`; None where no weights were tuned."""
    if not inversion.deltas:
        return None
    config, size = context.config, context.config.inversion.batch_size

    def moved() -> Tensor:
        parts = []
        for rows in torch.arange(len(inversion.pivots)).split(size):
            deltas = inversion.deltas.select(rows)
            parts.append(editability(networks.loaded.generator, inversion.pivots[rows], deltas, config.seed).cpu())
        return torch.cat(parts)

    kept = context.stages.kept(
        "editability", moved, (editability.__module__,), generator=networks.loaded.sha256, pivots=inversion.pivots,
        images=inversion.images, settings=config.inversion.deltas, limits=[size, config.max_memory], seed=config.seed,
    )  # fmt: skip
    return float(kept.mean())
