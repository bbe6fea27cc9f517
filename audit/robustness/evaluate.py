"""Robust accuracy over radii and attacks, on the same images and from equal starts for all models.

Radii are attacked in rising order. An image that is fooled within a small ball is fooled within every larger one, so it
is not attacked again: the curve falls monotonically and costs less. An attack that looks for the nearest adversarial
image is run once, and its distances tell both the accuracy at every radius and their median.
"""

from collections.abc import Callable
from dataclasses import replace

from torch import Tensor, nn

from audit.classifiers.black_box import REASON
from audit.classifiers.precision import in_float32
from audit.config import RobustnessConfig
from audit.data.audit_set import AuditSet
from audit.results import ATTACK_TITLES, TRANSFER, NotComputed, Robust, attack_path
from audit.robustness.attacks.ball import Norm
from audit.robustness.attacks.checks import name_of
from audit.robustness.attacks.guard import AttackFault
from audit.robustness.attacks.registry import by_answers, shown_attack
from audit.robustness.balls import Ball, attacked_rows
from audit.robustness.batch import Task, attack_curve
from audit.robustness.examples import EXAMPLES, Fooled
from audit.robustness.nearest import distances_by_batch, enter_minimal, searched_distances
from audit.robustness.tally import Attacked, Tally, enter
from audit.robustness.trust.verdict import Evidence, check_trust
from audit.runtime.progress import stage_progress
from audit.storage.stages import Stages

NOWHERE = Stages()
"""Nothing is kept."""
Witness = Callable[[Ball, Tensor, Tensor], None]
"""Is shown a batch as the attack of a ball left it: the places in the attacked order, and the images."""


def attack_lot(
    classifier: nn.Module, dataset: AuditSet, config: RobustnessConfig, seed: int, stages: Stages, *, shown: bool
) -> None:
    """Do and keep in `stages` what `measured_robustness` does with the batch of number `dataset.lot`.

    `shown` says whether there will be a witness. Attacks of other packages, which are never kept, are left out.
    """
    config, _ = (config, []) if is_differentiable(classifier) else by_answers(config)
    task = Task(classifier, config, seed, stages)
    chosen, watched = attacked_rows(dataset, config.n, seed), shown_attack(config) if shown else None
    for batch, rows in task.batches(chosen):
        for curve in (curve for curve in task.curves() if task.is_kept(curve[0].attack)):
            for _ in attack_curve(task, batch, chosen.select(rows), curve, watched):
                pass
    if is_differentiable(classifier) and config.distance is not None:
        exact = replace(task, classifier=in_float32(classifier))
        for norm in config.distance.norms:
            for _ in distances_by_batch(exact, chosen, norm):
                pass


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
    task = Task(classifier, config, seed, stages)
    chosen = attacked_rows(dataset, config.n, seed)
    curves = task.curves()
    balls = [ball for curve in curves for ball in curve]
    tallies = {ball: Tally.of(len(chosen)) for ball in balls}
    first = next(name for name in config.attacks if name != TRANSFER)
    watched = None if witness is None else shown_attack(config)
    examples: list[Fooled] = []
    faults: dict[str, str] = {}
    with stage_progress(stage, len(chosen) * len(balls)) as advance:
        for batch, rows in task.batches(chosen):
            found: list[Fooled] = []
            for curve in curves:
                try:
                    for ball, earlier, done in attack_curve(task, batch, chosen.select(rows), curve, watched):
                        tallies[ball].enter(rows, done.met, earlier)
                        if ball.attack == first and ball.norm == balls[0].norm and len(examples) < EXAMPLES:
                            found += done.fooled
                        if witness is not None and ball.attack == watched:
                            witness(ball, rows, done.met.images)
                        advance(len(rows))
                except AttackFault as fault:
                    faults[curve[0].attack] = str(fault)
            curves = [curve for curve in curves if curve[0].attack not in faults]
            examples = sorted(examples + found, key=lambda one: one.row)[:EXAMPLES]
    measured = Attacked(Robust(), {}, missing=[_missing(name, f"{REASON}.") for name in left_out])
    for ball in balls:
        if ball.attack not in faults:
            enter(task, measured, ball, tallies[ball], chosen)
    for attack in (one for one in task.others.values() if one.spec.minimal):
        for norm in attack.spec.norms:
            try:
                enter_minimal(task, measured, attack, norm, chosen)
            except AttackFault as fault:
                faults[attack.name] = str(fault)
                break
    measured.missing.extend(_missing(attack, why) for attack, why in faults.items())
    shown = [one for one in examples if one.metric in measured.standing]
    measured.examples.extend(task.still_fooled(shown, chosen))
    return measured


def _missing(attack: str, why: str) -> NotComputed:
    norms: tuple[Norm, ...] = ("Linf", "L2")
    paths = [attack_path(attack, norm) for norm in norms]
    return NotComputed(what=f"robust accuracy under {ATTACK_TITLES.get(attack, attack)}", why=why, paths=paths)


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
        row, account, fragile = searched_distances(Task(in_float32(classifier), config, seed, stages), chosen, norm)
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
