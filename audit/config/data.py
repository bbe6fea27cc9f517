"""Which images: where they lie, how they are read, what their regions are to the audit."""

import re
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from audit.config.section import Section


class PhantomConfig(Section):
    """The built-in synthetic radiographs (`data.path = "phantom"`)."""

    calibration: int = Field(3000, ge=30, description="images in the split 'calibration'")
    audit: int = Field(600, ge=6, description="images in the split 'test'")
    marker_correlation: float = Field(0.0, ge=-1, le=1, description="correlation of the marker with having a finding")


class DataConfig(Section):
    """Which images to audit, and which disjoint images to calibrate on."""

    path: str = Field(
        description="folder or .zip with a sub-folder per class, CSV manifest, MedMNIST .npz, or 'phantom'"
    )
    format: str = Field(
        "auto",
        description="folder, zip, manifest, npz, medmnist, datasets, phantom, or a format that another package adds; "
        "auto: told by what lies there",
    )
    options: dict[str, Any] = Field(default_factory=dict, description="settings for a format of another package")
    task: Literal["auto", "single-label", "multi-label"] = Field(
        "auto",
        description="single-label: every image is of one class; multi-label: it has any number of labels; auto: as the "
        "data look",
    )
    classes: tuple[str, ...] | None = Field(
        None, description="names of classes or labels in their order; default: as the data says"
    )
    image_size: int | None = Field(None, ge=8, le=1024, description="resize (antialiased) to this side; default: as is")
    channels: Literal[1, 3] | None = Field(None, description="convert to grey (1) or RGB (3); default: as the data is")
    white: float | None = Field(
        None,
        gt=0,
        description="pixel value that means white, such as 4095; default: the largest of the depth (255, 65535), or 1",
    )
    window: Literal["file"] | tuple[float, Annotated[float, Field(gt=1)]] | None = Field(
        None,
        description="of DICOM files: [centre, width] of what lies between black and white, in rescaled units, such as "
        "[40, 400] for soft tissue in CT; 'file': the window of each file; default: none, numbers are divided by white",
    )
    audit_split: str = Field("test", description="split whose images are audited")
    calibration_split: str | None = Field(
        None, description="default: calibration, val, valid, validation, dev or train"
    )
    masks: str | None = Field(
        None,
        description="masks of where the class's meaning lies: a folder of mask files called as the images are, or for "
        "an .npz the ending of its mask arrays, such as 'masks' for test_masks",
    )
    allow_outside: bool = Field(
        False, description="take files that a CSV manifest names outside its own folder, by whatever path or link"
    )
    groups: tuple[str, ...] = Field(
        (), description='columns of a CSV manifest, such as "site" or "sex", by whose values accuracy is compared'
    )
    phantom: PhantomConfig = PhantomConfig()
    shift: str | None = Field(
        None, description="second set of the same classes from another source, read as 'path' is; its whole audit split"
    )

    @model_validator(mode="after")
    def _white_or_window(self) -> "DataConfig":
        if self.white is not None and self.window is not None:
            raise ValueError("white and window both say which numbers are white: give one of them")
        return self

    @property
    def is_phantom(self) -> bool:
        """Whether the data are the built-in phantom."""
        return self.format == "phantom" or (self.format == "auto" and self.path == "phantom")

    @property
    def is_npz(self) -> bool:
        """Whether the data are arrays of an .npz."""
        return self.format == "npz" or (self.format == "auto" and self.path.lower().endswith(".npz"))

    @property
    def mask_arrays(self) -> str | None:
        """The ending of the mask arrays' names in the .npz; None: `masks` is absent or a folder (`./masks`)."""
        return self.masks if self.masks is not None and self.is_npz and re.fullmatch(r"\w+", self.masks) else None


class RegionsConfig(Section):
    """What the named regions of the data are to the audit."""

    confounder: tuple[str, ...] = Field(
        (),
        description="regions that no decision may rest on, such as a marker: a model whose edits lie there rather than "
        "in the region that carries the class has the index 0",
    )


class Training(Section):
    """What every training on images says: which images."""

    data: DataConfig
