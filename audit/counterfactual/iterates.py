"""Choosing among the iterates of a latent optimisation at a matched operating point, without keeping them all.

Models differ in how confident they ever are, so "convincing" is measured in each model's own terms (docs/design.md,
"Operating point"): an iterate has *reached* the operating point if it is assigned to the target class with at least the
model's median confidence on correctly classified real images of that class.
"""

from typing import Literal

import torch
from torch import Tensor

from audit.errors import ClassifierError
from audit.robustness.attacks.losses import whole_log_odds

SATURATED = 16.0
"""Log-odds beyond which float32 probabilities are 1 and nothing more is asked for."""


def operating_points(probabilities: Tensor, labels: Tensor, predicted: Tensor) -> Tensor:
    """Median confidence per class on correctly classified real images, `[K]`; NaN where a class has none.

    `probabilities [n, K]`, `labels [n]` and `predicted [n]` are those of the calibration images.
    """
    points = torch.full((probabilities.shape[1],), torch.nan, dtype=probabilities.dtype)
    for index in range(probabilities.shape[1]):
        chosen = probabilities[(labels == index) & (predicted == index), index]
        if len(chosen):
            points[index] = chosen.quantile(0.5)
    return points


def goal_of(points: Tensor, targets: Tensor) -> Tensor:
    """Return the operating point of each target class `[N]` in log-odds; raises ClassifierError where there is none."""
    goals = points[targets]
    if goals.isnan().any():
        index = int(targets[goals.isnan()][0])
        raise ClassifierError(
            f"The classifier gets no calibration image of class {index} right, so that nothing says how convincing a "
            "counterfactual towards it should be: choose another target class or a better classifier."
        )
    return torch.logit(goals.double()).clamp(-SATURATED, SATURATED).float()


def log_odds(logits: Tensor, targets: Tensor) -> Tensor:
    """Log-odds `[N]` of the target classes `[N]` under `logits [N, K]`, exact also near 1; cut at `SATURATED`."""
    return whole_log_odds(logits, targets).clamp(-SATURATED, SATURATED)


Choice = Literal["reached", "sparsest", "last"]
"""Which iterate is the counterfactual: the sparsest at the operating point, the sparsest that flips, or the last."""


class Iterates:
    """Running choice for a batch of N images: the counterfactual, the semifactual and the trace so far.

    The counterfactual is the sparsest iterate (smallest mean absolute change against the inversion) that reached the
    goal; without one the most confident iterate that flipped; without one the iterate nearest to the target class.
    With `choose = "sparsest"` each that flipped is good enough, and with "last" each is. The semifactual is the last
    iterate assigned to the source class before the first one assigned to the target. Every image counts its iterates by
    itself. A search that blends its edits (`blend.py`) sets `masks`, `[N, 1, H, W]`, before the first that is blended.
    """

    def __init__(
        self, inversions: Tensor, sources: Tensor, targets: Tensor, goals: Tensor, choose: Choice = "reached"
    ) -> None:
        """Take the inversions `[N, C, H, W]`, classes `[N]` and log-odds to reach `[N]`."""
        n, device = len(inversions), inversions.device
        self.inversions, self.sources, self.targets, self.goals = inversions, sources, targets, goals
        self.choose = choose
        self.images, self.semifactuals = inversions.clone(), inversions.clone()
        self.latents = torch.empty(0, device=device)
        self.masks: Tensor | None = None
        self.flipped, self.reached = (torch.zeros(n, dtype=torch.bool, device=device) for _ in range(2))
        self.confidence, self.change = torch.zeros(n, device=device), torch.zeros(n, device=device)
        self.step = torch.zeros(n, dtype=torch.int64, device=device)
        self.flip_step, self.last = torch.full_like(self.step, -1), torch.full_like(self.step, -1)
        self._level, self._key = torch.full_like(self.step, -1), torch.full_like(self.change, -torch.inf)
        self._confidences: list[tuple[Tensor, Tensor, Tensor]] = []

    @property
    def trace(self) -> Tensor:
        """Probability of the target class at every iterate, `[N, T + 1]`; after an image's last one it stays."""
        longest = int(self.last.max()) + 1
        found = torch.zeros(len(self.last), longest, device=self.last.device)
        for rows, steps, confidence in self._confidences:
            found[rows, steps] = confidence
        return found.gather(1, torch.arange(longest, device=found.device).minimum(self.last[:, None]))

    @torch.no_grad()
    def observe(
        self, images: Tensor, latents: Tensor, logits: Tensor, rows: Tensor | None = None, masks: Tensor | None = None
    ) -> Tensor:
        """Take the next iterate of the images at `rows` (all when None); return whether it reached the goal, bool.

        `masks` are those by which it is blended into the inversion (`blend.py`), where it is.
        """
        rows = torch.arange(len(self.targets), device=self.targets.device) if rows is None else rows
        self.last[rows] += 1
        step, targets = self.last[rows], self.targets[rows]
        decision = logits.argmax(dim=1)
        confidence = logits.softmax(dim=1).gather(1, targets[:, None])[:, 0]
        self._confidences.append((rows, step, confidence))
        flipped = decision == targets
        reached = is_valid(logits, targets, self.goals[rows])
        unflipped = self.flip_step[rows] < 0
        before_flip = unflipped & ~flipped & (decision == self.sources[rows])
        _assign(self.semifactuals, images, rows, before_flip | (step == 0))
        _assign(self.flip_step, step, rows, unflipped & flipped)
        change = (images - self.inversions[rows]).abs().flatten(1).mean(dim=1)
        enough = {"reached": reached, "sparsest": flipped, "last": torch.ones_like(flipped)}[self.choose]
        level, key = flipped.long() + enough.long(), torch.where(enough, -change, confidence)
        better = (level > self._level[rows]) | ((level == self._level[rows]) & (key > self._key[rows]))
        if self.choose == "last":
            better = enough
        if not len(self.latents):
            self.latents = latents.clone()
        for kept, new in (
            (self.images, images),
            (self.latents, latents),
            *([] if self.masks is None or masks is None else [(self.masks, masks)]),
            (self.flipped, flipped),
            (self.reached, reached),
            (self.confidence, confidence),
            (self.change, change),
            (self.step, step),
            (self._level, level),
            (self._key, key),
        ):
            _assign(kept, new, rows, better)
        return reached


def is_valid(logits: Tensor, targets: Tensor, goals: Tensor) -> Tensor:
    """Whether `logits [N, K]` decide for `targets [N]` with log-odds of at least `goals [N]`, bool `[N]`."""
    return (logits.argmax(dim=1) == targets) & (log_odds(logits, targets) >= goals)


def _assign(kept: Tensor, new: Tensor, rows: Tensor, where: Tensor) -> None:
    kept[rows[where]] = new[where].to(kept.dtype)
