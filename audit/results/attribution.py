"""What attribution methods say of a model's decisions."""

from pydantic import Field

from audit.results.regions import RegionShare
from audit.results.row import Interval, Row


class AttributionMap(Row):
    """The attribution map of one image."""

    id: str
    label: str
    predicted: str = Field(description="class that the model answers, which the map explains")
    image: str = Field(description="path relative to results.json")
    map_image: str = Field(description="the map over its largest value")


class Attribution(Row):
    """What one attribution method says of a model's decisions, as a baseline beside the edits."""

    method: str
    n: int
    regions: list[RegionShare] = Field(
        default_factory=list, description="where the maps' mass lies, scored as that of the edits"
    )
    similarity: Interval = Field(
        description="rank correlation of the maps with those of shuffled weights, mean over images: near 1 they do not "
        "depend on what the model has learnt; None: no map is defined with shuffled weights"
    )
    examples: list[AttributionMap] = Field(default_factory=list, description="of the first few images")
