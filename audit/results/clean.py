"""How well a classifier answers unmodified images."""

from pydantic import Field

from audit.results.row import Interval, Row


class ClassScores(Row):
    """What is answered to the images of each class."""

    confusion: list[list[int]] | None = Field(
        default=None, description="images by true class (rows) and answer (columns), in the order of the classes"
    )
    precision: dict[str, float | None] = Field(
        default_factory=dict,
        description="per class, the share of its answers that are right; None where it is never answered",
    )
    f1: dict[str, float | None] = Field(
        default_factory=dict,
        description="per class, the harmonic mean of precision and recall; None where it has neither image nor answer",
    )
    macro_f1: float | None = Field(default=None, description="mean of `f1` over the classes that have it")


class ConfidenceBin(Row):
    """The images of which a model is about equally sure; confidence is the probability of the answered class."""

    low: float = Field(description="lower end of the confidence, exclusive")
    high: float = Field(description="upper end, inclusive")
    confidence: float = Field(description="mean over the images")
    accuracy: Interval


class Clean(ClassScores):
    """Performance on unmodified images of the audit split."""

    accuracy: Interval
    recall: dict[str, float | None] = Field(description="per class; None where the class has no image")
    ece: float | None = Field(description="expected calibration error, 15 equal-width bins; None: not measured")
    n: int
    confidence_bins: list[ConfidenceBin] = Field(
        default_factory=list, description="the bins of `ece` that hold an image; empty: the file is older"
    )
    misclassified: list[str] | None = Field(
        default=None, description="ids of the images that are answered wrongly; None: the file is older"
    )
