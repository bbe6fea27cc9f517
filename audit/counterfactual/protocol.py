"""What every counterfactual method is given, and what it returns.

A method of another package needs only this module; `methods.py` finds it by its name. Images are `[N, C, H, W]` in
[0, 1], classes are in the order of the data.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor

from audit.classifiers.classifier import Classifier
from audit.counterfactual.exceptional import Calibration
from audit.embeddings.embedding import MapNetwork
from audit.generator.protocol import Generator
from audit.inversion.deltas import Rows
from audit.runtime.progress import Advance


class Inverted(Protocol):
    """What is needed of an inversion: w+ codes `[N, L, w]`, per-image weights by name, images `[N, C, H, W]`."""

    @property
    def pivots(self) -> Tensor: ...
    @property
    def deltas(self) -> Mapping[str, Rows]: ...
    @property
    def images(self) -> Tensor: ...


class RealImages(Protocol):
    """Real images and their classes, read as they are asked for."""

    def batches(self, batch_size: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Yield images `[n, C, H, W]`, classes `[n]` and positions `[n]` in order, `batch_size` at a time."""
        ...


@dataclass(frozen=True)
class CalibratedClassifier:
    """The classifier to explain, and what it is like on the calibration images.

    `calibration` describes its features; `operating_point [K]` is its median confidence on the images of each class
    that it classifies correctly, at most `counterfactual.operating_point_cap`: a counterfactual as confident as that
    has *reached* the target class. NaN: no image of the class is classified correctly. `real` are these images
    themselves, of which no query image is one.
    """

    classifier: Classifier
    calibration: Calibration
    operating_point: Tensor
    real: RealImages | None = field(default=None, kw_only=True)


@dataclass(frozen=True)
class SearchNetworks:
    """The networks that draw an edit and measure how large it looks; None: no perceptual distance."""

    generator: Generator
    perceptual: MapNetwork | None


@dataclass(frozen=True)
class InvertedQueries:
    """The N images to explain, and where they lie in the generator's latent space.

    `labels [N]` are the classes that the classifier gives to them, which edits lead away from: their own, but for a
    misclassified image.
    """

    images: Tensor
    labels: Tensor
    inversion: Inverted


@dataclass(frozen=True)
class Counterfactuals:
    """One model's counterfactuals of N query images, on the CPU.

    `images` and `semifactuals` are `[N, C, H, W]` in [0, 1]. `flipped` and `reached` say whether the counterfactual is
    assigned to the target class, and with at least the operating point's confidence; `confidence` is its probability of
    the target class and `step` its iterate. `flip_step` is the first iterate assigned to the target (-1: none; 0:
    already the inversion); `trace [N, T + 1]` the probability of the target class at every iterate from the inversion
    on. `latents [N, L, w]` are the counterfactuals' w+ codes, None where the method has none; `masks [N, 1, H, W]` say
    where what the codes draw is blended into the inversion (`blend.py`), None where it is not.
    `feature_target_flips` says whether the head alone assigns the features that the method aims at to the target class
    (of SPRUCE: the replaced features x', as in the thesis, not carried further); None where it aims at no features. A
    method that carries them further says in `push` and `reach` by which multiplier and how many times as far as x' it
    did for the counterfactual (of two phases: where the first one ended), and in `carried_target_flips` whether the
    head assigns the features so far out to the target class.

    An image's iterates may end before T: `steps` is the last one (None: T), and its trace stays at what it was there. A
    method that searches for the smallest change says in `converged` whether it had stopped to shrink; one that does so
    in two phases says in `aligned_l1` (mean absolute change against the inversion), `aligned_confidence` and
    `aligned_steps` where the first one ended. All `[N]`.
    """

    images: Tensor
    semifactuals: Tensor
    flipped: Tensor
    reached: Tensor
    confidence: Tensor
    step: Tensor
    flip_step: Tensor
    trace: Tensor
    latents: Tensor | None = None
    masks: Tensor | None = None
    feature_target_flips: Tensor | None = None
    steps: Tensor | None = None
    converged: Tensor | None = None
    aligned_l1: Tensor | None = None
    aligned_confidence: Tensor | None = None
    aligned_steps: Tensor | None = None
    push: Tensor | None = None
    reach: Tensor | None = None
    carried_target_flips: Tensor | None = None


class Method(Protocol):
    """A counterfactual method."""

    def explain(
        self,
        subject: CalibratedClassifier,
        networks: SearchNetworks,
        queries: InvertedQueries,
        targets: Tensor,
        advance: Advance,
    ) -> Counterfactuals:
        """Draw the counterfactual of every query image towards its class of `targets [N]`.

        `advance` is told the images done, in fractions. All networks are in evaluation mode with frozen parameters;
        gradients with respect to their inputs flow. Raises an AuditError where the classifier cannot be explained.
        """
        ...
