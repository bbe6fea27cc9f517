"""A classifier: where it comes from, how it wants its images, how its answers are read."""

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from audit.config.places import Weights, container_of
from audit.config.section import Section


def _per_channel(value: Any) -> Any:
    """Read one number as the same for every channel; raises ValueError for what is no number or list of numbers."""
    values = list(value) if isinstance(value, list | tuple) else [value]
    if not values or any(isinstance(v, bool) or not isinstance(v, int | float) for v in values):
        raise ValueError(
            f"{value!r} is not a number or a list of numbers, one per channel, such as [0.485, 0.456, 0.406]"
        )
    return tuple(values)


PerChannel = Annotated[tuple[float, ...], BeforeValidator(_per_channel)]
"""One number per channel, or one for all."""


def _one_side(value: Any) -> Any:
    """Read `[224, 224]` as 224; raises ValueError for sides that differ."""
    if isinstance(value, list | tuple):
        sides = list(value)[-2:]
        if len(sides) != 2 or sides[0] != sides[1]:
            raise ValueError(f"{list(value)} is not one side of a square such as 224; other shapes cannot be audited")
        return sides[0]
    return value


def _shown(values: Sequence[float], digits: int = 6) -> str:
    return f"[{', '.join(f'{v:.{digits}g}' for v in values)}]"


def why_not_pixel_units(mean: Sequence[float] | None, std: Sequence[float] | None) -> str | None:
    """Say what is wrong with a normalisation of pixels in [0, 1], with the right values; None where nothing is."""
    if std is not None and any(not v > 0 for v in std):
        return f"std = {_shown(std)} holds a value that is not above 0: give the standard deviation of each channel"
    if mean is not None and any(v < 0 for v in mean):
        return f"mean = {_shown(mean)} holds a value below 0 where pixels are in [0, 1]: give the mean of each channel"
    largest = max([*(mean or ()), *(std or ())], default=0.0)
    if largest <= 1:
        return None
    scale = 255 if largest <= 255 else 65535
    # Where the means are in such units, a std of 1 is as well: the network was fed 0 to 255 less the mean.
    units = {
        "mean": mean if mean is not None and max(mean) > 1 else None,
        "std": std if std is not None and (max(std) > 1 or set(std) == {1}) else None,
    }
    written = " and ".join(f"{key} = {_shown(values)}" for key, values in units.items() if values is not None)
    right = ", ".join(
        f"{key} = {_shown([v / scale for v in values], 4)}" for key, values in units.items() if values is not None
    )
    verb = "are" if " and " in written else "is"
    return f"{written} {verb} in units of 0 to {scale} where pixels are in [0, 1]: set {right}"


Threshold = Annotated[float, Field(gt=0, lt=1)]

LARGEST_SIDE = 4096
"""Of a network's input; a file may claim any, and images are enlarged to it."""


class ClassifierConfig(Section):
    """One trained classifier: an architecture and its checkpoint, a file or folder that holds both, or a factory."""

    name: str = Field(min_length=1, description="name in results and report")
    role: Literal["baseline"] | None = Field(
        None, description="the model that a gate compares the others with, one at most; absent: audited like any other"
    )
    architecture: str | None = Field(
        None, description="timm model name; torchvision:NAME, xrv:NAME; hf-hub:ORG/NAME or timm:NAME brings its weights"
    )
    architecture_args: dict[str, Any] = Field(
        default_factory=dict, description="keyword arguments for the architecture"
    )
    factory: str | None = Field(None, description="import path 'package.module:factory' that returns a torch module")
    factory_args: dict[str, Any] = Field(default_factory=dict, description="keyword arguments for the factory")
    checkpoint: Weights | None = Field(None, description="state dict (.pt, .pth) or .safetensors for the architecture")
    weights_key: str | None = Field(
        None,
        min_length=1,
        description="where in the checkpoint the weights are, such as state_dict_ema; default: found",
    )
    file: str | None = Field(
        None, description="TorchScript (.pt, .ts), torch.export (.pt2) or ONNX (.onnx) file; hf:FOLDER, monai:FOLDER"
    )
    allow_code: bool = Field(
        False,
        description="run a TorchScript or torch.export file that does more than arithmetic, with all your rights; for "
        "all: --allow-code",
    )
    classes: tuple[str, ...] | None = Field(
        None, description="class names in the model's output order; those that the data have not are left out"
    )
    mean: PerChannel | None = Field(None, description="of pixels in [0, 1]; one number per channel, or one for all")
    std: PerChannel | None = Field(None, description="standard deviation, as mean")
    input_size: Annotated[int, BeforeValidator(_one_side)] | None = Field(
        None, ge=8, le=LARGEST_SIDE, description="side the model wants; default: timm's, else the data's"
    )
    channels: Literal[1, 3] | None = Field(None, description="channels it wants; default: timm's, else the data's")
    output: str | Annotated[int, Field(strict=True)] | None = Field(
        None, description="name or place of the tensor to read where the network returns several; default: found"
    )
    head: str | None = Field(None, min_length=1, description="the one of several heads, by its name in that output")
    scale: Literal["logits", "probabilities"] | None = Field(
        None, description="what its numbers are; default: found by running it"
    )
    threshold: Threshold | dict[str, Threshold] | None = Field(
        None,
        description="probability of the second class from which a classifier of two decides for it; of labels, from "
        "which each is said to be there, one number or one by label; default: 0.5",
    )
    features: str | None = Field(
        None,
        min_length=1,
        description="module whose output are the features, such as 'layer4'; default: the input of the final linear "
        "layer, and of a network without one its logits",
    )

    @model_validator(mode="after")
    def _one_source(self) -> "ClassifierConfig":
        given = [k for k in ("architecture", "factory", "file") if getattr(self, k) is not None]
        if len(given) > 1 or (not given and self.checkpoint is None):
            raise ValueError(
                f"classifier '{self.name}' needs exactly one of architecture (timm name), factory, file, "
                f'or a checkpoint that names its architecture, such as "shipped:NAME"; '
                f"given: {', '.join(given) or 'none'}"
            )
        if given and given[0] == "architecture" and self.checkpoint is None and not container_of(self.architecture):
            raise ValueError(f"classifier '{self.name}' needs a checkpoint beside its {given[0]}")
        idle = {
            "checkpoint": self.file is not None and self.checkpoint is not None,
            "weights_key": self.weights_key is not None and self.checkpoint is None,
            "allow_code": self.allow_code and (self.file is None or container_of(self.file) is not None),
            "architecture_args": bool(self.architecture_args) and self.architecture is None,
            "factory_args": bool(self.factory_args) and self.factory is None,
            "role": self.role is not None and isinstance(self, JudgeConfig),
        }
        for key in (k for k, unused in idle.items() if unused):
            raise ValueError(f"'{key}' of classifier '{self.name}' would have no effect: remove it")
        return self

    @model_validator(mode="after")
    def _in_pixel_units(self) -> "ClassifierConfig":
        why = why_not_pixel_units(self.mean, self.std)
        if why is not None:
            raise ValueError(f"classifier '{self.name}': {why}")
        return self


class JudgeConfig(ClassifierConfig):
    """A classifier that judges counterfactuals and is not audited."""

    copy_of: str | None = Field(
        None,
        description="name of the audited classifier that it was trained like, from another seed: it says whether it "
        "shares that one's flips, and nothing else; absent: one of the judges of transfer, for all models",
    )
