"""The classes of the package `torchattacks` as attacks of an audit, by the name `torchattacks:CLASS`.

What a class is like is read from itself: one with a radius attacks within it, in the norm that its documentation names,
or in both if it has a parameter `norm`; one without looks for the nearest adversarial image by means of its own.
"""

import inspect
import re
from functools import partial
from importlib import import_module, metadata, util
from typing import Any

import torch
from torch import Tensor, nn

from audit.errors import ConfigError
from audit.robustness.attacks.ball import Norm
from audit.robustness.attacks.spec import AttackSpec

PREFIX = "torchattacks:"
RADII = ("eps", "max_epsilon")
"""What a class may call its radius."""
FILLED_IN = frozenset({"self", "model", "norm", "seed", "n_classes", *RADII})
"""Parameters of the constructors that the audit gives."""
WITHOUT_GRADIENT = frozenset({"Square", "SPSA", "OnePixel", "Pixle", "GN", "VANILA"})
FEWEST_CLASSES = {"APGDT": 4, "AutoAttack": 4}
"""Their targeted ratio of logits takes the fourth largest one."""
NOT_ALONE = frozenset({"MultiAttack", "LGV"})
"""Classes that need other attacks, or training images."""


def source() -> str:
    """Return the package and its version."""
    return f"torchattacks {metadata.version('torchattacks')}"


def spec_of(name: str, key: str) -> AttackSpec:
    """Return what the attack `name` ('torchattacks:CW'), which the configuration gives in `key`, is like.

    Raises ConfigError if there is no such class.
    """
    if util.find_spec("torchattacks") is None:
        raise ConfigError(
            f"Key '{key}' names '{name}', and torchattacks is not installed: pip install 'spruce-audit[torchattacks]'."
        )
    package = import_module("torchattacks")
    classes = [one for one in package.__all__ if one not in NOT_ALONE]
    wanted = name.removeprefix(PREFIX)
    if wanted not in classes:
        raise ConfigError(f"Key '{key}' names '{name}', and the classes of torchattacks are: {', '.join(classes)}.")
    kind = getattr(package, wanted)
    parameters = frozenset(inspect.signature(kind.__init__).parameters)
    radius = next((one for one in RADII if one in parameters), None)
    return AttackSpec(
        partial(_attack, kind=kind, radius=radius),
        norms=("Linf", "L2") if "norm" in parameters else (_norm(kind),),
        gradients=wanted not in WITHOUT_GRADIENT,
        minimal=radius is None,
        fewest_classes=FEWEST_CLASSES.get(wanted, 2),
        options=parameters - FILLED_IN,
    )


def _norm(kind: type) -> Norm:
    """Return the norm of a class; one that counts pixels (L0) or sums their changes (L1) is measured in L2."""
    said = re.search(r"Distance Measure\s*:\s*Linf", inspect.getdoc(kind) or "")
    return "L2" if said is None else "Linf"


def _attack(
    classifier: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    kind: Any,
    radius: str | None,
    eps: float,
    norm: Norm,
    generator: torch.Generator,
    **options: Any,
) -> Tensor:
    with torch.no_grad():
        classes = classifier(images).shape[1]
    seed = int(torch.randint(2**31, (), generator=generator, device=generator.device))
    parameters = inspect.signature(kind.__init__).parameters
    given = {"norm": norm, "seed": seed, "n_classes": classes, **({} if radius is None else {radius: eps})}
    attack = kind(classifier, **{name: value for name, value in given.items() if name in parameters}, **options)
    attack.set_device(images.device)
    found: Tensor = attack(images, labels)
    return found
