"""Input settings of a network, and which source gave each: configuration, checkpoint, timm, the data, or none.

A setting is taken from the first source that gives it, in that order. Where it came from stays with it, because a guess
that is wrong - timm's size for a network that was trained at another - changes every number without an error.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import timm

from audit.classifiers.architectures import SMALL_CONVNEXT_NAME
from audit.classifiers.checkpoint import Checkpoint
from audit.config import LARGEST_SIDE
from audit.errors import ClassifierError
from audit.results import Origin

SETTINGS = ("classes", "mean", "std", "input_size", "channels")
"""Names of the settings, as in a classifier's table of the configuration."""

SAME_INPUT_ARGS = frozenset(
    {
        "num_classes",
        "in_chans",
        "img_size",
        "global_pool",
        "drop_rate",
        "drop_path_rate",
        "attn_drop_rate",
        "proj_drop_rate",
    }
)
"""Arguments that leave a timm architecture what its own configuration describes."""


@dataclass(frozen=True)
class InputSettings:
    """Classes, normalisation, size and channels of a network; None where unknown. `with_origin` fills `origins`.

    `overruled` holds what the checkpoint says of settings that the configuration gives otherwise.
    """

    classes: tuple[str, ...] | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    input_size: int | None = None
    channels: int | None = None
    origins: Mapping[str, Origin] = field(default_factory=dict)
    overruled: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        # What a file claims is built and filled: it is bounded before that.
        if self.channels not in (None, 1, 3):
            raise ValueError(f"channels is {self.channels}, where images have 1 or 3")
        if self.input_size is not None and not 1 <= self.input_size <= LARGEST_SIDE:
            raise ValueError(f"input_size is {self.input_size}, where it lies between 1 and {LARGEST_SIDE}")

    def with_origin(self, origin: Origin) -> "InputSettings":
        """Return these settings with `origin` as the source of each that is given."""
        return replace(self, origins={key: origin for key in SETTINGS if getattr(self, key) is not None})

    def completed_by(self, other: "InputSettings") -> "InputSettings":
        """Return these settings, and those of `other` where these are None."""
        taken = {key: getattr(other, key) for key in SETTINGS if getattr(self, key) is None}
        origins = {key: other.origins[key] for key in taken if key in other.origins}
        overruled = {key: getattr(other, key) for key in SETTINGS if self._overrules(other, key)}
        return replace(self, **taken, origins={**origins, **self.origins}, overruled={**overruled, **self.overruled})

    def _overrules(self, other: "InputSettings", key: str) -> bool:
        if self.origins.get(key) != "configuration" or other.origins.get(key) != "checkpoint":
            return False
        own, theirs = getattr(self, key), getattr(other, key)
        if key in ("mean", "std"):  # one number stands for all channels
            channels = max(len(own), len(theirs))
            own, theirs = (one * channels if len(one) == 1 else one for one in (own, theirs))
        return bool(own != theirs)


def settings_of_metadata(about: Mapping[str, Any], where: str) -> InputSettings:
    """Read a checkpoint's metadata; raises ClassifierError for values of a wrong type."""
    try:
        return InputSettings(
            classes=None if "classes" not in about else tuple(str(c) for c in _list(about["classes"])),
            mean=None if "mean" not in about else tuple(float(v) for v in _list(about["mean"])),
            std=None if "std" not in about else tuple(float(v) for v in _list(about["std"])),
            input_size=None if about.get("input_size") is None else int(about["input_size"]),
            channels=None if about.get("channels") is None else int(about["channels"]),
        ).with_origin("checkpoint")
    except (TypeError, ValueError, OverflowError) as error:
        raise ClassifierError(
            f"The metadata of {where} cannot be read ({error}): write classes, mean and std as JSON lists, "
            "input_size and channels as numbers."
        ) from None


def _list(value: object) -> list[Any]:
    if not isinstance(value, list):
        raise TypeError(f"{value!r} is not a list")
    return value


def settings_of_arguments(args: Mapping[str, Any]) -> InputSettings:
    """Return what arguments of an architecture say about its input, without an origin."""
    size = args.get("img_size")
    return InputSettings(input_size=size if isinstance(size, int) else None, channels=args.get("in_chans"))


def settings_of_timm(architecture: str, args: Mapping[str, Any], checkpoint: Checkpoint) -> InputSettings:
    """Return the input settings of an unchanged timm architecture; none of one whose arguments change its layout.

    The channels are read off the checkpoint's first convolution where it can be found, because grey networks are often
    trained under the name of an RGB one.
    """
    about = None if architecture == SMALL_CONVNEXT_NAME else timm.models.get_pretrained_cfg(architecture)
    if about is None:
        return InputSettings()
    own = InputSettings()
    if isinstance(about.first_conv, str):
        channels = _channels_of(checkpoint, f"{about.first_conv}.weight")
        own = InputSettings(channels=channels).with_origin("checkpoint")
    if not set(args) <= SAME_INPUT_ARGS:
        return own
    described = own.completed_by(
        InputSettings(input_size=about.input_size[-1], channels=about.input_size[0]).with_origin("timm")
    )
    if described.channels != len(about.mean):
        return described
    return described.completed_by(InputSettings(mean=tuple(about.mean), std=tuple(about.std)).with_origin("timm"))


def _channels_of(checkpoint: Checkpoint, name: str) -> int | None:
    """Input channels of the convolution `name`, 1 or 3, whatever stands before it in the file; None if it is not there.

    Blocks have layers of the same name further down: the shortest way to it is the network's own.
    """
    found = [n for n, one in checkpoint.stored.items() if f".{n}".endswith(f".{name}") and len(one.shape) == 4]
    if not found:
        return None
    channels = checkpoint.stored[min(found, key=lambda n: (n.count("."), n))].shape[1]
    return channels if channels in (1, 3) else None
