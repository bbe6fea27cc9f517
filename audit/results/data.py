"""The images of an audit: how they were read, what was left out, which stand twice."""

from typing import Literal

from pydantic import Field

from audit.results.row import Row


class LeftOut(Row):
    """What lies at data.path and is not part of the data, by the reason."""

    reason: str
    n: int
    examples: list[str] = Field(description="the first few, relative to data.path")


class Copies(Row):
    """Audited images whose content stands a second time, in one split."""

    split: str = Field(description="split that holds the copies; the audited split itself: copies among its images")
    n: int = Field(description="audited images concerned; within the audited split those beyond the first of each kind")
    other_label: int = Field(description="audited images with an equal image of another label in that split")
    examples: list[tuple[str, str]] = Field(description="ids: the audited image and its copy")


class PixelRange(Row):
    """What the numbers in the sources were like, before channels and size are converted."""

    n: int = Field(description="images looked at")
    largest: float = Field(description="largest number stored, before the division by white")
    brightest: float = Field(description="largest number as share of white, at most 1")
    constant: int = Field(description="images of one value only")
    saturated: float = Field(description="share of the pixels that are white or above")
    clipped: float = Field(description="share of the pixels above white, which were set to white")
    transparent: int = Field(description="images that are not opaque everywhere, laid over black")


class DataRead(Row):
    """How the images were read, what was left out, and which stand twice."""

    audit_split: str
    calibration_split: str | None = Field(description="None: there is none, or none is needed")
    splits: dict[str, dict[str, int]] = Field(description="images by split and class")
    origin: str | None = Field(default=None, description="package and version that read the data; None: this one")
    white: float | None = Field(description="as configured; None: the largest number that each depth can hold, or 1")
    kinds: dict[str, int] = Field(default_factory=dict, description="depth and colour of the sources, number of images")
    smallest: tuple[int, int] | None = Field(default=None, description="height and width before resizing")
    largest: tuple[int, int] | None = None
    pixels: PixelRange | None = None
    left_out: list[LeftOut] = Field(default_factory=list)
    copies: list[Copies] = Field(default_factory=list)
    compared: int = Field(default=0, description="images whose contents were compared")
    compared_by: Literal["pixels", "bytes"] | None = Field(
        default=None, description="pixels: as the models see them; bytes: of the files, for large sets"
    )
