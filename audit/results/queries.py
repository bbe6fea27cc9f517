"""Single images: which were explained, how well they were inverted, what their counterfactuals are like."""

from pydantic import Field

from audit.results.counterfactuals import Perceptual
from audit.results.row import Interval, Row

EDIT_FULL_SCALE = 0.25
"""Change of a pixel that the 8 bits of an edit map end at."""


class Query(Row):
    """An image that models are explained on; `queries` of a model says which it was."""

    id: str
    label: str
    image: str | None = Field(description="path relative to results.json; None: the pictures were not written")
    inversion_image: str | None
    region_images: dict[str, str] = Field(default_factory=dict, description="mask by region name, white inside")
    inversion_mse: float
    inversion_perceptual: float | None = None


class InversionSummary(Row):
    """Fidelity of the inversions shared by all models, images in [0, 1]."""

    method: str
    n: int
    mse: float
    mse_max: float
    encoder_mse: float | None = None
    pivot_mse: float | None = None
    editability: float | None = Field(
        default=None, description="mean correlation of a latent step's image change before and after tuning"
    )
    perceptual: Perceptual | None = None
    composition: dict[int, Interval] = Field(
        default_factory=dict,
        description="mean absolute difference to the query image after so many inversions in a row without an edit",
    )


class Aligned(Row):
    """The edit that the search's first phase ended with, before it was made smaller."""

    l1: float
    confidence: float
    steps: int = Field(description="last iterate of the first phase")


class QueryRow(Row):
    """One counterfactual: one model, one query image, one target class."""

    query: str = Field(description="id of the query image")
    source: str = Field(description="class that the model gives to the image as it is")
    target: str
    wrong: bool = Field(
        default=False, description="the model misclassifies the image as it is; its target is its own class"
    )
    flipped: bool
    reached: bool
    step: int = Field(description="iterate chosen as the counterfactual")
    flip_step: int | None = Field(description="first iterate classified as the target; None if never")
    confidence: float
    l1: float
    steps: int | None = Field(default=None, description="last iterate of the search; None: the file is older")
    converged: bool | None = Field(
        default=None,
        description="whether the edit had stopped to shrink when the search ended; None: it was not shrunk",
    )
    aligned: Aligned | None = Field(default=None, description="the edit before it was shrunk; None: it was not shrunk")
    ruined: bool = Field(
        default=False,
        description="the edit is as large as exchanging the image for the nearest real one of the target class, and "
        "brings it no nearer to any of those",
    )
    off_target: float | None = Field(
        default=None, description="of a label: mean absolute change of the other labels' probabilities"
    )
    moved: list[str] = Field(default_factory=list, description="other labels about which the decision changes")
    push: float | None = Field(
        default=None, description="multiplier of the operating point's constraint that led to the (aligned) edit"
    )
    reach: float | None = Field(default=None, description="how many times as far as x' the features were carried")
    feature_target_flips: bool | None = Field(
        default=None, description="whether the head itself assigns the replaced features x' to the target class"
    )
    carried_target_flips: bool | None = Field(default=None, description="the same of the features carried so far")
    perceptual: float | None = None
    mass: dict[str, float | None] = Field(default_factory=dict, description="share of the edit in each named region")
    area: dict[str, float | None] = Field(default_factory=dict)
    agreed_by: dict[str, bool] = Field(default_factory=dict)
    trace: list[float] = Field(default_factory=list, description="probability of the target class at each step")
    counterfactual_image: str | None = Field(None, description="path relative to results.json")
    semifactual_image: str | None = None
    edit_image: str | None = Field(None, description="|x_cf - x_inv|, mean over channels, 8-bit, full scale 0.25")
