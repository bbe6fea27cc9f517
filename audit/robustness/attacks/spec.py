"""What the rest of the audit has to know of an attack: its function, and what it is like."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from torch import Tensor

from audit.config import RobustnessConfig
from audit.robustness.attacks.ball import Norm

GIVEN = frozenset({"eps", "norm", "generator", "sight", "batch_size", "active"})
"""Parameters of an attack that the audit fills in; all others are its options."""


def _no_settings(_: RobustnessConfig) -> dict[str, Any]:
    return {}


@dataclass(frozen=True)
class AttackSpec:
    """What one attack is like.

    `run(classifier, images, labels, *, eps, norm, generator, **options)` returns images `[N, C, H, W]` in [0, 1] within
    `eps` (pixel units of `norm`) of `images`, which the classifier decides rightly; `labels` are int64 `[N]`, and every
    draw comes from `generator` or from the global generators, which are seeded for it and put back.
    """

    run: Callable[..., Tensor]
    norms: tuple[Norm, ...] = ("Linf", "L2")
    gradients: bool = True
    """Whether it follows gradients, so that a model that hides them defeats it."""
    scale_free: bool = False
    """Whether its loss cannot saturate when the logits are large."""
    minimal: bool = False
    """Whether it looks for the nearest adversarial image, whatever `eps` is: then distances are measured."""
    extent: Callable[[dict[str, Any]], str] | None = None
    """Of an attack that no norm bounds (`norms` is empty): what bounds it, in words, by its options; raises ConfigError
    on options that are not valid. It is made once, with `eps` 1 in L-inf, which holds every image; the words stand
    where a radius stands."""
    fewest_classes: int = 2
    takes: frozenset[Literal["sight", "batch_size"]] = frozenset()
    """What else `run` is given: `sight`, the account of gradients, by an attack that keeps it itself (for any other the
    gradients that come back from the classifier are counted); `batch_size`, the rows of a full batch."""
    settings: Callable[[RobustnessConfig], dict[str, Any]] = _no_settings
    """Options that have a key of their own in the configuration."""
    options: frozenset[str] | None = None
    """Names of its options; None: the parameters of `run`."""

    def accepts(self, option: str) -> bool:
        """Return whether the configuration may set `option`."""
        if self.options is not None:
            return option in self.options
        known = inspect.signature(self.run).parameters
        fixed = self.run.keywords if isinstance(self.run, partial) else {}
        any_name = any(one.kind is inspect.Parameter.VAR_KEYWORD for one in known.values())
        return option not in GIVEN and option not in fixed and (any_name or option in list(known)[3:])
