"""One attack on one batch: what it met, what of it is kept, and how it is found again."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import TypeVar

import torch
from torch import Tensor, nn

from audit.classifiers.mode import preserve_mode
from audit.classifiers.precision import in_float32
from audit.classifiers.slices import sparing
from audit.config import RobustnessConfig, eps_value
from audit.data.audit_set import AuditSet
from audit.results import ENSEMBLE, PGD, TRANSFER, CascadeStage
from audit.robustness.accuracy import device_of
from audit.robustness.attacks.ball import Norm, per_image
from audit.robustness.attacks.checks import checked_logits
from audit.robustness.attacks.pgd import pgd_attack
from audit.robustness.attacks.registry import ChosenAttack, choose, others_of, radii_of, stages_of
from audit.robustness.attacks.sight import Sight
from audit.robustness.balls import Ball, stream
from audit.robustness.ensemble import Cascade, run_cascade
from audit.robustness.examples import Fooled, first_fooled, still_fooled
from audit.runtime.seeds import stage_generator
from audit.storage.stages import Stages

CODE = (__name__,)
"""What an attack on a batch depends on: this module and all that it imports."""
BEFORE, SMALLER = 0, 1
"""Places of 'before' and 'smaller' in the outcomes of an image; behind them stand the attacks. -1: it stands."""
T = TypeVar("T")


@dataclass(frozen=True)
class Met:
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
    def none(cls, labels: Tensor) -> "Met":
        """Return what stands before the first attack, which has left no images: nothing has fallen."""
        stands = torch.ones(len(labels), dtype=torch.bool, device=labels.device)
        sight = Sight.of(len(labels), labels.device)
        return cls(stands, torch.full_like(labels, -1), torch.empty(0, device=labels.device), labels, sight)

    def to(self, device: torch.device) -> "Met":
        """Return the same on `device`."""
        moved = {name: getattr(self, name).to(device) for name in ("standing", "fell", "images", "answers")}
        return replace(self, **moved, sight=Sight(self.sight.taken.to(device), self.sight.useful.to(device)))

    def after(self, earlier: "Met") -> "Met":
        """Return what has become of the batch by now: what fell `earlier`, and was not attacked again, is as it was."""
        attacked = earlier.standing
        return replace(
            self,
            fell=torch.where(attacked, self.fell, earlier.fell),
            images=torch.where(per_image(attacked, self.images), self.images, earlier.images),
            answers=torch.where(attacked, self.answers, earlier.answers),
        )


@dataclass(frozen=True)
class Batch:
    """Images `[N, C, H, W]`, read when they are asked for, with labels `[N]`.

    `first` is the place of the first one in the attacked order.
    """

    read: Callable[[], Tensor]
    labels: Tensor
    first: int

    @cached_property
    def images(self) -> Tensor:
        return self.read()


@dataclass(frozen=True)
class Task:
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

    def cascade(self, batch: "Batch", attack: str, norm: Norm, eps: float) -> Cascade:
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

    def batches(self, chosen: AuditSet) -> Iterator[tuple[Batch, Tensor]]:
        """Yield every batch of the attacked order, with the places of its images in it."""
        labels, device = chosen.row_labels, device_of(self.classifier)
        for rows in chosen.places(self.config.batch_size):
            yield Batch(partial(_read, chosen, rows, device), labels[rows].to(device), int(rows[0])), rows

    def is_kept(self, attack: str) -> bool:
        """Whether `attack` is ours; the source of one of another package is in no key, and it is always made."""
        return all(one.source is None for one in self.made_of(attack))

    def kept(
        self, attack: str, compute: Callable[[], T], rows: AuditSet, code: Sequence[str] = CODE, **inputs: object
    ) -> T:
        """Return what `compute` makes of one batch, `rows` of the attacked order; kept where `attack` is ours."""
        if not self.is_kept(attack):
            return compute()
        options = {one.name: dict(one.options) for one in self.made_of(attack)}
        settings = {"attack": attack, "options": options, "seed": self.seed}
        return self.stages.kept("attack", compute, code, images=rows.content, **settings, **inputs)

    def still_fooled(self, shown: list[Fooled], chosen: AuditSet) -> list[Fooled]:
        """Return those of `shown` that the classifier still gets wrong."""
        ask = partial(still_fooled, self.classifier, shown, chosen, device_of(self.classifier))
        of = chosen.select([one.row for one in shown]).content
        return self.stages.kept("attacked examples", ask, CODE, shown=shown, images=of) if shown else []


def _read(chosen: AuditSet, rows: Tensor, device: torch.device) -> Tensor:
    return chosen.images(rows).to(device)


@dataclass(frozen=True)
class Done:
    """What is kept of one attack on one batch: what it met, and the first images that it fooled, by their rows."""

    met: Met
    fooled: list[Fooled]


def attack_batch(task: Task, batch: Batch, earlier: Met, ball: Ball, *, whole: bool) -> Done:
    """Attack what stands of one batch; all attacked images are kept where the `whole` batch is wanted."""
    before = earlier if len(earlier.images) else replace(earlier, images=batch.images)
    met = sparing(task.classifier, partial(_attack, task, batch, earlier.standing, ball)).after(before)
    rows = torch.arange(batch.first, batch.first + len(batch.images))
    fooled = first_fooled(batch.images, met.images, earlier.standing & ~met.standing, rows, ball.metric)
    return Done(met if whole else replace(met, images=met.images[:0]), fooled)


def attack_curve(
    task: Task, batch: Batch, rows: AuditSet, curve: Sequence[Ball], watched: str | None
) -> Iterator[tuple[Ball, Met, Done]]:
    """Take one batch, `rows` of the attacked order, through the balls of a curve; what stood before each comes with it.

    All images that the attack `watched` leaves are kept.
    """
    earlier = Met.none(batch.labels)
    for ball in curve:
        whole = ball.attack == watched
        work = partial(attack_batch, task, batch, earlier, ball, whole=whole)
        known = [earlier.standing, earlier.fell, earlier.answers]
        done = task.kept(
            ball.attack, work, rows, ball=ball, eps=ball.eps, whole=whole, first=batch.first, earlier=known,
            outcomes=task.outcomes,
        )  # fmt: skip
        done = replace(done, met=done.met.to(batch.labels.device))
        yield ball, earlier, done
        earlier = done.met


def _pgd(task: Task, batch: Batch, active: Tensor, ball: Ball) -> Met:
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
    return Met(standing, fell, adversarial, answers, sight)


def _attack(task: Task, batch: Batch, active: Tensor, ball: Ball) -> Met:
    """Attack the `active` images of one batch."""
    if ball.attack == PGD:
        return _pgd(task, batch, active, ball)
    images, rows = batch.images, active.nonzero().flatten()
    attacked = Batch(lambda: images[rows], batch.labels[rows], batch.first)
    cascade = task.cascade(attacked, ball.attack, ball.norm, ball.eps)
    standing, adversarial = torch.zeros_like(active), images.clone()
    standing[rows], adversarial[rows] = cascade.standing, cascade.images
    sight = Sight.of(len(images), images.device)
    sight.taken[rows], sight.useful[rows] = cascade.sight.taken, cascade.sight.useful
    fell = torch.full((len(images),), -1, device=images.device)
    places = torch.tensor([task.outcomes.index(one.attack) for one in cascade.stages] + [-1], device=images.device)
    fell[rows] = places[cascade.fell]  # -1 takes the last
    before = cascade.stages[0].model_copy(update={"attacked": len(images)})
    answers = torch.zeros_like(batch.labels)
    answers[rows] = answers_to(task.classifier, cascade, batch.labels[rows])
    return Met(standing, fell, adversarial, answers, sight, [before, *cascade.stages[1:]])


def answers_to(classifier: nn.Module, cascade: Cascade, labels: Tensor) -> Tensor:
    """Return the class `[n]` given to each image of `cascade`: its label where it stands, else the likeliest other one.

    Which images stand was told in other batches, where sums may round otherwise.
    """
    if not len(labels):
        return labels
    with preserve_mode(classifier), torch.no_grad():
        logits = checked_logits(classifier, cascade.images).scatter(1, labels[:, None], -torch.inf)
    return torch.where(cascade.standing, labels, logits.argmax(dim=1))
