"""What an attack is made on, and what every attack does first and last: check, evaluate mode, clean logits, bounds."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from audit.classifiers.mode import preserve_mode
from audit.robustness.attacks.ball import Norm, assert_in_ball
from audit.robustness.attacks.checks import check_eps, check_labels, checked_logits, float_images
from audit.robustness.attacks.losses import image_gradient
from audit.robustness.attacks.sight import Sight


@dataclass(frozen=True)
class Target:
    """A classifier and one batch of images, float32 `[N, C, H, W]` in [0, 1] with labels `[N]`, under `attack`.

    `attack` is what errors call it. `sight`, if given, takes the account of the gradients. Rows are places in the
    batch.
    """

    attack: str
    classifier: nn.Module
    images: Tensor
    labels: Tensor
    norm: Norm
    sight: Sight | None = None

    def __post_init__(self) -> None:
        """Check the images and bring the labels to them; raises MetricError."""
        object.__setattr__(self, "images", float_images(self.images, f"images given to {self.attack}"))
        object.__setattr__(self, "labels", self.labels.to(self.images.device))

    def check_eps(self, eps: float) -> None:
        """Raise MetricError unless `eps` is a radius of the norm."""
        check_eps(eps, self.norm, self.images.shape[1:])

    @contextmanager
    def attacked(self) -> Iterator[Tensor]:
        """Put the classifier in evaluation mode for the block, and give the logits `[N, K]` of the images themselves.

        Raises MetricError on labels that the classifier has no class for.
        """
        with preserve_mode(self.classifier):
            # No classifier has to take an empty batch.
            logits = torch.zeros(0, 2, device=self.images.device)
            if len(self.images):
                with torch.no_grad():
                    logits = self.logits(self.images)
                check_labels(self.labels, len(self.images), logits.shape[1])
            yield logits

    def logits(self, images: Tensor) -> Tensor:
        """Return the logits `[n, K]` of any images; raises ClassifierError where they are not finite or no logits."""
        return checked_logits(self.classifier, images)

    def wrong(self, logits: Tensor, images: Tensor, labels: Tensor) -> Tensor:
        """Return which of `images` `[n, C, H, W]`, whose `logits` `[n, K]` came of a pass, are misclassified `[n]`.

        Where a pass with a gradient runs in 16 bits, those that it calls so are asked for once more in float32.
        """
        wrong = logits.argmax(dim=1) != labels
        if images.requires_grad and getattr(self.classifier, "low_gradients", False) and bool(wrong.any()):
            rows = wrong.nonzero().flatten()
            with torch.no_grad():
                wrong[rows] = self.logits(images[rows].detach()).argmax(dim=1) != labels[rows]
        return wrong

    def gradient(self, losses: Tensor, images: Tensor) -> Tensor:
        """Return the gradient of each image's loss `[n]` with respect to that image, as `image_gradient` does."""
        return image_gradient(self.classifier, losses, images)

    def note(self, rows: Tensor, gradient: Tensor) -> None:
        """Enter one step's `gradient` `[n, C, H, W]` of the images `rows` `[n]` into the account."""
        if self.sight is not None:
            self.sight.note(rows, gradient, self.norm)

    def within(self, result: Tensor, eps: float) -> Tensor:
        """Return `result` `[N, C, H, W]`; raises MetricError unless it is in [0, 1] and within `eps` of the images."""
        assert_in_ball(result, self.images, eps, self.norm, self.attack)
        return result
