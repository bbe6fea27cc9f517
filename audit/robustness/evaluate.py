"""Robust accuracy over radii and attacks, on the same images and from equal starts for all models.

Radii are attacked in rising order. An image that is fooled within a small ball is fooled within every larger one, so it
is not attacked again: the curve falls monotonically and costs less.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from audit.classifiers.mode import preserve_mode
from audit.config import RobustnessConfig, eps_value
from audit.data.audit_set import AuditSet
from audit.errors import MetricError
from audit.metrics.intervals import wilson_interval
from audit.progress import stage_progress
from audit.results import Attack, CascadeStage, MinimalDistance, Robust
from audit.robustness.ball import Norm
from audit.robustness.clean import device_of
from audit.robustness.distance import median_distance, minimal_distances
from audit.robustness.door import checked_logits
from audit.robustness.ensemble import run_cascade
from audit.robustness.examples import EXAMPLES, Fooled, first_fooled, still_fooled
from audit.robustness.pgd import pgd_attack
from audit.robustness.trust import ensemble_beats_pgd, trust_checks, trusted, untrusted_reasons
from audit.seeds import stage_generator
from audit.store import Store

Kind = Literal["pgd", "ensemble"]
FEWEST_STANDING = 8
"""Images that have to stand under an attack for its trust checks to have something to look at."""


@dataclass(frozen=True)
class Attacked:
    """Robust accuracies, and which images stood: bool `[n]` by the number's path, for instance 'robust.pgd.8/255'.

    `examples` are the first images of the attacked order that the first attack fools.
    """

    robust: Robust
    standing: dict[str, Tensor]
    examples: list[Fooled] = field(default_factory=list)


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


def _attack(
    classifier: nn.Module,
    images: Tensor,
    labels: Tensor,
    active: Tensor,
    ball: Ball,
    config: RobustnessConfig,
    seed: int,
    first: int,
    store: Store | None,
    key: Mapping[str, Any],
) -> tuple[Tensor, list[CascadeStage], Tensor]:
    """Attack the `active` images of one batch.

    Returns which stand, bool `[N]`, the stages of a cascade, and the images `[N, C, H, W]` as the attack left them.
    """
    # A stream a batch: were it shared, a fooled model's fewer draws would shift the next batch's starts.
    stream = f"robustness/{ball.field}/{ball.eps:.8f}/{first}"
    if ball.kind == "pgd":
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
        )
        with preserve_mode(classifier), torch.no_grad():
            return active & (checked_logits(classifier, adversarial).argmax(dim=1) == labels), [], adversarial
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
        store=store,
        key=key,
    )
    standing, adversarial = torch.zeros_like(active), images.clone()
    standing[rows], adversarial[rows] = cascade.standing, cascade.images
    before = cascade.stages[0].model_copy(update={"attacked": len(images)})
    return standing, [before, *cascade.stages[1:]], adversarial


def _summary(
    ball: Ball, config: RobustnessConfig, standing: Tensor, stages: Sequence[CascadeStage], chosen: AuditSet
) -> Attack:
    attacked: Counter[str] = Counter()
    left: Counter[str] = Counter()
    for stage in stages:
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
    )


def robust_accuracy(
    classifier: nn.Module,
    dataset: AuditSet,
    config: RobustnessConfig,
    seed: int,
    stage: str = "attacks",
    store: Store | None = None,
    key: Mapping[str, Any] | None = None,
) -> Attacked:
    """Measure accuracy under every attack and radius of `config` on `config.n` images of `dataset`.

    Images and random starts depend on `seed`, radius and `config.batch_size` only, so models are compared on equal
    terms; `stage` labels the progress bar. With `store` the stages of an ensemble that were finished in a killed run
    are read back; `key` is what the classifier depends on besides its weights. No trust check is made: that is
    `measured_robustness`. Raises MetricError if `dataset` is empty.
    """
    chosen = attacked_rows(dataset, config.n, seed)
    device = device_of(classifier)
    curves = _curves(config)
    balls = [ball for curve in curves for ball in curve]
    standing = {ball: torch.zeros(len(chosen), dtype=torch.bool) for ball in balls}
    stages: dict[Ball, list[CascadeStage]] = {ball: [] for ball in balls}
    examples: list[Fooled] = []
    with stage_progress(stage, len(chosen) * len(balls)) as advance:
        for images, labels, rows in chosen.batches(config.batch_size):
            images, labels = images.to(device), labels.to(device)
            found: list[Fooled] = []
            for curve in curves:
                active = torch.ones(len(images), dtype=torch.bool, device=device)
                for ball in curve:
                    before = active
                    active, counts, adversarial = _attack(
                        classifier, images, labels, active, ball, config, seed, int(rows[0]), store, key or {}
                    )
                    standing[ball][rows] = active.cpu()
                    stages[ball] += counts
                    if curve is curves[0] and len(examples) < EXAMPLES:
                        found += first_fooled(images, adversarial, before & ~active, rows, ball.metric)
                    advance(len(images))
            examples = sorted(examples + found, key=lambda one: one.row)[:EXAMPLES]
    robust = Robust()
    for ball in balls:
        getattr(robust, ball.field)[ball.radius] = _summary(ball, config, standing[ball], stages[ball], chosen)
    return Attacked(
        robust, {ball.metric: standing[ball] for ball in balls}, still_fooled(classifier, examples, chosen, device)
    )


def measured_robustness(
    classifier: nn.Module,
    dataset: AuditSet,
    config: RobustnessConfig,
    seed: int,
    name: str,
    store: Store | None = None,
    key: Mapping[str, Any] | None = None,
) -> Attacked:
    """Measure robust accuracy as `robust_accuracy` does, check whether it may be believed, and measure distances.

    A failed check puts its finding beside every number that it concerns. Raises as `robust_accuracy` does.
    """
    measured = robust_accuracy(classifier, dataset, config, seed, f"attacks on {name}", store, key)
    robust = measured.robust
    chosen = attacked_rows(dataset, config.n, seed)
    if config.trust is not None:
        _check_trust(classifier, chosen, config, seed, name, measured)
    if config.distance is not None:
        robust.distances = [_distances(classifier, chosen, config, norm, seed, name) for norm in config.distance.norms]
    return measured


def _telling_eps(config: RobustnessConfig, standing: Mapping[str, Tensor]) -> float:
    """Return the largest L-inf radius at which images stand that a stronger attack could still fool, else the largest.

    Where nothing stands there is nothing to over-state, and the checks that compare attacks say nothing.
    """
    kind = "pgd" if "pgd" in config.attacks else "ensemble"
    radii = sorted(config.eps, key=eps_value)
    telling = [radius for radius in radii if int(standing[f"robust.{kind}.{radius}"].sum()) >= FEWEST_STANDING]
    return eps_value((telling or radii)[-1])


def _check_trust(
    classifier: nn.Module, chosen: AuditSet, config: RobustnessConfig, seed: int, name: str, measured: Attacked
) -> None:
    assert config.trust is not None
    if not config.eps:
        return
    rows = chosen.select(range(min(config.trust.n, len(chosen))))
    device = device_of(classifier)
    standing = {metric: values[: len(rows)] for metric, values in measured.standing.items()}
    with stage_progress(f"trust checks of {name}", 1) as advance:
        checks = trust_checks(
            classifier,
            rows.images().to(device),
            rows.row_labels.to(device),
            config.trust,
            eps=_telling_eps(config, standing),
            steps=config.steps,
            step_size=config.step_size,
            seed=seed,
            stage="robustness/trust",
            ensemble=config.ensemble,
        )
        advance(1)
    robust = measured.robust
    for attack in (*robust.pgd.values(), *robust.pgd_l2.values()):
        attack.untrusted = untrusted_reasons(checks, "pgd")
    for attack in (*robust.ensemble.values(), *robust.ensemble_l2.values()):
        attack.untrusted = untrusted_reasons(checks, "ensemble")
    if set(config.attacks) == {"pgd", "ensemble"}:
        both = {
            radius: (measured.standing[f"robust.pgd.{radius}"], measured.standing[f"robust.ensemble.{radius}"])
            for radius in config.eps
        }
        check, beaten = ensemble_beats_pgd(both)
        checks.append(check)
        for radius, reason in beaten.items():
            robust.pgd[radius].untrusted.append(reason)
    robust.checks, robust.trusted = checks, trusted(checks)


def _distances(
    classifier: nn.Module, chosen: AuditSet, config: RobustnessConfig, norm: Norm, seed: int, name: str
) -> MinimalDistance:
    settings = config.distance
    assert settings is not None
    rows = chosen.select(range(min(settings.n, len(chosen))))
    largest = eps_value(settings.largest_linf) if norm == "Linf" else settings.largest_l2
    device = device_of(classifier)
    found = torch.empty(len(rows))
    with stage_progress(f"minimal distances of {name}", len(rows)) as advance:
        for images, labels, at in rows.batches(config.batch_size):
            found[at] = minimal_distances(
                classifier,
                images.to(device),
                labels.to(device),
                norm=norm,
                largest=largest,
                bisections=settings.bisections,
                steps=config.steps,
                generator=stage_generator(seed, f"robustness/distance/{norm}/{int(at[0])}"),
            ).cpu()
            advance(len(images))
    known = zip(rows.row_ids, found.tolist(), strict=True)
    return MinimalDistance(
        norm=norm,
        median=median_distance(found, largest),
        largest=largest,
        n=len(rows),
        standing=int((found == torch.inf).sum()),
        distances_by_image={row_id: value if value < torch.inf else None for row_id, value in known},
    )
