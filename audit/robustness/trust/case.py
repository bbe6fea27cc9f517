"""What the trust checks share: the images, attacks on what is left standing, and the limit that allows for chance.

A check runs real attacks against a classifier that may be built to defeat them, so whatever happens inside an attack is
evidence and no crash: it becomes `NotMade`, or a note for the check of bounds.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property

import torch
from scipy.stats import binom
from torch import Tensor, nn

from audit.classifiers.probe import first_line
from audit.config import RobustnessConfig, TrustConfig
from audit.errors import ClassifierError, MetricError
from audit.results import ENSEMBLE, PGD
from audit.robustness.attacks.ball import Norm, distance
from audit.robustness.attacks.checks import checked_logits
from audit.robustness.attacks.pgd import pgd_attack
from audit.robustness.attacks.registry import others_of, stages_of
from audit.runtime.memory import out_of_memory
from audit.runtime.seeds import stage_generator

TOLERATED = 0.02
"""Share of images that a second attack may take off the first before robust accuracy counts as over-stated.

A choice: attacks of like strength differ on a sound network by a point or two, by their random starts alone; defences
that mask their gradients are over-stated by tens of points (Athalye et al. 2018).
"""
CONFIDENCE = 0.99
"""A share of exactly `TOLERATED` passes a check with this probability or more."""
FORWARDS = 5
"""Forwards compared: a defence that tosses one fair coin a batch escapes with probability 1/16."""
RANDOMNESS_LIMIT = 1e-3
"""Of the logits' range. Reordered sums in float32 and TF32 stay below it, and noise below it moves no decision."""
FEWEST = 6
"""Fewest correctly classified images on which an attack says anything about a share.

With 6 to 8 images one or two may differ by chance; an attack that fails altogether is seen all the same.
"""
CHUNK = 64
"""Images attacked at once."""
FOREIGN_ERRORS = (RuntimeError, ClassifierError, TypeError, ValueError, ArithmeticError, LookupError, AttributeError)
"""What a classifier may raise when an attack meets it; running out of memory is no evidence and is let through."""

DISTANCE = "distance"
"""Stands for the search for minimal distances beside the names of attacks."""

Attack = Callable[[nn.Module, Tensor, Tensor, torch.Generator], Tensor]


class NotMade(Exception):
    """A check that cannot be made; its text is the finding."""


def chance_limit(n: int) -> float:
    """Return the largest share of `n` images that a true share of `TOLERATED` explains: its binomial quantile over n.

    Few images widen it (0.25 at 8, 0.0625 at 64, 0.036 at 500), so that an unlucky image is not taken for a defence.
    The price is power: of 64 images a true over-statement of 5 points is found one time in five, of 10 points in
    three of four; of 256 images in three of five, and nearly always.
    """
    return float(binom.ppf(CONFIDENCE, n, TOLERATED)) / n


class ScaleFree(nn.Module):
    """The classifier with every image's logits brought to one range, so that cross-entropy cannot saturate.

    The decision is the classifier's own. Source: Carlini & Wagner 2016, "Defensive distillation is not robust": logits
    a thousand times too large hide the gradient of cross-entropy and of nothing else.
    """

    RANGE = 10.0

    def __init__(self, classifier: nn.Module) -> None:
        super().__init__()
        self.classifier = classifier
        self.name = getattr(classifier, "name", type(classifier).__name__)
        self.low_gradients = getattr(classifier, "low_gradients", False)
        self.training = False

    def forward(self, images: Tensor) -> Tensor:
        """Logits `[N, K]` of `images`, each row centred and within `RANGE` of 0; finite where the classifier's are."""
        logits = self.classifier(images)
        centred = logits - logits.mean(dim=1, keepdim=True)
        largest = centred.detach().abs().amax(dim=1, keepdim=True)
        return centred / largest.clamp_min(torch.finfo(largest.dtype).tiny) * self.RANGE


@dataclass(frozen=True)
class Marks:
    """The attacks whose numbers a failed check marks as untrusted, by what it found.

    `every`: outputs or gradients are no good for any attack. `by_loss`: the scale of the logits hides the gradient of a
    loss that can saturate. `by_gradient`: gradients mislead, and an ensemble with an attack that needs none is not
    concerned. The search for minimal distances climbs the margin, which cannot saturate.
    """

    every: tuple[str, ...]
    by_loss: tuple[str, ...]
    by_gradient: tuple[str, ...]

    @classmethod
    def of(cls, config: RobustnessConfig) -> "Marks":
        """Return the marks of the attacks of `config`, by their properties; raises ConfigError for an unknown one."""
        stages, others = stages_of(config), others_of(config)
        saturates = [] if any(one.spec.scale_free for one in stages) else [ENSEMBLE]
        misled = [] if any(not one.spec.gradients for one in stages) else [ENSEMBLE]
        return cls(
            every=(PGD, ENSEMBLE, DISTANCE, *(one.name for one in others)),
            by_loss=(PGD, *saturates, *(one.name for one in others if not one.spec.scale_free)),
            by_gradient=(PGD, *misled, DISTANCE, *(one.name for one in others if one.spec.gradients)),
        )


@dataclass(frozen=True)
class Case:
    """One classifier, the images `[N, C, H, W]` with labels `[N]` it is checked on, and how PGD attacked them.

    `correct` `[N]` marks the images the attacks are about. `excess` gathers, for every adversarial batch made, how far
    it left ball or [0, 1] (0: not at all); `broken` what the attacks themselves said of their batches.
    """

    classifier: nn.Module
    images: Tensor
    labels: Tensor
    correct: Tensor
    config: RobustnessConfig
    trust: TrustConfig
    norm: Norm
    eps: float
    seed: int
    excess: list[float] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)

    @cached_property
    def marks(self) -> "Marks":
        """Return which attacks a failed check speaks about."""
        return Marks.of(self.config)

    @cached_property
    def n(self) -> int:
        """How many images the attacks are about; raises NotMade where they are too few."""
        count = int(self.correct.sum())
        if count < FEWEST:
            raise NotMade(
                f"Only {count} of the {len(self.images)} images are classified correctly where {FEWEST} are needed: "
                "nothing can be said."
            )
        return count

    @cached_property
    def randomness(self) -> float:
        """By how much forwards of the same images differ at most, as a share of the logits' range."""
        with torch.no_grad():
            first, *others = [checked_logits(self.classifier, self.images).float() for _ in range(FORWARDS)]
        spread = float((first - first.mean(dim=1, keepdim=True)).abs().max())
        differs = max(float((other - first).abs().max()) for other in others)
        return differs / spread if spread > 0 else differs

    @cached_property
    def standing(self) -> Tensor:
        """Whether each image `[N]` stands under PGD as configured; raises NotMade, too where decisions are random."""
        _ = self.n
        if self.randomness > RANDOMNESS_LIMIT:
            raise NotMade("The classifier draws at random: another attack cannot be told from another draw.")
        return self.attacked("PGD", self.pgd(self.config.steps, self.config.step_size), self.eps, self.correct)

    def pgd(self, steps: int, step_size: float | None, eps: float | None = None) -> Attack:
        """Return PGD of `steps` steps within `eps` (default: the case's own)."""
        radius = self.eps if eps is None else eps

        def attack(classifier: nn.Module, images: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
            return pgd_attack(
                classifier,
                images,
                labels,
                eps=radius,
                steps=steps,
                step_size=step_size,
                generator=generator,
                norm=self.norm,
            )

        return attack

    def generator(self, name: str) -> torch.Generator:
        """Return the generator of the draw called `name`; on the CPU, so that every device draws alike."""
        return stage_generator(self.seed, f"robustness/trust/trust/{name}")

    def newly_fooled(self, name: str, attack: Attack, *, scale_free: bool = False) -> int:
        """Return how many images that PGD left standing `attack` fools; raises NotMade."""
        after = self.attacked(name, attack, self.eps, self.standing, scale_free=scale_free)
        return int((self.standing & ~after).sum())

    def chunks(self, among: Tensor) -> Iterator[Tensor]:
        """Yield the positions of the images `among` `[N]`, at most `CHUNK` at a time."""
        return (rows for rows in among.nonzero().flatten().split(CHUNK) if len(rows))

    def attacked(self, name: str, attack: Attack, eps: float, among: Tensor, *, scale_free: bool = False) -> Tensor:
        """Return which of the images `among` `[N]` still stand after `attack`; raises NotMade if it cannot be run."""
        _ = self.n
        standing = among.clone()
        target = ScaleFree(self.classifier) if scale_free else self.classifier
        for rows in self.chunks(among):
            images, labels = self.images[rows], self.labels[rows]
            try:
                adversarial = attack(target, images, labels, self.generator(f"{name}/{int(rows[0])}"))
                self.excess.append(excess_of(adversarial, images, eps, self.norm))
                with torch.no_grad():
                    standing[rows] = checked_logits(self.classifier, adversarial).argmax(dim=1) == labels
            except MetricError as error:
                # Images, labels and radius were checked before: what is left is an attack that left its ball.
                self.broken.append(str(error))
                raise NotMade(f"{name} gave no valid images.") from error
            except FOREIGN_ERRORS as error:
                if out_of_memory(error):
                    raise
                raise NotMade(f"{name} cannot be run on this classifier ({first_line(error).rstrip('.')}).") from error
        return standing


def excess_of(adversarial: Tensor, images: Tensor, eps: float, norm: Norm = "Linf") -> float:
    """Return by how much a batch leaves its ball or [0, 1] at most; infinite where a pixel is not finite."""
    if not torch.isfinite(adversarial).all():
        return float("inf")
    outside = torch.maximum(-adversarial, adversarial - 1).amax()
    beyond = distance(adversarial, images, norm).amax() - eps
    return max(0.0, float(outside), float(beyond))
