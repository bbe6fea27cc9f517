"""What became of all images under one attack, and the numbers that tell it."""

from collections import Counter
from dataclasses import dataclass, field

import torch
from torch import Tensor

from audit.data.audit_set import AuditSet
from audit.metrics.intervals import wilson_interval
from audit.results import ATTACK_TITLES, ENSEMBLE, Attack, CascadeStage, NotComputed, Robust
from audit.robustness.accuracy import class_scores, standing_recall
from audit.robustness.attacks.blind import Account
from audit.robustness.balls import Ball
from audit.robustness.batch import BEFORE, SMALLER, Met, Task
from audit.robustness.examples import Fooled


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


@dataclass
class Tally:
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
    def of(cls, n: int) -> "Tally":
        none = torch.zeros(n, dtype=torch.bool)
        return cls(none, none.clone(), torch.full((n,), -1), torch.zeros(n, dtype=torch.int64))

    def enter(self, rows: Tensor, met: Met, earlier: Met) -> None:
        """Enter what became of a batch's `rows`, of which those were attacked that stood `earlier`."""
        self.standing[rows], self.answers[rows] = met.standing.cpu(), met.answers.cpu()
        self.blind[rows] = (met.sight.blind & met.standing).cpu()
        known = torch.where(earlier.fell == BEFORE, BEFORE, SMALLER)
        self.fell[rows] = torch.where(earlier.standing, met.fell, known).cpu()
        self.stages += met.stages
        self.seen |= bool(met.sight.taken.any())


def takes_gradients(task: Task, attack: str, seen: bool) -> bool:
    """Whether there is an account of the gradients of `attack`; `seen`: one was taken.

    Our own attacks always keep one. Of those of other packages only what came back from the classifier is known.
    """
    return seen or any("sight" in chosen.spec.takes for chosen in task.made_of(attack))


def _count(value: object) -> int | None:
    return value if isinstance(value, int) else None


def _summary(task: Task, ball: Ball, tally: Tally, chosen: AuditSet) -> Attack:
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
        without_gradient=int(tally.blind.sum()) if takes_gradients(task, ball.attack, tally.seen) else None,
        outcomes={
            row_id: task.outcomes[place] if place >= 0 else None
            for row_id, place in zip(chosen.row_ids, tally.fell.tolist(), strict=True)
        },
        source=None if whole else first.source,
        extent=ball.extent,
        **class_scores(tally.answers, chosen.row_labels, chosen.class_names),
    )


def _account(ball: Ball, tally: Tally) -> Account:
    title = "The ensemble" if ball.attack == ENSEMBLE else ATTACK_TITLES.get(ball.attack, ball.attack)
    where = f"{title} at eps {ball.radius}"
    return Account(
        kind=ball.attack,
        where=where if ball.norm == "Linf" else f"{where} (L2)",
        blind=int(tally.blind.sum()),
        attacked=int((tally.fell != BEFORE).sum()),
    )


def enter(task: Task, measured: Attacked, ball: Ball, tally: Tally, chosen: AuditSet) -> None:
    """Enter in `measured` what became of the images `chosen` under the attack of `ball`."""
    measured.robust.table(ball.attack, ball.norm)[ball.radius] = _summary(task, ball, tally, chosen)
    measured.standing[ball.metric] = tally.standing
    if takes_gradients(task, ball.attack, tally.seen):
        measured.accounts[ball.metric] = _account(ball, tally)
