"""Where the mass of an edit or of a map lies."""

from pydantic import Field

from audit.results.row import Interval, Row

MAIN_REGION = "region"
"""Name of the region that carries the class's meaning; every other region is something an edit should not need."""


class RegionShare(Row):
    """Where the edit's mass lies, for one named region."""

    region: str
    n: int = Field(description="counterfactuals with a non-empty mask and a non-zero edit")
    skipped: int
    mass: float | None = Field(description="mean share of the edit map inside the region")
    mass_interval: tuple[float, float] | None = Field(default=None, description="of the mean over images, 95 %")
    area: float | None = Field(description="mean share of the image that the region covers")
    lift: float | None = Field(description="mass over area share")
    p_value: float | None = Field(default=None, description="permutation test of lift > 1 by random torus shifts")
    rank_accuracy: float | None = None
    pointing: float | None = None
    iou: float | None = None
    auc: float | None = None
    alone: Interval | None = Field(
        default=None,
        description="share of the flips that stay where only the part of the edit inside the region is made",
    )
    undone: Interval | None = Field(
        default=None, description="share of the flips that stay where the part of the edit inside the region is undone"
    )


class ConfounderShare(Row):
    """How much of what is seen of the edits (above 4/255) lies in the regions named as confounders, all together."""

    regions: list[str]
    n: int = Field(description="flipped images that show the confounder and a visible edit")
    mass: float = Field(description="mean share of the visible edit in the confounder")
    main_mass: float | None = Field(description="the same in the region that carries the class; None: there is none")
    excess: float = Field(description="mean share beyond what the area gives by chance, (mass - area) / (1 - area)")
    ahead: Interval = Field(description="the excess less that in the class's region, which counts as 0 where negative")
    vetoes: bool = Field(description="the interval of `ahead` is above 0 and the excess at least 0.1")
