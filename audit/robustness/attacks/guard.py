"""Run an attack and leave nothing behind; one of another package is foreign code and is held to the rules of our own.

It sees a copy of the images through a classifier in evaluation mode; the global random generators are seeded for it and
put back, so that equal seeds give equal images; what it returns must be images in [0, 1] and, for an attack within a
radius, in its ball. Rounding is mended by projection. More than rounding is refused: a number at one radius must not
rest on images at another.
"""

from typing import Any

import torch
from torch import Tensor, nn

from audit.classifiers.mode import preserve_mode
from audit.classifiers.probe import first_line
from audit.errors import AuditError, Terminated
from audit.robustness.attacks.ball import TOLERANCE, distance, per_image, project
from audit.robustness.attacks.checks import checked_logits, name_of
from audit.robustness.attacks.registry import ChosenAttack
from audit.robustness.attacks.sight import Sight
from audit.robustness.attacks.target import Target
from audit.runtime.memory import out_of_memory
from audit.runtime.seeds import lent_randomness


class AttackFault(AuditError):
    """An attack that cannot be made or returns no such images; what other attacks measured is not concerned."""


class Observed(nn.Module):
    """The classifier, with an account of the gradients that come back from it.

    Only batches of all images are counted, which hold them in their order. An output that does not lead back to the
    image gives a gradient of zeros, as it does to our own attacks, where autograd would raise an error.
    """

    def __init__(self, target: Target, sight: Sight) -> None:
        super().__init__()
        self.classifier = target.classifier
        self.name = name_of(target.classifier)
        self.training = False
        self._sight, self._norm = sight, target.norm
        self._rows = torch.arange(len(target.images), device=target.images.device)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits `[n, K]`."""
        if not (images.requires_grad and torch.is_grad_enabled()):
            return checked_logits(self.classifier, images)
        # A view: an attack's own loss may lead back to `images` as well, and is none of the classifier's gradient.
        seen = images.view_as(images)
        logits = checked_logits(self.classifier, seen)
        if not logits.requires_grad:
            logits = logits + 0 * seen.flatten(1).sum(dim=1, keepdim=True)
        if len(images) == len(self._rows):
            seen.register_hook(lambda gradient: self._sight.note(self._rows, gradient, self._norm))
        return logits


def run_attack(
    chosen: ChosenAttack, target: Target, eps: float, generator: torch.Generator, *, batch_size: int
) -> Tensor:
    """Return what `chosen` makes of the images of `target`, which the classifier decides rightly, within `eps`.

    `target.sight` takes the account of the gradients; `batch_size` are the rows of a full batch. Raises AttackFault for
    an attack of another package that fails or returns no images of the ball, and for one that needs more classes.
    """
    spec = chosen.spec
    given: dict[str, Any] = {"eps": eps, "norm": target.norm, "generator": generator, **chosen.options}
    beside = {"sight": target.sight, "batch_size": batch_size}
    given |= {name: beside[name] for name in spec.takes}
    if chosen.source is None:
        found: Tensor = spec.run(target.classifier, target.images, target.labels, **given)
        return found
    observed: nn.Module = target.classifier
    if target.sight is not None and "sight" not in spec.takes:
        observed = Observed(target, target.sight)
    # Code of others may draw from the global generators: they follow the attack's own.
    seed = int(torch.randint(2**32, (), generator=generator, device=generator.device))
    with preserve_mode(target.classifier), lent_randomness(target.images.device, seed), torch.enable_grad():
        try:
            found = spec.run(observed, target.images.clone(), target.labels.clone(), **given)
        except (KeyboardInterrupt, Terminated, GeneratorExit):
            raise
        except BaseException as error:
            if out_of_memory(error):
                raise
            said = str(error) if isinstance(error, AuditError) else f"{type(error).__name__}: {first_line(error)}"
            raise AttackFault(
                f"Attack '{chosen.name}' failed on classifier '{name_of(target.classifier)}' ({said.rstrip('.')})."
            ) from error
    return _checked(found, chosen, target, eps)


def _checked(found: Any, chosen: ChosenAttack, target: Target, eps: float) -> Tensor:
    """Return the images in float32, within the bounds by more than rounding; raises AttackFault."""
    images, who = target.images, f"Attack '{chosen.name}'"
    if not isinstance(found, Tensor) or found.shape != images.shape:
        what = list(found.shape) if isinstance(found, Tensor) else type(found).__name__
        raise AttackFault(f"{who} returned {what} where images of shape {list(images.shape)} are expected.")
    found = found.detach().to(images)
    if not ((found >= -TOLERANCE) & (found <= 1 + TOLERANCE)).all():
        raise AttackFault(f"{who} returned pixels that are not in [0, 1]: it must clamp its images.")
    found = found.clamp(0, 1)
    radius = distance(found, images, target.norm)
    if chosen.spec.minimal:
        return torch.where(per_image(radius <= eps, images), found, images)
    if float(radius.max()) > eps + TOLERANCE:
        raise AttackFault(
            f"{who} returned an image {float(radius.max()):.4g} from its original where eps is {eps:.4g} in "
            f"{target.norm}: it must stay within eps."
        )
    return project(found, images, eps, target.norm)
