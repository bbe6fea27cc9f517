"""What an intervention is: a change of images that has no part in their class, at graded strength."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor

from audit.results import InterventionKind

Change = Callable[[Tensor, float], Tensor]
"""Maps images `[N, C, H, W]` in [0, 1] and a strength above 0 to images of the same shape, each by itself."""


@dataclass(frozen=True)
class Intervention:
    """A change in one or several `variants`, places or directions by name, of which the worst is reported.

    `strengths` rise and are in `unit`, words that follow the number; a strength of 0 would change nothing.
    """

    kind: InterventionKind
    variants: Mapping[str, Change]
    strengths: tuple[float, ...]
    unit: str


def intervene(images: Tensor, change: Change, strength: float) -> Tensor:
    """Return `images` changed at `strength`, in [0, 1]; at 0 they are as they were."""
    return images if strength == 0 else change(images, strength).clamp(0, 1)
