"""Models of labels: how often labels occur, how well each is told, what befalls all of them together."""

from pydantic import Field

from audit.results.attacks import Norm
from audit.results.row import Interval, Row

UNKNOWN_LABEL = -1
"""What stands in multi-hot labels, beside 1 and 0, where it is not known whether an image has a label."""


class LabelCounts(Row):
    """How often labels occur in the audited images, alone and together."""

    n: int
    positives: dict[str, int]
    unknown: dict[str, int] = Field(description="images of which it is not known")
    together: list[list[int]] = Field(description="images that have both labels, in the order of the labels")


class LabelQuality(Row):
    """How well one label of a multi-label model is told."""

    n: int = Field(description="audited images of which it is known whether they have the label")
    positives: int = Field(description="of these, images that have it")
    threshold: float = Field(description="probability above which the model says that an image has the label")
    auroc: Interval = Field(description="area under the ROC curve; None: all images have it, or none has")
    average_precision: Interval
    f1: Interval = Field(description="at the threshold")
    ece: float | None = Field(description="expected calibration error of the label's probability, 15 bins")
    brier: float | None = Field(description="mean squared difference between probability and truth")


class AnyLabel(Row):
    """What one attack does to all labels of an image, each of which it was aimed at in turn."""

    right: Interval = Field(description="share of images on which every known label is decided rightly under attack")
    falls: Interval = Field(description="share of images on which some label falls that is decided rightly as it is")


class JointAttack(Row):
    """What one perturbation does that is aimed at all labels of an image together."""

    eps: float = Field(description="radius in pixel units")
    norm: Norm = "Linf"
    steps: int
    weights: dict[str, float] = Field(description="by label, what its fall counts")
    kept: Interval = Field(description="weighted share of an image's labels that are decided rightly, mean over images")
    before: float = Field(description="the same without an attack")
    by_label: dict[str, Interval] = Field(description="share of the images decided rightly under it, by label")


class LabelSummary(Row):
    """What was measured of all labels of a multi-label model together; macro: the mean over labels."""

    auroc: Interval = Field(description="macro")
    average_precision: Interval = Field(description="macro")
    f1: Interval = Field(description="macro")
    accuracy: Interval = Field(description="macro")
    ece: float | None = Field(description="macro")
    brier: float | None = Field(description="macro")
    exact: Interval = Field(description="share of images on which every known label is decided rightly")
    any_label: dict[str, AnyLabel] = Field(default_factory=dict, description="by attack and radius: 'pgd.8/255'")
    joint: dict[str, JointAttack] = Field(default_factory=dict, description="by norm and radius: '8/255', 'l2.0.5'")
