"""How a classifier was loaded, and whether it is the one that was meant."""

from typing import Any, Literal

from pydantic import Field

from audit.results.row import Interval, Row

Origin = Literal["configuration", "checkpoint", "container", "timm", "library", "data", "default"]
"""Who said how a model wants its images: `container` is a folder or file that describes itself, `library` what another
library than timm gives by default for the architecture; default: nobody did."""


class ModelInput(Row):
    """How a model was given its images and which weights it has; `origins` says where each setting came from."""

    size: tuple[int, int] = Field(description="height and width that the network receives")
    channels: int
    mean: list[float] = Field(description="subtracted from pixels in [0, 1], per channel; 0: no normalisation")
    std: list[float]
    classes: list[str] = Field(description="classes in the order of the network's own outputs")
    weights: str = Field(description="file, and the entry of the file that was read")
    origins: dict[str, Origin] = Field(description="by the name of a field above; default: nobody gave any")
    answer: str = Field("logits", description="what is read of what the network returns, and what is made of it")
    features: str | None = Field(None, description="where the features that counterfactuals go by come from")


class Reading(Row):
    """Accuracy on a few labelled images if a model were given its images, or its outputs were named, in another way."""

    name: str = Field(description="what would be otherwise; 'as audited' for the assumed reading")
    assumed: bool = Field(description="True: the reading that every other number of the audit rests on")
    accuracy: Interval
    p_value: float | None = Field(
        default=None, description="exact McNemar test against the assumed one, corrected for all readings tried"
    )
    better: bool = Field(
        default=False,
        description="right more often by at least 0.05, in the mean over classes, too, and by more than chance",
    )
    settings: dict[str, Any] = Field(
        default_factory=dict, description="keys and values of the classifier's table that would make it the assumed one"
    )
    beyond_settings: list[str] = Field(default_factory=list, description="what it needs that no key gives")
    not_tried: str | None = Field(default=None, description="why there is no accuracy")


class LoadingCheck(Row):
    """One line of a model's certificate of loading: is what is audited the network that was meant?"""

    name: str = Field(description="stable name for programs, for instance 'gradient'")
    passed: bool | None = Field(description="None: not tried, or nothing to tell it by; `finding` says why")
    value: float | None = Field(default=None, description="what was measured; None: nothing is")
    limit: float | None = Field(default=None, description="bound that `value` may not exceed")
    finding: str = Field(description="one sentence: what was seen, and what it means")
