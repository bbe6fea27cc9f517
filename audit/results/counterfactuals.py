"""Scores of a model's counterfactuals, over its query images."""

import math
from typing import Literal

from pydantic import Field

from audit.results.regions import ConfounderShare, RegionShare
from audit.results.row import Embedding, Interval, Row


class Distribution(Row):
    """A distance between the counterfactuals and real images of the target class, in a named embedding."""

    metric: Literal["fid", "cmmd", "mmd"]
    estimator: Literal["biased", "unbiased"] = "biased"
    value: float
    inversion: float = Field(description="the same distance for the unedited inversions")
    floor: float = Field(description="the same distance between two halves of the real target images")
    n: int
    n_real: int
    target: str
    embedding: Embedding


class Perceptual(Row):
    """Mean perceptual distance between counterfactual and inversion."""

    value: float
    embedding: Embedding


class Judge(Row):
    """An independent predictor that says whether a counterfactual belongs to the target class."""

    name: str
    accuracy: float = Field(description="on real images of the audit split")
    agreement: float | None = Field(description="share of the flips it agrees with")
    rejects_inversion: float | None = Field(description="share of unedited inversions it does not call the target")
    rejects_adversarial: float | None = Field(
        default=None, description="share of pixel-space adversarial examples towards the target it rejects"
    )
    power: float | None = Field(
        default=None,
        description="its weight: accuracy plus what it rejects, less 1, at least 0; None: the file is older",
    )
    weights_sha256: str | None = Field(default=None, description="of a classifier that judges and is not audited")


class Axioms(Row):
    """How far the counterfactuals keep to two axioms of counterfactuals (Monteiro et al. 2023)."""

    effectiveness: float | None = Field(
        description="share of the counterfactuals that judges call the target class, each weighted by its power"
    )
    reversibility: Interval | None = Field(
        description="distance from the start after there and back, in units of the edit: 0 ends at the start, 1 as far "
        "away as the edit went; None: not measured"
    )
    returned: float | None = Field(description="share of the ways back that the model calls the source class again")


class MovedLabel(Row):
    """What edits towards another label do to this one, against the inversion."""

    change: Interval = Field(description="mean absolute change of its probability")
    flips: Interval = Field(description="share of the edits that change the decision about it")


class OffTarget(Row):
    """What edits towards one label do to the other labels of a multi-label model, against the inversion."""

    change: Interval = Field(description="mean absolute change of the other labels' probabilities")
    flips: Interval = Field(description="mean share of the other labels about which the decision changes")
    valid: Interval = Field(
        description="share of the edits that flip their label and change the decision about no other one"
    )
    labels: dict[str, MovedLabel] = Field(description="by the name of the other label")


class Answered(Row):
    """Of all that a model answers to, when it is shown the edits made for all models in parts, the shares; sum 1."""

    region: float = Field(description="to their part in the region: the component response")
    rest: float = Field(description="to their rest")
    acquisition: float | None = Field(
        description="to a tenth more and less exposure, contrast and gamma of the unedited image; None: not asked"
    )


class Counterfactuals(Row):
    """Scores of one model's counterfactuals over its query images, which all models share that are not unpaired.

    Distances to real images, transfer and realism rest on the images that the model classifies correctly: the others
    belong to their target class as they are.
    """

    n: int
    flip_ratio: Interval
    corrected: Interval | None = Field(
        default=None,
        description="share that flip of those that the model misclassifies as they are; None: there are none",
    )
    reached: float = Field(description="share at the operating point: as confident as on a typical real target image")
    explained: Interval | None = Field(
        default=None, description="share that flip without spoiling their image; None: the file is older"
    )
    off_target: OffTarget | None = Field(default=None, description="of a label; None: there is no other label")
    unexplained: str | None = Field(
        default=None, description="why no edit within the generator's range explains the model; None: most of them do"
    )
    method: str | None = Field(default=None, description="name of the counterfactual method; None: the file is older")
    method_package: str | None = Field(
        default=None, description="package and version that give the method; None: it is built in"
    )
    feature_target_flips: float | None = Field(
        description="share whose replaced features x' the head itself assigns to c'; None: the method replaces none"
    )
    reach: float | None = Field(
        default=None,
        description="how many times as far as x' the features were carried, mean; None: none is carried further",
    )
    carried_target_flips: float | None = Field(
        default=None, description="as feature_target_flips, of the features carried as far as each image's `reach`"
    )
    operating_point: dict[str, float] = Field(description="confidence asked for, by target class")
    operating_point_cap: float | None = Field(
        default=None, description="most that is asked for, however sure the model is; None: the file is older"
    )
    converged: float | None = Field(
        default=None,
        description="share of the edits that had stopped to shrink when the search ended; None: they were not shrunk",
    )
    confidence: Interval
    l1: Interval = Field(description="mean absolute pixel change against the inversion, images in [0, 1]")
    changed_share: float = Field(description="share of pixels changed by more than 4/255")
    lpips: Perceptual | None = None
    perceptual: Perceptual | None = None
    fid: list[Distribution] = Field(default_factory=list)
    cmmd: list[Distribution] = Field(default_factory=list)
    mmd: list[Distribution] = Field(default_factory=list)
    regions: list[RegionShare] = Field(default_factory=list)
    confounder: ConfounderShare | None = Field(default=None, description="None: no region is named as a confounder")
    judges: list[Judge] = Field(default_factory=list)
    copies: list[Judge] = Field(
        default_factory=list, description="independently trained copies of the model; they have no part in transfer"
    )
    nafr: Interval | None = Field(
        default=None,
        description="non-adversarial flip rate: share of the flips that the copies share, all copies together; None: "
        "there is no copy",
    )
    answered: Answered | None = Field(
        default=None, description="None: there is no region, it answers to nothing, or the file is older"
    )
    axioms: Axioms | None = Field(default=None, description="None: the file is older")
    untrusted: list[str] = Field(
        default_factory=list, description="why they, and the index that rests on them, must not be believed"
    )

    @property
    def still_shrinking(self) -> int:
        """How many of the edits still shrank when the search ended, so that smaller ones may exist."""
        if self.converged is None or not math.isfinite(self.converged):
            return 0
        return round((1 - self.converged) * self.n)
