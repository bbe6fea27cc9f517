"""Robust accuracy over radii and attacks, on the same images and from equal starts for all models.

Radii are attacked in rising order. An image that is fooled within a small ball is fooled within every larger one, so it
is not attacked again: the curve falls monotonically and costs less.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

from audit.classifiers.mode import preserve_mode
from audit.classifiers.slices import sparing
from audit.config import RobustnessConfig, eps_value
from audit.data.audit_set import AuditSet
from audit.errors import MetricError
from audit.metrics.intervals import wilson_interval
from audit.results import Attack, CascadeStage, MinimalDistance, Robust
from audit.robustness.accuracy import device_of
from audit.robustness.attacks.ball import Norm
from audit.robustness.attacks.blind import Account
from audit.robustness.attacks.checks import checked_logits, name_of
from audit.robustness.attacks.pgd import pgd_attack
from audit.robustness.attacks.sight import Sight
from audit.robustness.distance import median_distance, minimal_distances
from audit.robustness.ensemble import StageCache, run_cascade
from audit.robustness.examples import EXAMPLES, Fooled, first_fooled, still_fooled
from audit.robustness.trust.verdict import Evidence, check_trust
from audit.runtime.progress import stage_progress
from audit.runtime.seeds import stage_generator

Kind = Literal["pgd", "ensemble"]
Outcome = Literal["before", "smaller", "pgd", "apgd-ce", "apgd-t", "fab-t", "square"]
OUTCOMES: tuple[Outcome, ...] = ("before", "smaller", "pgd", "apgd-ce", "apgd-t", "fab-t", "square")
"""What can become of an image, by the number that stands for it while the attacks run; -1: it stands."""
BEFORE, SMALLER, PGD = OUTCOMES.index("before"), OUTCOMES.index("smaller"), OUTCOMES.index("pgd")


@dataclass(frozen=True)
class Attacked:
    """Robust accuracies, and which images stood: bool `[n]` by the number's path, for instance 'robust.pgd.8/255'.

    `examples` are the first images of the attacked order that the first attack fools; `accounts` say by the same paths
    what each attack saw of its images.
    """

    robust: Robust
    standing: dict[str, Tensor]
    examples: list[Fooled] = field(default_factory=list)
    accounts: dict[str, Account] = field(default_factory=dict)


@dataclass(frozen=True)
class _Met:
    """What one attack did to one batch.

    `standing` and `blind` are bool `[N]`: which images stand, and of which it never had a gradient. `fell` int64 `[N]`
    is the place in `OUTCOMES` of what became of each attacked image, -1 elsewhere; `images` `[N, C, H, W]` are as the
    attack left them.
    """

    standing: Tensor
    blind: Tensor
    fell: Tensor
    images: Tensor
    stages: list[CascadeStage] = field(default_factory=list)


@dataclass
class _Tally:
    """What became of all images under one attack: `standing` and `blind` bool `[n]`, `fell` int64 `[n]`."""

    standing: Tensor
    blind: Tensor
    fell: Tensor
    stages: list[CascadeStage] = field(default_factory=list)

    @classmethod
    def of(cls, n: int) -> "_Tally":
        return cls(torch.zeros(n, dtype=torch.bool), torch.zeros(n, dtype=torch.bool), torch.full((n,), -1))

    def enter(self, rows: Tensor, met: _Met, active: Tensor, earlier: Tensor) -> None:
        """Enter a batch's `rows`, of which `active` were attacked; what the others are is in `earlier`."""
        self.standing[rows] = met.standing.cpu()
        self.blind[rows] = (met.blind & met.standing).cpu()
        known = torch.where(earlier == BEFORE, BEFORE, SMALLER)
        self.fell[rows] = torch.where(active, met.fell, known).cpu()
        self.stages += met.stages


@dataclass(frozen=True)
class Ball:
    """One attack at one radius: what it is called in the results, and how large it is in pixel units of `norm`."""

    kind: Kind
    norm: Norm
    radius: str

    @property
    def eps(self) -> float:
        return eps_value(self.radius)

    @property
    def field(self) -> str:
        """Name of the table in `results.Robust` that holds the number."""
        return self.kind if self.norm == "Linf" else f"{self.kind}_l2"

    @property
    def metric(self) -> str:
        """Path of the number in the results."""
        return f"robust.{self.field}.{self.radius}"


def attacked_rows(dataset: AuditSet, n: int, seed: int) -> AuditSet:
    """Return the first `n` images of a seeded order: the same ones for every model and radius."""
    order = torch.randperm(len(dataset), generator=stage_generator(seed, "robustness/order"))
    chosen = dataset.select(order[:n])
    if len(chosen) == 0:
        raise MetricError(f"There is no image of {dataset.source} to attack: check data.audit_split.")
    return chosen


def _curves(config: RobustnessConfig) -> list[list[Ball]]:
    """The balls to attack: one list for each attack and norm, the radii rising."""
    radii: tuple[tuple[Norm, Sequence[str]], ...] = (("Linf", config.eps), ("L2", config.l2_eps))
    curves = [
        [Ball(kind, norm, radius) for radius in sorted(texts, key=eps_value)]
        for kind in config.attacks
        for norm, texts in radii
    ]
    return [curve for curve in curves if curve]


@dataclass(frozen=True)
class _Task:
    """One classifier under all attacks of `config`, with the seed of every draw."""

    classifier: nn.Module
    config: RobustnessConfig
    seed: int
    cache: StageCache | None


@dataclass(frozen=True)
class _Batch:
    """Images `[N, C, H, W]` with labels `[N]`; `first` is the place of the first one in the attacked order."""

    images: Tensor
    labels: Tensor
    first: int


def _attack(task: _Task, batch: _Batch, active: Tensor, ball: Ball) -> _Met:
    """Attack the `active` images of one batch."""
    classifier, config, seed = task.classifier, task.config, task.seed
    images, labels = batch.images, batch.labels
    # A stream a batch: were it shared, a fooled model's fewer draws would shift the next batch's starts.
    stream = f"robustness/{ball.field}/{ball.eps:.8f}/{batch.first}"
    if ball.kind == "pgd":
        sight = Sight.of(len(images), images.device)
        adversarial = pgd_attack(
            classifier,
            images,
            labels,
            eps=ball.eps,
            steps=config.steps,
            step_size=config.step_size,
            momentum=config.momentum,
            restarts=config.restarts,
            norm=ball.norm,
            active=active,
            generator=stage_generator(seed, stream),
            sight=sight,
        )
        with preserve_mode(classifier), torch.no_grad():
            standing = active & (checked_logits(classifier, adversarial).argmax(dim=1) == labels)
        # PGD gives back as it came what is misclassified anyway.
        changed = (adversarial != images).flatten(1).any(dim=1)
        fell = torch.where(standing, -1, torch.where(changed, PGD, BEFORE))
        return _Met(standing, sight.blind, fell, adversarial)
    rows = active.nonzero().flatten()
    cascade = run_cascade(
        classifier,
        images[rows],
        labels[rows],
        eps=ball.eps,
        norm=ball.norm,
        config=config.ensemble,
        seed_stage=stream,
        seed=seed,
        cache=task.cache,
    )
    standing, blind, adversarial = torch.zeros_like(active), torch.zeros_like(active), images.clone()
    standing[rows], blind[rows], adversarial[rows] = cascade.standing, cascade.blind, cascade.images
    fell = torch.full((len(images),), -1, device=images.device)
    places = torch.tensor([OUTCOMES.index(stage.attack) for stage in cascade.stages] + [-1], device=images.device)
    fell[rows] = places[cascade.fell]  # -1 takes the last
    before = cascade.stages[0].model_copy(update={"attacked": len(images)})
    return _Met(standing, blind, fell, adversarial, [before, *cascade.stages[1:]])


def _takes_gradients(ball: Ball, config: RobustnessConfig) -> bool:
    return ball.kind == "pgd" or set(config.ensemble.stages) != {"square"}


def _summary(ball: Ball, config: RobustnessConfig, tally: _Tally, chosen: AuditSet) -> Attack:
    attacked: Counter[str] = Counter()
    left: Counter[str] = Counter()
    standing = tally.standing
    for stage in tally.stages:
        attacked[stage.attack] += stage.attacked
        left[stage.attack] += stage.standing
    whole = ball.kind == "ensemble"
    return Attack(
        robust_accuracy=wilson_interval(int(standing.sum()), len(standing)),
        eps=ball.eps,
        norm=ball.norm,
        steps=config.ensemble.apgd_steps if whole else config.steps,
        restarts=config.ensemble.apgd_restarts if whole else config.restarts,
        stages=[CascadeStage(attack=name, attacked=attacked[name], standing=left[name]) for name in attacked],
        recall={
            name: wilson_interval(int(standing[chosen.row_labels == c].sum()), int((chosen.row_labels == c).sum()))
            for c, name in enumerate(chosen.class_names)
        },
        without_gradient=int(tally.blind.sum()) if _takes_gradients(ball, config) else None,
        outcomes={
            row_id: OUTCOMES[place] if place >= 0 else None
            for row_id, place in zip(chosen.row_ids, tally.fell.tolist(), strict=True)
        },
    )


def _account(ball: Ball, tally: _Tally) -> Account:
    where = f"{'PGD' if ball.kind == 'pgd' else 'The ensemble'} at eps {ball.radius}"
    return Account(
        kind=ball.kind,
        where=where if ball.norm == "Linf" else f"{where} (L2)",
        blind=int(tally.blind.sum()),
        attacked=int((tally.fell != BEFORE).sum()),
    )


def robust_accuracy(
    classifier: nn.Module,
    dataset: AuditSet,
    config: RobustnessConfig,
    seed: int,
    cache: StageCache | None = None,
    *,
    stage: str = "attacks",
) -> Attacked:
    """Measure accuracy under every attack and radius of `config` on `config.n` images of `dataset`.

    Images and random starts depend on `seed`, radius and `config.batch_size` only, so models are compared on equal
    terms; `stage` labels the progress bar. With `cache` the stages of an ensemble that were finished in a killed run
    are read back. No trust check is made: that is `measured_robustness`. Raises MetricError if `dataset` is empty.
    """
    task = _Task(classifier, config, seed, cache)
    chosen = attacked_rows(dataset, config.n, seed)
    device = device_of(classifier)
    curves = _curves(config)
    balls = [ball for curve in curves for ball in curve]
    tallies = {ball: _Tally.of(len(chosen)) for ball in balls}
    examples: list[Fooled] = []
    with stage_progress(stage, len(chosen) * len(balls)) as advance:
        for images, labels, rows in chosen.batches(config.batch_size):
            batch = _Batch(images.to(device), labels.to(device), int(rows[0]))
            found: list[Fooled] = []
            for curve in curves:
                active = torch.ones(len(images), dtype=torch.bool, device=device)
                fell = torch.full((len(images),), -1, device=device)
                for ball in curve:
                    met = sparing(classifier, partial(_attack, task, batch, active, ball))
                    tallies[ball].enter(rows, met, active, fell)
                    if curve is curves[0] and len(examples) < EXAMPLES:
                        found += first_fooled(batch.images, met.images, active & ~met.standing, rows, ball.metric)
                    fell = torch.where(active, met.fell, fell)
                    active = met.standing
                    advance(len(images))
            examples = sorted(examples + found, key=lambda one: one.row)[:EXAMPLES]
    robust = Robust()
    for ball in balls:
        getattr(robust, ball.field)[ball.radius] = _summary(ball, config, tallies[ball], chosen)
    return Attacked(
        robust,
        {ball.metric: tallies[ball].standing for ball in balls},
        still_fooled(classifier, examples, chosen, device),
        {ball.metric: _account(ball, tallies[ball]) for ball in balls if _takes_gradients(ball, config)},
    )


def measured_robustness(
    classifier: nn.Module,
    dataset: AuditSet,
    config: RobustnessConfig,
    seed: int,
    cache: StageCache | None = None,
    *,
    keep: Callable[[Attacked], None] = lambda _: None,
) -> Attacked:
    """Measure robust accuracy as `robust_accuracy` does, check whether it may be believed, and measure distances.

    A failed check puts its finding beside every number that it concerns, and so does an attack that never had a
    gradient, whatever checks are switched off. `keep` is given what was measured as soon as the attacks are done;
    distances and checks are added to it. Raises as `robust_accuracy` does.
    """
    measured = robust_accuracy(classifier, dataset, config, seed, cache, stage=f"attacks on {name_of(classifier)}")
    keep(measured)
    robust = measured.robust
    chosen = attacked_rows(dataset, config.n, seed)
    evidence = Evidence(robust, measured.standing, dict(measured.accounts))
    for norm in () if config.distance is None else config.distance.norms:
        row, account = _distances(classifier, chosen, config, norm, seed)
        robust.distances.append(row)
        evidence.accounts[f"robust.distances.{norm}"] = account
    check_trust(classifier, chosen, config, seed, evidence)
    return measured


def _distances(
    classifier: nn.Module, chosen: AuditSet, config: RobustnessConfig, norm: Norm, seed: int
) -> tuple[MinimalDistance, Account]:
    settings = config.distance
    assert settings is not None
    rows = chosen.select(range(min(settings.n, len(chosen))))
    largest = eps_value(settings.largest_linf) if norm == "Linf" else settings.largest_l2
    device = device_of(classifier)
    found, blind = torch.empty(len(rows)), torch.zeros(len(rows), dtype=torch.bool)
    with stage_progress(f"minimal distances of {name_of(classifier)}", len(rows)) as advance:
        for images, labels, at in rows.batches(config.batch_size):

            def measure(
                images: Tensor = images, labels: Tensor = labels, first: int = int(at[0])
            ) -> tuple[Tensor, Tensor]:
                sight = Sight.of(len(images), device)
                distances = minimal_distances(
                    classifier,
                    images.to(device),
                    labels.to(device),
                    norm=norm,
                    largest=largest,
                    bisections=settings.bisections,
                    steps=config.steps,
                    generator=stage_generator(seed, f"robustness/distance/{norm}/{first}"),
                    sight=sight,
                )
                return distances.cpu(), sight.blind.cpu()

            found[at], blind[at] = sparing(classifier, measure)
            advance(len(images))
    known = zip(rows.row_ids, found.tolist(), strict=True)
    row = MinimalDistance(
        norm=norm,
        median=median_distance(found, largest),
        largest=largest,
        n=len(rows),
        standing=int((found == torch.inf).sum()),
        distances_by_image={row_id: value if value < torch.inf else None for row_id, value in known},
    )
    # A distance that a random start happened on is over-stated as well: no nearer image was looked for.
    where = f"The search for minimal distances in {'L-inf' if norm == 'Linf' else norm}"
    return row, Account("distance", where, int((blind & (found > 0)).sum()), int((found > 0).sum()))
