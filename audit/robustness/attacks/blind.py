"""Was an attack blind? What its account of gradients says (`audit.robustness.attacks.sight`).

The share held against the limit is that of images which the model decides rightly and the attack never had a gradient
of, so it is by how much the number may be over-stated. The limit is that of the trust checks.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from audit.classifiers.mode import preserve_mode
from audit.results import TrustCheck
from audit.robustness.attacks.checks import checked_logits, float_images
from audit.robustness.attacks.losses import image_gradient, margin
from audit.robustness.trust.case import FOREIGN_ERRORS, chance_limit
from audit.runtime.memory import out_of_memory
from audit.runtime.seeds import lent_randomness


@dataclass(frozen=True)
class Account:
    """How many of the `attacked` images (those classified correctly) the attack `kind` never saw.

    `kind` is its name, or 'distance' for the search for minimal distances; `where` says in words which number it is,
    for instance 'PGD at eps 8/255'.
    """

    kind: str
    where: str
    blind: int
    attacked: int

    @property
    def limit(self) -> float:
        """The largest share that passes: that of the trust checks, but never all of the images."""
        return 0.0 if self.attacked == 0 else min(chance_limit(self.attacked), (self.attacked - 1) / self.attacked)

    @property
    def share(self) -> float:
        return self.blind / self.attacked if self.attacked else 0.0

    @property
    def failed(self) -> bool:
        return self.share > self.limit

    @property
    def finding(self) -> str:
        """What was seen, and what it means."""
        seen = (
            f"{self.where}: on {self.blind} of {self.attacked} images that are classified correctly the gradient was "
            "zero or absent at every step"
        )
        if self.failed:
            return f"{seen}, so the attack was blind there and the number is what it could not see."
        return f"{seen}: " + ("the attack could see." if self.blind == 0 else "no more than is tolerated.")


def sight_check(accounts: Mapping[str, Account]) -> tuple[TrustCheck, dict[str, str]]:
    """Check the accounts of all gradient attacks on one model, by the path of their number in the results.

    Returns one check, about the attack that saw least, and the finding for each number that is untrusted by itself.
    """
    name = "blind-attack"
    told = [account for account in accounts.values() if account.attacked]
    if not told:
        why = "No gradient attack was made" if not accounts else "No image is classified correctly: there is no attack"
        return TrustCheck(name=name, passed=None, value=None, limit=None, n=0, finding=f"{why} to judge."), {}
    worst = max(told, key=lambda account: (account.failed, account.share))
    kinds = tuple(dict.fromkeys(account.kind for account in told if account.failed or not worst.failed))
    check = TrustCheck(
        name=name,
        passed=not worst.failed,
        value=worst.share,
        limit=worst.limit,
        n=worst.attacked,
        finding=worst.finding,
        attacks=kinds,
    )
    return check, {path: account.finding for path, account in accounts.items() if account.failed}


def without_gradient(classifier: nn.Module, images: Tensor) -> str | None:
    """Return what it means that the margin has no gradient on any of `images` `[N, C, H, W]` in [0, 1]; None: it has.

    The margin of the class answered against the next one is taken, which does not saturate as cross-entropy does.
    The classifier keeps its mode. One that breaks down on the way back gives None: the attacks say why.
    """
    images = float_images(images, "images given to the check of gradients")
    if len(images) == 0:
        return None
    with preserve_mode(classifier), lent_randomness(images.device):
        try:
            with torch.enable_grad():
                leaf = images.clone().requires_grad_()
                logits = checked_logits(classifier, leaf)
                gradient = image_gradient(classifier, margin(logits, logits.argmax(dim=1)), leaf)
        except FOREIGN_ERRORS as error:
            if out_of_memory(error):
                raise
            return None
    if bool((gradient != 0).any()):
        return None
    return (
        f"Its logits have no gradient with respect to any of {len(images)} images (a backbone under no_grad, a "
        "rounding, a detached or constant output?): gradient attacks, minimal distances, vulnerability maps and the "
        "search for counterfactuals follow the gradient and saw nothing of this model."
    )
