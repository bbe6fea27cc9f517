"""Robust accuracy over radii and attacks, on the same images and from equal starts for all models.

Radii are attacked in rising order. An image that is fooled within a small ball is fooled within every larger one, so it
is not attacked again: the curve falls monotonically and costs less. An attack that looks for the nearest adversarial
image is run once, and its distances tell both the accuracy at every radius and their median.
"""

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import TypeVar

import torch
from torch import Tensor, nn

from audit.classifiers.black_box import REASON
from audit.classifiers.mode import preserve_mode
from audit.classifiers.precision import in_float32
from audit.classifiers.slices import sparing
from audit.config import RobustnessConfig, eps_value
from audit.data.audit_set import AuditSet
from audit.errors import MetricError
from audit.metrics.intervals import wilson_interval
from audit.results import (
    ATTACK_TITLES,
    ENSEMBLE,
    PGD,
    TRANSFER,
    Attack,
    CascadeStage,
    MinimalDistance,
    NotComputed,
    Robust,
    attack_path,
)
from audit.robustness.accuracy import class_scores, device_of, standing_recall
from audit.robustness.attacks.ball import Norm, distance, per_image
from audit.robustness.attacks.blind import Account
from audit.robustness.attacks.checks import checked_logits, name_of
from audit.robustness.attacks.guard import AttackFault
from audit.robustness.attacks.pgd import pgd_attack
from audit.robustness.attacks.registry import (
    ChosenAttack,
    by_answers,
    choose,
    others_of,
    radii_of,
    shown_attack,
    stages_of,
)
from audit.robustness.attacks.sight import Sight
from audit.robustness.distance import median_distance, minimal_distances
from audit.robustness.ensemble import Cascade, run_cascade
from audit.robustness.examples import EXAMPLES, Fooled, first_fooled, most_fragile, still_fooled
from audit.robustness.trust.verdict import Evidence, check_trust
from audit.runtime.progress import stage_progress
from audit.runtime.seeds import stage_generator
from audit.storage.stages import Stages

CODE = (__name__,)
"""What the results kept here depend on: this module and all that it imports."""
BEFORE, SMALLER = 0, 1
"""Places of 'before' and 'smaller' in the outcomes of an image; behind them stand the attacks. -1: it stands."""


@dataclass(frozen=True)
class Attacked:
    """Robust accuracies, and which images stood: bool `[n]` by the number's path, for instance 'robust.pgd.8/255'.

    `examples` are the first images of the attacked order that the first attack fools, then the most fragile ones;
    `accounts` say by the same paths what each attack saw of its images; `missing` says which attacks of other packages
    failed.
    """

    robust: Robust
    standing: dict[str, Tensor]
    examples: list[Fooled] = field(default_factory=list)
    accounts: dict[str, Account] = field(default_factory=dict)
    missing: list[NotComputed] = field(default_factory=list)


@dataclass(frozen=True)
class _Met:
    """What one attack did to one batch.

    `standing` is bool `[N]`; `fell` int64 `[N]` is the place in the outcomes of what became of each attacked image, -1
    elsewhere; `images` `[N, C, H, W]` are as the attack left them, and `answers` `[N]` the classes given to these;
    `sight` is its account of gradients.
    """

    standing: Tensor
    fell: Tensor
    images: Tensor
    answers: Tensor
    sight: Sight
    stages: list[CascadeStage] = field(default_factory=list)

    @classmethod
    def none(cls, images: Tensor, labels: Tensor) -> "_Met":
        """Return what stands before the first attack: nothing has fallen."""
        stands = torch.ones(len(images), dtype=torch.bool, device=images.device)
        return cls(stands, torch.full_like(labels, -1), images, labels, Sight.of(len(images), images.device))

    def to(self, device: torch.device) -> "_Met":
        """Return the same on `device`."""
        moved = {name: getattr(self, name).to(device) for name in ("standing", "fell", "images", "answers")}
        return replace(self, **moved, sight=Sight(self.sight.taken.to(device), self.sight.useful.to(device)))

    def after(self, earlier: "_Met") -> "_Met":
        """Return what has become of the batch by now: what fell `earlier`, and was not attacked again, is as it was."""
        attacked = earlier.standing
        return replace(
            self,
            fell=torch.where(attacked, self.fell, earlier.fell),
            images=torch.where(per_image(attacked, self.images), self.images, earlier.images),
            answers=torch.where(attacked, self.answers, earlier.answers),
        )


@dataclass
class _Tally:
    """What became of all images under one attack: `standing` and `blind` bool `[n]`, `fell` and `answers` int64 `[n]`.

    `seen` says whether the attack took any gradient.
    """

    standing: Tensor
    blind: Tensor
    fell: Tensor
    answers: Tensor
    stages: list[CascadeStage] = field(default_factory=list)
    seen: bool = False

    @classmethod
    def of(cls, n: int) -> "_Tally":
        none = torch.zeros(n, dtype=torch.bool)
        return cls(none, none.clone(), torch.full((n,), -1), torch.zeros(n, dtype=torch.int64))

    def enter(self, rows: Tensor, met: _Met, earlier: _Met) -> None:
        """Enter what became of a batch's `rows`, of which those were attacked that stood `earlier`."""
        self.standing[rows], self.answers[rows] = met.standing.cpu(), met.answers.cpu()
        self.blind[rows] = (met.sight.blind & met.standing).cpu()
        known = torch.where(earlier.fell == BEFORE, BEFORE, SMALLER)
        self.fell[rows] = torch.where(earlier.standing, met.fell, known).cpu()
        self.stages += met.stages
        self.seen |= bool(met.sight.taken.any())


@dataclass(frozen=True)
class Ball:
    """One attack at one radius: what it is called in the results, and how large it is in pixel units of `norm`."""

    attack: str
    norm: Norm
    radius: str
    extent: str | None = None
    """What bounds an attack that no norm bounds; it stands in the place of the radius."""

    @property
    def eps(self) -> float:
        return eps_value(self.radius) if self.extent is None else 1.0

    @property
    def metric(self) -> str:
        """Path of the number in the results."""
        return f"{attack_path(self.attack, self.norm)}.{self.radius}"


T = TypeVar("T")
NOWHERE = Stages()
"""Nothing is kept."""
Witness = Callable[[Ball, Tensor, Tensor], None]
"""Is shown a batch as the attack of a ball left it: the places in the attacked order, and the images."""


def attacked_rows(dataset: AuditSet, n: int, seed: int) -> AuditSet:
    """Return the first `n` images of a seeded order: the same ones for every model and radius."""
    order = torch.randperm(len(dataset), generator=stage_generator(seed, "robustness/order"))
    chosen = dataset.select(order[:n])
    if len(chosen) == 0:
        raise MetricError(f"There is no image of {dataset.source} to attack: check data.audit_split.")
    return chosen


def stream(attack: str, norm: Norm, eps: float, first: int) -> str:
    """Return the name of the random draws of an attack on the batch whose first image is `first`.

    A stream a batch: were it shared, a fooled model's fewer draws would shift the next batch's starts.
    """
    return f"robustness/{attack_path(attack, norm).removeprefix('robust.')}/{eps:.8f}/{first}"


@dataclass(frozen=True)
class _Task:
    """One classifier under all attacks of `config`, with the seed of every draw."""

    classifier: nn.Module
    config: RobustnessConfig
    seed: int
    stages: Stages = field(default_factory=Stages)

    @cached_property
    def others(self) -> dict[str, ChosenAttack]:
        return {chosen.name: chosen for chosen in others_of(self.config)}

    @cached_property
    def cascaded(self) -> list[ChosenAttack]:
        return stages_of(self.config)

    @cached_property
    def outcomes(self) -> tuple[str, ...]:
        """What can become of an image, by the number that stands for it while the attacks run."""
        return ("before", "smaller", *dict.fromkeys([*self.config.attacks, *self.config.ensemble.stages]))

    def made_of(self, attack: str) -> list[ChosenAttack]:
        """Return the attacks that `attack` is made of: one, or the stages of the ensemble."""
        if attack == ENSEMBLE:
            return self.cascaded
        return [choose(PGD, self.config) if attack == PGD else self.others[attack]]

    def curves(self) -> list[list[Ball]]:
        """Return the balls to attack: one list for each attack and norm, the radii rising."""
        found = []
        for attack in (name for name in self.config.attacks if name != TRANSFER):
            other = self.others.get(attack)
            if other is not None and (extent := other.extent) is not None:
                found.append([Ball(attack, "Linf", extent, extent)])
            elif other is None or not other.spec.minimal:
                found += [
                    [Ball(attack, norm, radius) for radius in sorted(texts, key=eps_value)]
                    for norm, texts in radii_of(self.config).items()
                    if other is None or norm in other.spec.norms
                ]
        return found

    def cascade(self, batch: "_Batch", attack: str, norm: Norm, eps: float) -> Cascade:
        """Attack the images of `batch` by what `attack` is made of, in float32."""
        return run_cascade(
            in_float32(self.classifier),
            batch.images,
            batch.labels,
            eps=eps,
            norm=norm,
            attacks=self.made_of(attack),
            seed_stage=stream(attack, norm, eps, batch.first),
            seed=self.seed,
        )

    def kept(self, attack: str, compute: Callable[[], T], rows: AuditSet, **inputs: object) -> T:
        """Return what `compute` makes of one batch, `rows` of the attacked order, by `attack`; kept where it is ours.

        The source of an attack of another package is in no key: it is always made.
        """
        made_of = self.made_of(attack)
        if any(one.source is not None for one in made_of):
            return compute()
        options = {one.name: dict(one.options) for one in made_of}
        settings = {"attack": attack, "options": options, "seed": self.seed}
        return self.stages.kept("attack", compute, CODE, images=rows.content, **settings, **inputs)


@dataclass(frozen=True)
class _Batch:
    """Images `[N, C, H, W]` with labels `[N]`; `first` is the place of the first one in the attacked order."""

    images: Tensor
    labels: Tensor
    first: int


@dataclass(frozen=True)
class _Done:
    """What is kept of one attack on one batch: what it met, and the first images that it fooled, by their rows."""

    met: _Met
    fooled: list[Fooled]


def _done(task: _Task, batch: _Batch, earlier: _Met, ball: Ball, *, whole: bool) -> _Done:
    """Attack what stands of one batch; all attacked images are kept where the `whole` batch is wanted."""
    before = earlier if whole else replace(earlier, images=batch.images)
    met = sparing(task.classifier, partial(_attack, task, batch, earlier.standing, ball)).after(before)
    rows = torch.arange(batch.first, batch.first + len(batch.images))
    fooled = first_fooled(batch.images, met.images, earlier.standing & ~met.standing, rows, ball.metric)
    return _Done(met if whole else replace(met, images=met.images[:0]), fooled)


def _pgd(task: _Task, batch: _Batch, active: Tensor, ball: Ball) -> _Met:
    """Attack the `active` images of one batch by PGD, whose random starts are drawn for the whole batch."""
    images, labels = batch.images, batch.labels
    sight = Sight.of(len(images), images.device)
    (chosen,) = task.made_of(PGD)
    adversarial = pgd_attack(
        task.classifier,
        images,
        labels,
        eps=ball.eps,
        norm=ball.norm,
        active=active,
        generator=stage_generator(task.seed, stream(PGD, ball.norm, ball.eps, batch.first)),
        sight=sight,
        **chosen.options,
    )
    with preserve_mode(task.classifier), torch.no_grad():
        answers = checked_logits(task.classifier, adversarial).argmax(dim=1)
    standing = active & (answers == labels)
    # PGD gives back as it came what is misclassified anyway.
    changed = (adversarial != images).flatten(1).any(dim=1)
    fell = torch.where(standing, -1, torch.where(changed, task.outcomes.index(PGD), BEFORE))
    return _Met(standing, fell, adversarial, answers, sight)


def _attack(task: _Task, batch: _Batch, active: Tensor, ball: Ball) -> _Met:
    """Attack the `active` images of one batch."""
    if ball.attack == PGD:
        return _pgd(task, batch, active, ball)
    images, rows = batch.images, active.nonzero().flatten()
    cascade = task.cascade(_Batch(images[rows], batch.labels[rows], batch.first), ball.attack, ball.norm, ball.eps)
    standing, adversarial = torch.zeros_like(active), images.clone()
    standing[rows], adversarial[rows] = cascade.standing, cascade.images
    sight = Sight.of(len(images), images.device)
    sight.taken[rows], sight.useful[rows] = cascade.sight.taken, cascade.sight.useful
    fell = torch.full((len(images),), -1, device=images.device)
    places = torch.tensor([task.outcomes.index(one.attack) for one in cascade.stages] + [-1], device=images.device)
    fell[rows] = places[cascade.fell]  # -1 takes the last
    before = cascade.stages[0].model_copy(update={"attacked": len(images)})
    answers = torch.zeros_like(batch.labels)
    answers[rows] = _answers(task.classifier, cascade, batch.labels[rows])
    return _Met(standing, fell, adversarial, answers, sight, [before, *cascade.stages[1:]])


def _answers(classifier: nn.Module, cascade: Cascade, labels: Tensor) -> Tensor:
    """Return the class `[n]` given to each image of `cascade`: its label where it stands, else the likeliest other one.

    Which images stand was told in other batches, where sums may round otherwise.
    """
    if not len(labels):
        return labels
    with preserve_mode(classifier), torch.no_grad():
        logits = checked_logits(classifier, cascade.images).scatter(1, labels[:, None], -torch.inf)
    return torch.where(cascade.standing, labels, logits.argmax(dim=1))


def _takes_gradients(task: _Task, attack: str, seen: bool) -> bool:
    """Whether there is an account of the gradients of `attack`; `seen`: one was taken.

    Our own attacks always keep one. Of those of other packages only what came back from the classifier is known.
    """
    return seen or any("sight" in chosen.spec.takes for chosen in task.made_of(attack))


def _count(value: object) -> int | None:
    return value if isinstance(value, int) else None


def _summary(task: _Task, ball: Ball, tally: _Tally, chosen: AuditSet) -> Attack:
    attacked: Counter[str] = Counter()
    left: Counter[str] = Counter()
    standing = tally.standing
    for stage in tally.stages:
        attacked[stage.attack] += stage.attacked
        left[stage.attack] += stage.standing
    config, whole = task.config, ball.attack == ENSEMBLE
    (first, *_) = task.made_of(ball.attack)
    return Attack(
        robust_accuracy=wilson_interval(int(standing.sum()), len(standing)),
        eps=ball.eps,
        norm=ball.norm,
        steps=config.ensemble.apgd_steps if whole else _count(first.options.get("steps")),
        restarts=config.ensemble.apgd_restarts if whole else _count(first.options.get("restarts")),
        stages=[CascadeStage(attack=name, attacked=attacked[name], standing=left[name]) for name in attacked]
        if whole
        else [],
        recall=standing_recall(standing, chosen),
        without_gradient=int(tally.blind.sum()) if _takes_gradients(task, ball.attack, tally.seen) else None,
        outcomes={
            row_id: task.outcomes[place] if place >= 0 else None
            for row_id, place in zip(chosen.row_ids, tally.fell.tolist(), strict=True)
        },
        source=None if whole else first.source,
        extent=ball.extent,
        **class_scores(tally.answers, chosen.row_labels, chosen.class_names),
    )


def _account(ball: Ball, tally: _Tally) -> Account:
    title = "The ensemble" if ball.attack == ENSEMBLE else ATTACK_TITLES.get(ball.attack, ball.attack)
    where = f"{title} at eps {ball.radius}"
    return Account(
        kind=ball.attack,
        where=where if ball.norm == "Linf" else f"{where} (L2)",
        blind=int(tally.blind.sum()),
        attacked=int((tally.fell != BEFORE).sum()),
    )


def robust_accuracy(
    classifier: nn.Module,
    dataset: AuditSet,
    config: RobustnessConfig,
    seed: int,
    stages: Stages = NOWHERE,
    *,
    stage: str = "attacks",
    witness: Witness | None = None,
) -> Attacked:
    """Measure accuracy under every attack and radius of `config` on `config.n` images of `dataset`.

    Images and random starts depend on `seed`, radius and `config.batch_size` only, so models are compared on equal
    terms; `stage` labels the progress bar, and `witness` is shown the images that the attack of `shown_attack` leaves.
    What was done to a batch is kept in `stages`, those of the classifier. An attack of another package that fails is
    left out, and said to be. No trust check is made: that is `measured_robustness`. Raises
    MetricError if `dataset` is empty, and ConfigError as `check_attacks` does.
    """
    config, left_out = (config, []) if is_differentiable(classifier) else by_answers(config)
    task = _Task(classifier, config, seed, stages)
    chosen = attacked_rows(dataset, config.n, seed)
    device = device_of(classifier)
    curves = task.curves()
    balls = [ball for curve in curves for ball in curve]
    tallies = {ball: _Tally.of(len(chosen)) for ball in balls}
    first, seen = next(name for name in config.attacks if name != TRANSFER), shown_attack(config)
    examples: list[Fooled] = []
    faults: dict[str, str] = {}
    with stage_progress(stage, len(chosen) * len(balls)) as advance:
        for images, labels, rows in chosen.batches(config.batch_size):
            batch = _Batch(images.to(device), labels.to(device), int(rows[0]))
            found: list[Fooled] = []
            for curve in curves:
                earlier = _Met.none(batch.images, batch.labels)
                for ball in curve:
                    watched = witness is not None and ball.attack == seen
                    work = partial(_done, task, batch, earlier, ball, whole=watched)
                    known = [earlier.standing, earlier.fell, earlier.answers]
                    try:
                        done = task.kept(
                            ball.attack, work, chosen.select(rows), ball=ball, eps=ball.eps, whole=watched,
                            first=batch.first, earlier=known, outcomes=task.outcomes,
                        )  # fmt: skip
                    except AttackFault as fault:
                        faults[ball.attack] = str(fault)
                        break
                    met = done.met.to(device)
                    tallies[ball].enter(rows, met, earlier)
                    if ball.attack == first and ball.norm == balls[0].norm and len(examples) < EXAMPLES:
                        found += done.fooled
                    if witness is not None and watched:
                        witness(ball, rows, met.images)
                    earlier = met
                    advance(len(images))
            curves = [curve for curve in curves if curve[0].attack not in faults]
            examples = sorted(examples + found, key=lambda one: one.row)[:EXAMPLES]
    measured = Attacked(Robust(), {}, missing=[_missing(name, f"{REASON}.") for name in left_out])
    for ball in balls:
        if ball.attack not in faults:
            _enter(task, measured, ball, tallies[ball], chosen)
    for attack in (one for one in task.others.values() if one.spec.minimal):
        for norm in attack.spec.norms:
            try:
                _enter_minimal(task, measured, attack, norm, chosen)
            except AttackFault as fault:
                faults[attack.name] = str(fault)
                break
    measured.missing.extend(_missing(attack, why) for attack, why in faults.items())
    shown = [one for one in examples if one.metric in measured.standing]
    measured.examples.extend(_still_fooled(task, shown, chosen))
    return measured


def _still_fooled(task: _Task, shown: list[Fooled], chosen: AuditSet) -> list[Fooled]:
    """Return those of `shown` that the classifier still gets wrong, as `still_fooled` does."""
    classifier = task.classifier
    ask = partial(still_fooled, classifier, shown, chosen, device_of(classifier))
    of = chosen.select([one.row for one in shown]).content
    return task.stages.kept("attacked examples", ask, CODE, shown=shown, images=of) if shown else []


def _enter(task: _Task, measured: Attacked, ball: Ball, tally: _Tally, chosen: AuditSet) -> None:
    measured.robust.table(ball.attack, ball.norm)[ball.radius] = _summary(task, ball, tally, chosen)
    measured.standing[ball.metric] = tally.standing
    if _takes_gradients(task, ball.attack, tally.seen):
        measured.accounts[ball.metric] = _account(ball, tally)


def _missing(attack: str, why: str) -> NotComputed:
    norms: tuple[Norm, ...] = ("Linf", "L2")
    paths = [attack_path(attack, norm) for norm in norms]
    return NotComputed(what=f"robust accuracy under {ATTACK_TITLES.get(attack, attack)}", why=why, paths=paths)


def _enter_minimal(task: _Task, measured: Attacked, attack: ChosenAttack, norm: Norm, chosen: AuditSet) -> None:
    """Run an attack that looks for the nearest adversarial images: their distances, and the accuracy at every radius.

    A distance is that of an image that fools, so that both are bounds, as those of any attack are.
    """
    largest = 1.0 if norm == "Linf" else math.sqrt(math.prod(chosen.image_shape))
    device = device_of(task.classifier)
    found, tally = torch.empty(len(chosen)), _Tally.of(len(chosen))

    def reached(batch: _Batch) -> tuple[Tensor, Tensor, Tensor, bool]:
        """Return distances, which images were never seen, answers, and whether any gradient was taken."""
        met = sparing(task.classifier, partial(task.cascade, batch, attack.name, norm, largest))
        far = torch.where(met.standing, torch.inf, distance(met.images, batch.images, norm))
        answers = _answers(task.classifier, met, batch.labels)
        return far.cpu(), met.sight.blind.cpu(), answers.cpu(), bool(met.sight.taken.any())

    with stage_progress(f"{attack.name} on {name_of(task.classifier)}", len(chosen)) as advance:
        for images, labels, rows in chosen.batches(task.config.batch_size):
            batch = _Batch(images.to(device), labels.to(device), int(rows[0]))
            found[rows], tally.blind[rows], tally.answers[rows], seen = task.kept(
                attack.name, partial(reached, batch), chosen.select(rows), norm=norm, largest=largest, first=batch.first
            )
            tally.seen |= seen
            advance(len(images))
    place, smaller = task.outcomes.index(attack.name), 0.0
    for radius in sorted(radii_of(task.config).get(norm, ()), key=eps_value):
        ball = Ball(attack.name, norm, radius)
        stands = found > ball.eps
        fell = torch.where(found <= smaller, SMALLER, torch.where(stands, -1, place))
        fell[found == 0] = BEFORE
        answers = torch.where(stands, chosen.row_labels, tally.answers)
        _enter(task, measured, ball, _Tally(stands, tally.blind & stands, fell, answers, seen=tally.seen), chosen)
        smaller = ball.eps
    row = _distance_row(chosen, found, norm, largest, attack.name)
    measured.robust.distances.append(row)
    if _takes_gradients(task, attack.name, tally.seen):
        measured.accounts[row.path] = _distance_account(
            attack.name, f"{attack.name} in {_said(norm)}", found, tally.blind
        )


def measured_robustness(
    classifier: nn.Module,
    dataset: AuditSet,
    config: RobustnessConfig,
    seed: int,
    stages: Stages = NOWHERE,
    *,
    keep: Callable[[Attacked], None] = lambda _: None,
    witness: Witness | None = None,
) -> Attacked:
    """Measure robust accuracy as `robust_accuracy` does, check whether it may be believed, and measure distances.

    A failed check puts its finding beside every number that it concerns, and so does an attack that never had a
    gradient, whatever checks are switched off. `witness` is as there. `keep` is given what was measured as soon as the
    attacks are done; distances and checks are added to it. Of a classifier whose gradients are of 16 bits PGD follows
    these; attacks that look for the boundary itself, or hold the losses of two steps against each other, run in
    float32. Raises as `robust_accuracy` does.
    """
    stage = f"attacks on {name_of(classifier)}"
    measured = robust_accuracy(classifier, dataset, config, seed, stages, stage=stage, witness=witness)
    keep(measured)
    robust = measured.robust
    chosen = attacked_rows(dataset, config.n, seed)
    evidence = Evidence(robust, measured.standing, dict(measured.accounts))
    if not is_differentiable(classifier):
        measured.missing.extend(_not_computed_for_a_black_box(config))
        config = config.model_copy(update={"trust": None, "distance": None})
    for norm in () if config.distance is None else config.distance.norms:
        row, account, fragile = _distances(_Task(in_float32(classifier), config, seed, stages), chosen, norm)
        robust.distances.append(row)
        measured.examples.extend(fragile)
        evidence.accounts[row.path] = account
    check_trust(classifier, chosen, config, seed, evidence, stages)
    return measured


def is_differentiable(classifier: nn.Module) -> bool:
    """Whether gradients lead through the classifier; False for a black box."""
    return bool(getattr(classifier, "differentiable", True))


def _not_computed_for_a_black_box(config: RobustnessConfig) -> list[NotComputed]:
    found = []
    if config.distance is not None:
        paths = [f"robust.distances.{norm}" for norm in config.distance.norms]
        found.append(NotComputed(what="minimal distances by gradients", why=f"{REASON}.", paths=paths))
    if config.trust is not None:
        found.append(NotComputed(what="trust checks", why=f"{REASON}.", paths=["robust.checks"]))
    return found


def _said(norm: Norm) -> str:
    return "L-inf" if norm == "Linf" else norm


def _distance_row(
    rows: AuditSet, found: Tensor, norm: Norm, largest: float, attack: str | None = None
) -> MinimalDistance:
    known = zip(rows.row_ids, found.tolist(), strict=True)
    return MinimalDistance(
        norm=norm,
        median=median_distance(found, largest),
        largest=largest,
        attack=attack,
        n=len(rows),
        standing=int((found == torch.inf).sum()),
        distances_by_image={row_id: value if value < torch.inf else None for row_id, value in known},
    )


def _distance_account(kind: str, where: str, found: Tensor, blind: Tensor) -> Account:
    # A distance that a random start happened on is over-stated as well: no nearer image was looked for.
    return Account(kind, where, int((blind & (found > 0)).sum()), int((found > 0).sum()))


def _distances(task: _Task, chosen: AuditSet, norm: Norm) -> tuple[MinimalDistance, Account, list[Fooled]]:
    """Search the nearest adversarial images; returns their distances, what the search saw, and the most fragile."""
    classifier, config = task.classifier, task.config
    settings = config.distance
    assert settings is not None
    rows = chosen.select(range(min(settings.n, len(chosen))))
    largest = eps_value(settings.largest_linf) if norm == "Linf" else settings.largest_l2
    bisections, steps, device = settings.bisections, config.steps, device_of(classifier)
    found, blind = torch.empty(len(rows)), torch.zeros(len(rows), dtype=torch.bool)
    fragile: list[Fooled] = []

    def measure(images: Tensor, labels: Tensor, at: Tensor) -> tuple[Tensor, Tensor, list[Fooled]]:
        """Return distances, which images were never seen, and those that the smallest perturbations fool."""
        sight = Sight.of(len(images), device)
        distances, nearest = minimal_distances(
            classifier,
            images.to(device),
            labels.to(device),
            norm=norm,
            largest=largest,
            bisections=bisections,
            steps=steps,
            generator=stage_generator(task.seed, f"robustness/distance/{norm}/{int(at[0])}"),
            sight=sight,
        )
        far = distances.cpu()
        return far, sight.blind.cpu(), _reached(images, nearest.cpu(), far, at, f"robust.distances.{norm}")

    with stage_progress(f"minimal distances of {name_of(classifier)}", len(rows)) as advance:
        for images, labels, at in rows.batches(config.batch_size):
            work = partial(sparing, classifier, partial(measure, images, labels, at))
            found[at], blind[at], few = task.stages.kept(
                "minimal distances", work, CODE, images=rows.select(at).content, norm=norm, largest=largest,
                bisections=bisections, steps=steps, seed=task.seed, first=int(at[0]),
            )  # fmt: skip
            fragile = most_fragile([*fragile, *few])
            advance(len(images))
    where = f"The search for minimal distances in {_said(norm)}"
    row, account = _distance_row(rows, found, norm, largest), _distance_account("distance", where, found, blind)
    return row, account, _still_fooled(task, fragile, rows)


def _reached(images: Tensor, nearest: Tensor, distances: Tensor, rows: Tensor, metric: str) -> list[Fooled]:
    """Return the images of a batch that the smallest perturbations fool, with these and their sizes."""
    order = [i for i in distances.argsort(stable=True).tolist() if 0 < distances[i] < torch.inf][:EXAMPLES]
    return [
        Fooled(int(rows[i]), images[i].clone(), nearest[i].clone(), metric, distance=float(distances[i])) for i in order
    ]
