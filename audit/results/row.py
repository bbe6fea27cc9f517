"""What every part of the results is made of, and small parts that many others hold."""

from pydantic import BaseModel, ConfigDict, Field


class Row(BaseModel):
    """A part of the results; unknown fields are errors so that a typo cannot hide a number."""

    model_config = ConfigDict(extra="forbid")


class Interval(Row):
    """A number with its interval; `level` is the coverage, `n` what it was measured on."""

    value: float | None = Field(description="None: not measured or not defined")
    low: float | None = None
    high: float | None = None
    level: float = 0.95
    n: int = 0


class Embedding(Row):
    """The network a distribution metric or perceptual distance rests on."""

    name: str
    weights_sha256: str


class Failure(Row):
    """Why a model's audit ended early; what had been measured before stays."""

    stage: str
    why: str


class NotComputed(Row):
    """Something a reader may look for that is not there, with the reason."""

    what: str
    why: str
    paths: list[str] = Field(
        default_factory=list,
        description="dotted paths in a model's result, such as 'counterfactuals.lpips': why a number at or below "
        "them is missing; empty: no single number is, or the file is older",
    )
