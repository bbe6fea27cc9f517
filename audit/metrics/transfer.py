"""Transfer: does a counterfactual made for one model convince judges that had no part in making it?

Adversarial noise convinces nobody else; a real change of the thing does. Judges are the other audited models and one
predictor fitted on real images in a domain embedding, so that the audit of a single model has a judge too. A judge
that never says no is no evidence: each is weighted by its *power*, and an image on which a judge already calls the
unedited inversion the target is left out for that judge.

A judge agrees by degrees: by how far the edit brings it, in log-odds, from where it stands on the unedited inversion to
its own operating point. The smallest edit convinces its own model just enough, and whether it carries a judge over its
boundary depends on how sharp the two are; a judge that moves half of its way has seen something all the same.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from audit.embeddings.embedding import check_embeddings
from audit.errors import MetricError
from audit.results import Judge

NEIGHBOURS = 15
SURE = 1e-6
"""Confidences are read within this distance of 0 and 1, or one certain judge would have infinite log-odds."""
LEAST_WAY = 0.1
"""Log-odds that a judge's way has at least: from a shorter one any little change would be all of it."""


@dataclass(frozen=True)
class EmbeddingJudge:
    """A predictor of the class from embeddings of real images.

    `confidences` maps `[N, d]` to probabilities `[N, C]` of float64, C - 1 being the largest label it was fitted on.
    """

    name: str
    confidences: Callable[[Tensor], Tensor]

    def predict(self, embeddings: Tensor) -> Tensor:
        """Return labels `[N]` of int64 for embeddings `[N, d]`."""
        return self.confidences(embeddings).argmax(1)


def fit_judge(
    embedding: str, real: Tensor, labels: Tensor, kind: Literal["logistic", "knn"] = "logistic"
) -> EmbeddingJudge:
    """Fit a judge on real images embedded as `real` `[n, d]` with `labels` `[n]`, disjoint from the audited images.

    "logistic": standardised logistic regression; "knn": cosine distance, 15 neighbours. Both are deterministic.
    `embedding` names the network in the judge's name. Raises MetricError if fewer than two classes are present.
    """
    check_embeddings(real, real, 2, "A judge")
    if len(real) != len(labels) or len(torch.unique(labels)) < 2:
        raise MetricError(
            f"A judge needs labelled real images of two or more classes; given {len(real)} images, {len(labels)} "
            f"labels, {len(torch.unique(labels))} classes: check the calibration split."
        )
    if kind == "logistic":
        model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    else:
        model = KNeighborsClassifier(n_neighbors=min(NEIGHBOURS, len(real)), metric="cosine")
    model.fit(_numpy(real), labels.cpu().numpy())

    known = torch.from_numpy(np.asarray(model.classes_, dtype=np.int64))

    def confidences(embeddings: Tensor) -> Tensor:
        found = torch.from_numpy(np.asarray(model.predict_proba(_numpy(embeddings)), dtype=np.float64))
        return torch.zeros(len(found), int(known.max()) + 1, dtype=torch.float64).index_copy_(1, known, found)

    return EmbeddingJudge(judge_name(embedding, kind), confidences)


def judge_name(embedding: str, kind: str = "logistic") -> str:
    """What a judge in an embedding is called."""
    return f"{kind} on {embedding}"


def _numpy(embeddings: Tensor) -> np.ndarray:
    return embeddings.detach().double().cpu().numpy()


@dataclass(frozen=True)
class Confidences:
    """A judge's confidence `[N]` in the target: before the edit, after it, and at its own operating point."""

    before: Tensor
    after: Tensor
    goal: Tensor

    def way(self) -> Tensor:
        """Share of the way from `before` to `goal` that the edit has gone, in log-odds, float64 `[N]` in [0, 1]."""
        before, after, goal = (torch.logit(p.double(), eps=SURE) for p in (self.before, self.after, self.goal))
        return ((after - before) / (goal - before).clamp_min(LEAST_WAY)).clamp(0, 1)

    def at(self, rows: Tensor) -> "Confidences":
        """Return those of some images."""
        return Confidences(self.before[rows], self.after[rows], self.goal[rows])


@dataclass(frozen=True)
class Verdicts:
    """What one judge says about one model's counterfactuals: predicted labels `[N]` in the order of the queries.

    `confidences` are by how much; a judge that has none goes all of its way or none of it.
    `accuracy` is on real images of the audit split; `rejects_adversarial` the share of pixel-space adversarial examples
    towards a target that the judge does not call the target, None where not measured. For comparable weights measure
    it on one set of adversarial examples for all the models that are compared. `is_copy`: the judge is an independently
    trained copy of the model, which has no part in transfer.
    """

    judge: str
    accuracy: float
    counterfactuals: Tensor
    inversions: Tensor
    rejects_adversarial: float | None = None
    weights_sha256: str | None = None
    is_copy: bool = False
    confidences: Confidences | None = None

    def at(self, rows: Tensor) -> "Verdicts":
        """Return those of some images."""
        found = replace(self, counterfactuals=self.counterfactuals[rows], inversions=self.inversions[rows])
        return found if self.confidences is None else replace(found, confidences=self.confidences.at(rows))

    def way(self, targets: Tensor) -> Tensor:
        """Share of its way to the target that the edit brings the judge, float64 `[N]` in [0, 1]."""
        return (self.counterfactuals == targets).double() if self.confidences is None else self.confidences.way()


def rejection(predicted: Tensor, targets: Tensor) -> float:
    """Share of images `[N]` that a judge does not call the target; NaN for no image."""
    return float((predicted != targets).float().mean())


def power(verdicts: Verdicts, targets: Tensor) -> float:
    """Weight of a judge in [0, 1]: `max(0, accuracy + rejected - 1)`, Youden's index of sensitivity and specificity.

    Sensitivity is the judge's accuracy on real images; specificity, `rejected`, the share of unedited inversions times
    the share of adversarial examples it rejects. A judge that always or never says the target has no power.
    """
    rejected = rejection(verdicts.inversions, targets)
    if verdicts.rejects_adversarial is not None:
        rejected *= verdicts.rejects_adversarial
    return max(0.0, verdicts.accuracy + rejected - 1)


def agreement(predicted: Tensor, targets: Tensor, flipped: Tensor) -> Tensor:
    """Where a judge agrees with a flip, bool `[N]`: it predicts the target and the maker itself is flipped."""
    return (predicted == targets) & flipped


def judge_row(verdicts: Verdicts, targets: Tensor, flipped: Tensor) -> Judge:
    """The judge's line in the results: accuracy, agreement with the flips, and how often it says no."""
    flips = int(flipped.sum())
    agreed = int(agreement(verdicts.counterfactuals, targets, flipped).sum())
    return Judge(
        name=verdicts.judge,
        accuracy=verdicts.accuracy,
        agreement=agreed / flips if flips else None,
        rejects_inversion=rejection(verdicts.inversions, targets) if len(targets) else None,
        rejects_adversarial=verdicts.rejects_adversarial,
        power=power(verdicts, targets) if len(targets) else None,
        weights_sha256=verdicts.weights_sha256,
    )


def transfer_scores(verdicts: Sequence[Verdicts], targets: Tensor, flipped: Tensor) -> Tensor:
    """How far the judges follow the flip, per image: power-weighted mean share of their ways, float64 `[N]` in [0, 1].

    A counterfactual that does not flip its own model scores 0. A judge counts for an image only if it does not call
    the unedited inversion the target already; a flip that no judge with power can speak about is NaN.
    """
    total = torch.zeros(len(targets), dtype=torch.float64)
    agreed = torch.zeros_like(total)
    for one in verdicts:
        counts = power(one, targets) * (one.inversions != targets).double() if len(targets) else total
        total += counts
        agreed += counts * one.way(targets)
    scores = torch.where(total > 0, agreed / total, torch.nan)
    return torch.where(flipped, scores, 0.0)
