"""What one model's adversarial images do to the other models that see them (Papernot et al. 2016, arXiv 1605.07277).

No attack is made for it: every batch of attacked images is shown to the other models as soon as it is there, so that
only answers are kept. Taken together, the images made for all others are an attack on a model that needs neither its
gradients nor its answers.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor, nn

from audit.classifiers.mode import preserve_mode
from audit.classifiers.slices import sparing
from audit.config import eps_value
from audit.data.audit_set import AuditSet
from audit.metrics.intervals import wilson_interval
from audit.results import TRANSFER, Attack, Transferred
from audit.robustness.accuracy import class_scores, standing_recall
from audit.robustness.attacks.checks import checked_logits
from audit.robustness.balls import Ball
from audit.robustness.panel import Panel


@dataclass(frozen=True)
class Onlookers:
    """The panel of models that see the `n` attacked images of another one.

    `answers` int64 `[n]` are their decisions, by model and ball.
    """

    panel: Panel
    n: int
    answers: dict[tuple[str, Ball], Tensor] = field(default_factory=dict)

    def see(self, ball: Ball, rows: Tensor, images: Tensor) -> None:
        """Show them `images` `[N, C, H, W]`, `rows` of the attacked order, as the attack of `ball` left them."""
        for name, found in self.panel.ask("transfer", lambda: images, _decisions, (__name__,), images=images).items():
            self.answers.setdefault((name, ball), torch.zeros(self.n, dtype=torch.int64))[rows] = found


def _decisions(model: nn.Module, images: Tensor) -> Tensor:
    with preserve_mode(model), torch.no_grad():
        return sparing(model, partial(checked_logits, model, images)).argmax(dim=1).cpu()


@dataclass(frozen=True)
class Shown:
    """The images that the attack of `ball` made for the model `source`.

    `answers` int64 `[n]` are the decisions of the model that sees them; `fooled` `[n]` says which fool the source,
    which decides them rightly as they are.
    """

    source: str
    ball: Ball
    answers: Tensor
    fooled: Tensor


@dataclass(frozen=True)
class TransferAttack:
    """The images of all sources together as one attack, by radius, and what those of each source do."""

    attacks: dict[Ball, Attack]
    standing: dict[str, Tensor]
    rows: list[Transferred]


def transfer_attack(chosen: AuditSet, clean: Tensor, shown: Sequence[Shown]) -> TransferAttack:
    """Return how a model stands what it is `shown`; `clean` `[n]` are its decisions on the images as they are."""
    labels = chosen.row_labels
    found = TransferAttack({}, {}, [_row(one, clean == labels, labels) for one in shown])
    for norm in dict.fromkeys(one.ball.norm for one in shown):
        answers, smaller = clean, torch.zeros(len(labels), dtype=torch.bool)
        radii = sorted({one.ball.radius for one in shown if one.ball.norm == norm}, key=eps_value)
        for ball in (Ball(TRANSFER, norm, radius) for radius in radii):
            for one in shown:
                if (one.ball.norm, one.ball.radius) == (norm, ball.radius):
                    answers = torch.where(answers == labels, one.answers, answers)
            standing = answers == labels
            found.attacks[ball] = _attack(ball, chosen, answers, _outcomes(clean, standing, smaller, labels))
            found.standing[ball.metric] = standing
            smaller = ~standing
    return found


def _row(one: Shown, right: Tensor, labels: Tensor) -> Transferred:
    stands, asked = right & (one.answers == labels), right & one.fooled
    return Transferred(
        source=one.source,
        metric=one.ball.metric,
        accuracy=wilson_interval(int(stands.sum()), len(labels)),
        fooled=wilson_interval(int((asked & ~stands).sum()), int(asked.sum())),
    )


def _outcomes(clean: Tensor, standing: Tensor, smaller: Tensor, labels: Tensor) -> list[str | None]:
    rows = zip(standing.tolist(), (clean != labels).tolist(), smaller.tolist(), strict=True)
    return [None if on else "before" if wrong else "smaller" if before else TRANSFER for on, wrong, before in rows]


def _attack(ball: Ball, chosen: AuditSet, answers: Tensor, outcomes: Sequence[str | None]) -> Attack:
    standing = answers == chosen.row_labels
    return Attack(
        robust_accuracy=wilson_interval(int(standing.sum()), len(standing)),
        eps=ball.eps,
        norm=ball.norm,
        steps=None,
        restarts=None,
        recall=standing_recall(standing, chosen),
        outcomes=dict(zip(chosen.row_ids, outcomes, strict=True)),
        **class_scores(answers, chosen.row_labels, chosen.class_names),
    )
