"""What every judge says about every model's counterfactuals, and how often each judge says no.

Judges of a model are the other audited models, classifiers that only judge, and one predictor fitted on real images in
the domain embedding. A copy of a model, trained alike, is asked about that model only. A judge's power is measured on
the unedited inversions and on pixel-space adversarial examples made for the models that it judges: one that calls those
the target too is no evidence.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, partial

import torch
from torch import Tensor

from audit.classifiers.classifier import Classifier
from audit.classifiers.slices import sparing
from audit.counterfactual.iterates import operating_points
from audit.data.audit_set import AuditSet
from audit.embeddings.embedding import Embedder
from audit.metrics.response import Answers
from audit.metrics.transfer import Confidences, EmbeddingJudge, Verdicts, fit_judge, judge_name
from audit.pipeline.answers import answers_of, confidences_of, decisions, of_targets
from audit.pipeline.context import Context
from audit.pipeline.explain import Explained
from audit.pipeline.looks import embedded
from audit.pipeline.queries import Queries
from audit.robustness.attacks.pgd import pgd_attack
from audit.runtime.progress import stage_progress

JUDGE_EPS = 8 / 255
"""Radius of the pixel-space adversarial examples by which a judge's power is measured."""
JUDGE_STEPS = 20


@dataclass(frozen=True)
class Judge:
    """Predicts probabilities `[N, K]` from images `[N, C, H, W]`; `accuracy` is on real images of the audit split.

    `goals` `[K]` are its operating points: its usual confidence on calibration images of a class that it gets right.
    `weights_sha256` is that of a classifier which is not audited; `copy_of` the name of the model that it is a copy of.
    """

    name: str
    accuracy: float
    confidences: Callable[[Tensor], Tensor]
    goals: Tensor
    weights_sha256: str | None = None
    copy_of: str | None = None

    def decide(self, images: Tensor) -> Tensor:
        """Return the labels `[N]` of images `[N, C, H, W]`."""
        return self.confidences(images).argmax(1)

    def judges(self, model: str) -> bool:
        """Whether it says anything of the counterfactuals of `model`."""
        return model != self.name if self.copy_of is None else model == self.copy_of


@dataclass(frozen=True)
class Panel:
    """All judges, and by the name of a model the verdicts of those that had no part in making its counterfactuals, and
    what it answers to those of all models, where there is a region.
    """

    judges: tuple[Judge, ...]
    verdicts: Mapping[str, list[Verdicts]]
    responses: Mapping[str, Answers] = field(default_factory=dict)

    def on(self, model: str, images: Tensor, targets: Tensor) -> list[Verdicts]:
        """Return the verdicts on other counterfactuals `[N, C, H, W]` that explain `model` on the same queries."""
        by_name = {judge.name: judge for judge in self.judges}
        found = []
        for one in self.verdicts[model]:
            after = by_name[one.judge].confidences(images)
            assert one.confidences is not None
            confidences = replace(one.confidences, after=of_targets(after, targets))
            found.append(replace(one, counterfactuals=after.argmax(1), confidences=confidences))
        return found


def goals_of(context: Context, points: Tensor) -> Tensor:
    """Return a judge's operating points `[K]` as they are asked of a model, and the most of it where there is none."""
    cap = context.config.counterfactual.operating_point_cap
    return points.clamp(max=cap).nan_to_num(cap)


def classifier_judge(context: Context, classifier: Classifier, accuracy: float, goals: Tensor) -> Judge:
    """Wrap an audited classifier as a judge."""
    return Judge(classifier.name, accuracy, partial(confidences_of, context, classifier), goals)


def checkpoint_judges(
    context: Context, classifiers: Sequence[Classifier], audited: AuditSet, calibration: AuditSet
) -> list[Judge]:
    """Wrap the classifiers of `judge_checkpoints`, with their accuracy on the `audited` images."""
    copied = {one.name: one.copy_of for one in context.config.judge_checkpoints}
    judges = []
    for one in classifiers:
        logits = answers_of(context, one, audited)
        accuracy = float((logits.argmax(1) == audited.row_labels).float().mean())
        usual = answers_of(context, one, calibration).double().softmax(1)
        points = operating_points(usual, calibration.row_labels, usual.argmax(1))
        judge = classifier_judge(context, one, accuracy, goals_of(context, points))
        judges.append(replace(judge, weights_sha256=one.weights_sha256, copy_of=copied[one.name]))
    return judges


def fitted_judge(context: Context, network: Embedder, real: Tensor, labels: Tensor) -> EmbeddingJudge:
    """Return the predictor fitted on real images embedded as `real` `[n, d]` with `labels` `[n]`.

    What it says of others is kept, so that it is fitted only when something new is asked.
    """
    fit = cache(partial(fit_judge, network.name, real, labels))

    def confidences(seen: Tensor) -> Tensor:
        return context.stages.kept(
            "domain judge", lambda: fit().confidences(seen), (fit_judge.__module__,), real=real, labels=labels, of=seen
        )

    return EmbeddingJudge(judge_name(network.name), confidences)


def domain_judge(context: Context, network: Embedder, judge: EmbeddingJudge, accuracy: float, goals: Tensor) -> Judge:
    """Wrap the predictor in the domain embedding."""
    return Judge(judge.name, accuracy, lambda made: judge.confidences(embedded(context, network, made)), goals)


def adversarial_examples(context: Context, classifier: Classifier, queries: Queries) -> Tensor:
    """Pixel-space adversarial examples `[N, C, H, W]` of the query images against one model."""

    def attack() -> Tensor:
        generator, device = context.rng("judges"), context.device
        return torch.cat(
            [
                pgd_attack(
                    classifier, images.to(device), y.to(device), eps=JUDGE_EPS, steps=JUDGE_STEPS, generator=generator
                ).cpu()
                for images, y in zip(queries.images.split(64), queries.labels.split(64), strict=True)
            ]
        )

    return context.of(classifier).kept(
        "adversarial examples for the judges", partial(sparing, classifier, attack), (pgd_attack.__module__,),
        images=queries.images, labels=queries.labels, eps=JUDGE_EPS, steps=JUDGE_STEPS, seed=context.config.seed,
    )  # fmt: skip


def all_verdicts(
    context: Context, explained: Sequence[Explained], judges: Sequence[Judge], queries: Queries
) -> dict[str, list[Verdicts]]:
    """By the name of a model the verdicts of all judges that had no part in making its counterfactuals.

    `queries` are those of all models. Adversarial examples count only where they bring the model they were made for to
    its target.
    """
    adversarial = []
    with stage_progress("adversarial examples for the judges", len(explained)) as advance:
        for one in explained:
            adversarial.append(adversarial_examples(context, one.subject.classifier, one.queries))
            advance()
    works = [
        decisions(context, one.subject.classifier, images) == one.targets
        for one, images in zip(explained, adversarial, strict=True)
    ]
    verdicts: dict[str, list[Verdicts]] = {one.subject.name: [] for one in explained}
    for judge in judges:
        on_inversions = judge.confidences(queries.inversion.images)
        others = [(one, a[w], one.targets[w]) for one, a, w in zip(explained, adversarial, works, strict=True)]
        others = [entry for entry in others if judge.judges(entry[0].subject.name)]
        rejected = [judge.decide(images) != targets for _, images, targets in others if len(images)]
        share = float(torch.cat(rejected).float().mean()) if rejected else None
        for one, _, _ in others:
            after, before = judge.confidences(one.counterfactuals.images), on_inversions[queries.places_of(one.queries)]
            targets = one.targets
            verdict = Verdicts(
                judge.name,
                judge.accuracy,
                after.argmax(1),
                before.argmax(1),
                rejects_adversarial=share,
                weights_sha256=judge.weights_sha256,
                is_copy=judge.copy_of is not None,
                confidences=Confidences(
                    of_targets(before, targets), of_targets(after, targets), judge.goals[targets].double()
                ),
            )
            verdicts[one.subject.name].append(verdict)
    return verdicts
