"""The interventions that an audit can make, by name: tokens, and changes of exposure, place and sharpness.

Another package adds one by an entry point of the group `spruce_audit.interventions`. Strengths are mild: a person would
decide as before. What the edge of a moved image leaves open is filled with the edge's own pixels.
"""

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path

from torch import Tensor
from torch.nn.functional import interpolate

from audit.config import RelianceConfig
from audit.errors import ConfigError
from audit.reliance import tokens
from audit.reliance.spec import Change, Intervention
from audit.reliance.tokens import CORNERS, Draw
from audit.robustness.attacks.spatial import resampled
from audit.robustness.corruptions.digital import jpeg
from audit.robustness.corruptions.filters import gaussian_blur
from audit.runtime.registry import Registry

OF_SIDE = "of the shorter side"


def _exposure(images: Tensor, strength: float, sign: int) -> Tensor:
    return images * (1 + strength) ** sign


def _contrast(images: Tensor, strength: float, sign: int) -> Tensor:
    mean = images.mean(dim=(2, 3), keepdim=True)
    return (images - mean) * (1 + strength) ** sign + mean


def _gamma(images: Tensor, strength: float, sign: int) -> Tensor:
    return images ** ((1 + strength) ** sign)


def _shifted(images: Tensor, strength: float, right: int, down: int) -> Tensor:
    height, width = images.shape[-2:]
    along = 2 * strength * min(height, width)
    return resampled(images, [[1, 0, -right * along / width], [0, 1, -down * along / height]], "border")


def _turned(images: Tensor, degrees: float, sign: int) -> Tensor:
    height, width = images.shape[-2:]
    angle = math.radians(sign * degrees)
    cos, sin = math.cos(angle), math.sin(angle)
    # Half a side is not equally long along both axes of an oblong image.
    return resampled(images, [[cos, sin * height / width, 0], [-sin * width / height, cos, 0]], "border")


def _scaled(images: Tensor, strength: float, sign: int) -> Tensor:
    zoom = (1 + strength) ** -sign
    return resampled(images, [[zoom, 0, 0], [0, zoom, 0]], "border")


def _blurred(images: Tensor, strength: float) -> Tensor:
    return gaussian_blur(images, strength * min(images.shape[-2:]))


def _compressed(images: Tensor, strength: float) -> Tensor:
    return jpeg(images, max(round(100 * (1 - strength)), 1))


def _coarsened(images: Tensor, strength: float) -> Tensor:
    size = [max(round(side * (1 - strength)), 1) for side in images.shape[-2:]]
    small = interpolate(images, size, mode="bilinear", antialias=True)
    return interpolate(small, images.shape[-2:], mode="bilinear")


def _both(change: Callable[[Tensor, float, int], Tensor], more: str, less: str) -> dict[str, Change]:
    """Return the two variants of a change that goes both ways, by the sign it takes last."""
    return {
        more: lambda images, strength: change(images, strength, 1),
        less: lambda images, strength: change(images, strength, -1),
    }


def _pasted(draw: Draw, sizes: tuple[float, ...], margin: float = tokens.MARGIN) -> Intervention:
    places = {place: partial(tokens.paste_in, place=place, draw=draw, margin=margin) for place in CORNERS}
    return Intervention("token", places, sizes, OF_SIDE)


INTERVENTIONS: Registry[Intervention] = Registry(
    "interventions",
    "intervention",
    {
        "side-marker": _pasted(tokens.side_marker, (0.06, 0.1, 0.15)),
        "text": _pasted(tokens.text, (0.2, 0.3)),
        "ruler": _pasted(tokens.ruler, (0.3, 0.6)),
        "pacemaker": _pasted(tokens.device, (0.08, 0.12), margin=0.15),
        "border": Intervention(
            "token",
            {"white": partial(tokens.border, white=True), "black": partial(tokens.border, white=False)},
            (0.015, 0.03),
            OF_SIDE,
        ),
        "exposure": Intervention(
            "acquisition", _both(_exposure, "brighter", "darker"), (0.1, 0.2), "of the brightness"
        ),
        "contrast": Intervention("acquisition", _both(_contrast, "more", "less"), (0.2, 0.4), "of the contrast"),
        "gamma": Intervention("acquisition", _both(_gamma, "darker", "brighter"), (0.1, 0.2), "of the exponent"),
        "shift": Intervention(
            "geometry",
            {
                name: partial(_shifted, right=right, down=down)
                for name, right, down in (("right", 1, 0), ("left", -1, 0), ("down", 0, 1), ("up", 0, -1))
            },
            (0.02, 0.05),
            OF_SIDE,
        ),
        "rotation": Intervention("geometry", _both(_turned, "clockwise", "counterclockwise"), (3, 6), "degrees"),
        "scale": Intervention("geometry", _both(_scaled, "larger", "smaller"), (0.03, 0.07), "of the size"),
        "blur": Intervention("sharpness", {"": _blurred}, (0.01, 0.02), OF_SIDE),
        "jpeg": Intervention("sharpness", {"": _compressed}, (0.2, 0.5), "of the quality"),
        "resolution": Intervention("sharpness", {"": _coarsened}, (0.25, 0.5), "of the resolution"),
    },
)

ON_REQUEST = ("pacemaker",)
"""Left out unless it is named: it lies on the body, where it may be taken for a finding."""


def choose_interventions(config: RelianceConfig) -> dict[str, Intervention]:
    """Return the interventions of the configuration by name, the user's own tokens last.

    Raises ConfigError for one that is not there, a token that cannot be read, and a name that is given twice. Meant for
    the start of a run, before data are read.
    """
    usual = [name for name in INTERVENTIONS.builtin if name not in ON_REQUEST]
    names = usual if config.interventions is None else config.interventions
    found = {name: INTERVENTIONS.get(name, "reliance.interventions") for name in names}
    for token in config.tokens:
        if token.name in found:
            raise ConfigError(f"Token '{token.name}' of reliance.tokens is called as an intervention is: rename it.")
        draw = tokens.read_token(Path(token.path))
        places: dict[str, Change] = {place: partial(tokens.paste_in, place=place, draw=draw) for place in token.places}
        found[token.name] = Intervention("token", places, token.sizes, OF_SIDE)
    return found
