"""May a robust accuracy be believed? Checks that fail where an attack failed although the classifier is not robust.

Sources: Athalye et al. 2018, "Obfuscated gradients give a false sense of security" (the signs of masked gradients);
Carlini et al. 2019, "On evaluating adversarial robustness" (more steps, unbounded and black-box attacks, randomness);
Croce & Hein 2020 (losses that do not depend on the logits' scale, a black-box search as a backstop).

A share of images is held against `chance_limit`: two points are tolerated, and what two points may look like by chance
on so few images. Where a failure speaks about PGD alone - its number of steps, its loss - it marks `pgd` only, because
the ensemble holds the remedy: longer and scale-free attacks, and Square. Where the gradients lead nowhere at all,
outputs are of the wrong kind or the classifier draws at random, no attack at hand can be trusted: both are marked, and
minimal distances with them.

The checks are made in one norm at one radius and speak about both: what hides a gradient hides it in every ball.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from audit.classifiers.probe import first_line
from audit.config import RobustnessConfig, eps_value
from audit.results import PGD, TrustCheck
from audit.robustness.attacks.ball import TOLERANCE, Norm, project, random_offset
from audit.robustness.attacks.checks import checked_logits
from audit.robustness.attacks.losses import margin
from audit.robustness.attacks.square import square_attack
from audit.robustness.attacks.target import Target
from audit.robustness.trust.case import FOREIGN_ERRORS, FORWARDS, RANDOMNESS_LIMIT, Case, NotMade, chance_limit
from audit.runtime.memory import out_of_memory
from audit.runtime.seeds import lent_randomness

PGD_ONLY = (PGD,)
PROBABILITY_TOLERANCE = 1e-3
PROBABILITY_LIMIT = 0.5
"""Share of rows that look like probabilities; by chance next to none do, and a softmax makes all of them so."""
LARGE_EPS = 0.5
"""L-inf radius at which every image can become uniform grey, which has no class (Carlini et al. 2019).

In L2 it is as much in every pixel: half the square root of their number.
"""
LARGE_STEPS = 40
"""PGD steps at the large radius, or as many as configured if more: the way is longer than in the usual ball."""


@dataclass(frozen=True)
class _Finding:
    """The words of a check: what was seen, and what it means where it passes and where it fails."""

    seen: str
    passes: str
    fails: str


def _share_check(
    case: Case, name: str, count: int, words: _Finding, attacks: tuple[str, ...], *, eps: float | None = None
) -> TrustCheck:
    """Hold `count` of the correct images against the limit of chance; `eps` is the radius, default: the case's."""
    share, limit = count / case.n, chance_limit(case.n)
    passed = share <= limit
    # A few images are no proof of soundness either: say that they were let pass, and at what limit.
    tolerated = words.passes if count == 0 else f"no more than the {limit:.1%} that is tolerated on so few images"
    return TrustCheck(
        name=name,
        passed=passed,
        value=share,
        limit=limit,
        n=case.n,
        eps=case.eps if eps is None else eps,
        norm=case.norm,
        finding=f"{words.seen}: {tolerated if passed else words.fails}.",
        attacks=attacks,
    )


def _randomised_forward(case: Case) -> TrustCheck:
    """Forwards of the same images must agree, or an attack meets another classifier at every step."""
    value = case.randomness
    passed = value <= RANDOMNESS_LIMIT
    return TrustCheck(
        name="randomised-forward",
        passed=passed,
        value=value,
        limit=RANDOMNESS_LIMIT,
        n=len(case.images),
        finding=f"{FORWARDS} forwards of the same images differ by {value:.2g} of the logits' range: "
        + (
            "the classifier is deterministic."
            if passed
            else "it draws at random, and attacks that do not average over its draws over-state robust accuracy."
        ),
        attacks=case.marks.every,
    )


def _softmax_output(case: Case) -> TrustCheck:
    """Outputs must be logits: probabilities saturate, and a softmax of them flattens every gradient."""
    with torch.no_grad():
        outputs = checked_logits(case.classifier, case.images).float()
    rows = (outputs >= 0).all(dim=1) & ((outputs.sum(dim=1) - 1).abs() <= PROBABILITY_TOLERANCE)
    value = float(rows.float().mean())
    passed = value <= PROBABILITY_LIMIT
    taken = getattr(getattr(case.classifier, "answer", None), "scale", "logits") == "probabilities"
    right = "the network gives probabilities, and their logarithms were attacked" if taken else "they are logits"
    return TrustCheck(
        name="softmax-output",
        passed=passed,
        value=value,
        limit=PROBABILITY_LIMIT,
        n=len(case.images),
        finding=f"{value:.0%} of the outputs are non-negative and sum to 1: "
        + (f"{right}." if passed else "they are probabilities, not logits, which hides the gradient."),
        attacks=case.marks.every,
    )


def _without_gradient(case: Case) -> tuple[int, int]:
    """Count the correct images whose margin has no usable gradient at a random start of PGD, and the cut ones.

    The margin is taken and not cross-entropy, whose gradient underflows in float32 where a sound model is confident.
    """
    count = cut = 0
    for rows in case.chunks(case.correct):
        images, labels = case.images[rows], case.labels[rows]
        offset = random_offset(images.shape, case.eps, case.norm, case.generator(f"start/{int(rows[0])}"))
        start = project(images + offset.to(images), images, case.eps, case.norm).requires_grad_()
        with torch.enable_grad():
            margins = margin(case.classifier(start), labels)
        if not margins.requires_grad:
            cut += len(rows)
            continue
        (gradient,) = torch.autograd.grad(margins.sum(), start, materialize_grads=True)
        flat = gradient.flatten(1)
        count += int((~torch.isfinite(flat).all(dim=1) | (flat == 0).all(dim=1)).sum())
    return count + cut, cut


def _zero_gradients(case: Case) -> TrustCheck:
    """The logits must answer to the image: a gradient that is zero, infinite or absent stops every white-box attack."""
    fails = "white-box attacks are blind there, and robust accuracy is what they could not see"
    n = case.n
    try:
        count, cut = _without_gradient(case)
        if cut:
            fails = "the way back from logits to image is cut, and white-box attacks are blind"
    except FOREIGN_ERRORS as error:
        if out_of_memory(error):
            raise
        count, fails = n, f"it cannot be computed ({first_line(error).rstrip('.')})"
    return _share_check(
        case,
        "zero-gradients",
        count,
        _Finding(
            f"The margin of the logits has no usable gradient on {count} of {n} images",
            "attacks can see where to go",
            fails,
        ),
        case.marks.every,
    )


def _saturated_loss(case: Case) -> TrustCheck:
    """PGD must not do better on logits brought to one range: then cross-entropy was saturated, not the model robust."""
    attack = case.pgd(case.config.steps, case.config.step_size)
    count = case.newly_fooled("PGD on rescaled logits", attack, scale_free=True)
    return _share_check(
        case,
        "saturated-loss",
        count,
        _Finding(
            f"PGD on rescaled logits fools {count} of {case.n} images that plain PGD leaves standing",
            "the scale of the logits hides nothing",
            "cross-entropy is saturated, and robust accuracy under PGD is over-stated",
        ),
        case.marks.by_loss,
    )


def _black_box_beats_white_box(case: Case) -> TrustCheck:
    """A search that sees outputs only must not fool what PGD, with the gradient in hand, leaves standing."""

    def attack(classifier: nn.Module, images: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
        return square_attack(
            classifier,
            images,
            labels,
            eps=case.eps,
            generator=generator,
            norm=case.norm,
            queries=case.trust.square_queries,
        )

    count = case.newly_fooled("Square", attack)
    queries = case.trust.square_queries
    return _share_check(
        case,
        "black-box-beats-white-box",
        count,
        _Finding(
            f"Square with {queries} queries fools {count} of {case.n} images that PGD leaves standing",
            "the gradient is worth more than a blind search",
            "the gradient misleads PGD, and its robust accuracy is over-stated",
        ),
        case.marks.by_gradient,
    )


def _large_eps(case: Case) -> TrustCheck:
    """Within a radius that lets every image become grey, an attack that works leaves next to nothing standing.

    What stands is attacked once more on rescaled logits: if that works, the fault is PGD's loss and not the gradient's.
    """
    pixels = case.images[0].numel()
    eps = max(LARGE_EPS * (1.0 if case.norm == "Linf" else pixels**0.5), case.eps)
    attack = case.pgd(max(case.config.steps, LARGE_STEPS), None, eps)
    standing = case.attacked("PGD at a large eps", attack, eps, case.correct)
    count = int(standing.sum())
    attacks = case.marks.every
    if count / case.n > chance_limit(case.n):
        after = case.attacked("PGD on rescaled logits at a large eps", attack, eps, standing, scale_free=True)
        attacks = PGD_ONLY if int(after.sum()) / case.n <= chance_limit(case.n) else case.marks.every
    return _share_check(
        case,
        "large-eps",
        count,
        _Finding(
            f"{count} of {case.n} images stand under PGD at eps {eps:g}, where every image can become grey",
            "the attack succeeds where it must",
            "the attack fails where it must succeed, so it measures itself and not robustness",
        ),
        attacks,
        eps=eps,
    )


def _more_steps(case: Case) -> TrustCheck:
    """More steps must not help: then PGD had not converged."""
    steps = case.config.steps * case.trust.more_steps
    count = case.newly_fooled("PGD with more steps", case.pgd(steps, case.config.step_size))
    return _share_check(
        case,
        "more-steps",
        count,
        _Finding(
            f"PGD of {steps} steps fools {count} of {case.n} images that {case.config.steps} steps leave standing",
            "PGD has converged",
            "PGD has not converged, so raise robustness.steps",
        ),
        PGD_ONLY,
    )


def _bounds(case: Case) -> TrustCheck:
    """Every adversarial batch the other checks made is finite, in [0, 1] and in its ball."""
    if not case.excess and not case.broken:
        raise NotMade("No attack gave any images to measure.")
    value = max(case.excess, default=None)
    finite = value is not None and value < float("inf")
    passed = not case.broken and value is not None and value <= TOLERANCE
    if case.broken:
        finding = case.broken[0]
    elif finite:
        finding = f"Adversarial images leave their ball and [0, 1] by {value:.2g} at most: " + (
            "they are what the radius allows." if passed else "they are no answer to the question asked."
        )
    else:
        finding = "An adversarial image holds values that are not finite: the attack is not to be trusted."
    return TrustCheck(
        name="bounds",
        passed=passed,
        value=value if finite else None,
        limit=TOLERANCE,
        n=len(case.images),
        finding=finding,
        attacks=case.marks.every,
    )


CHECKS: tuple[tuple[str, Callable[[Case], TrustCheck]], ...] = (
    ("randomised-forward", _randomised_forward),
    ("softmax-output", _softmax_output),
    ("zero-gradients", _zero_gradients),
    ("saturated-loss", _saturated_loss),
    ("black-box-beats-white-box", _black_box_beats_white_box),
    ("large-eps", _large_eps),
    ("more-steps", _more_steps),
    ("bounds", _bounds),
)
"""Every check by its name, in the order of the results; `bounds` is last because it measures what the others made."""


def _made(name: str, check: Callable[[Case], TrustCheck], case: Case) -> TrustCheck:
    try:
        return check(case)
    except NotMade as reason:
        finding = str(reason)
    except FOREIGN_ERRORS as error:
        if out_of_memory(error):
            raise
        finding = f"The check cannot be made on this classifier ({first_line(error).rstrip('.')})."
    return TrustCheck(name=name, passed=None, value=None, limit=None, n=len(case.images), finding=finding)


def trust_checks(
    classifier: nn.Module,
    images: Tensor,
    labels: Tensor,
    config: RobustnessConfig,
    *,
    norm: Norm,
    eps: float,
    seed: int,
) -> list[TrustCheck]:
    """Run every check of `CHECKS` on the first `config.trust.n` of `images` `[N, C, H, W]` in [0, 1].

    `labels` are int64 `[N]`; `eps` (pixel units of `norm`) is the radius at which PGD as `config` has it is checked.
    Draws come from `seed` alone. The classifier keeps its mode and the global generators their state. What a defence
    does to an attack ends in a row and never in an error. Raises MetricError on images, labels or eps that no attack
    takes, and ClassifierError where the outputs on the images themselves are no finite logits.
    """
    trust = config.trust
    assert trust is not None, "the configuration asks for no checks"
    target = Target("the trust checks", classifier, images[: trust.n], labels[: trust.n], norm)
    target.check_eps(eps)
    if len(target.images) == 0:
        finding = "There is no image to check the classifier on."
        return [TrustCheck(name=name, passed=None, value=None, limit=None, n=0, finding=finding) for name, _ in CHECKS]
    with lent_randomness(target.images.device), target.attacked() as logits:
        correct = logits.argmax(dim=1) == target.labels
        case = Case(classifier, target.images, target.labels, correct, config, trust, norm, eps, seed)
        return [_made(name, check, case) for name, check in CHECKS]


def ensemble_beats_pgd(
    standing: Mapping[tuple[Norm, str], tuple[Tensor, Tensor]],
) -> tuple[TrustCheck, dict[tuple[Norm, str], str]]:
    """Hold what PGD left standing against what the ensemble left, on the same images: bool `[N]` each, by radius.

    Returns the check at the radius where the ensemble fools the largest share of what PGD left, and a sentence for each
    radius at which it is more than the tolerated: these numbers of PGD are untrusted. No defence need be at work; PGD
    is the weaker attack.
    """
    counts = {ball: int((pgd & ~ensemble).sum()) for ball, (pgd, ensemble) in standing.items()}
    worst = max(counts, key=lambda key: counts[key])
    n = len(standing[worst][0])
    limit = chance_limit(n)

    def finding(ball: tuple[Norm, str]) -> str:
        norm, radius = ball
        where = f"eps {radius}" if norm == "Linf" else f"eps {radius} (L2)"
        seen = f"At {where} the ensemble fools {counts[ball]} of {n} images that PGD leaves standing"
        if counts[ball] / n <= limit:
            return f"{seen}: PGD is nearly as strong here."
        return f"{seen}: PGD over-states robust accuracy, so read the ensemble's."

    check = TrustCheck(
        name="ensemble-beats-pgd",
        passed=counts[worst] / n <= limit,
        value=counts[worst] / n,
        limit=limit,
        n=n,
        eps=eps_value(worst[1]),
        norm=worst[0],
        finding=finding(worst),
        attacks=PGD_ONLY,
    )
    return check, {ball: finding(ball) for ball in counts if counts[ball] / n > limit}


def untrusted_reasons(checks: Sequence[TrustCheck], attack: str) -> list[str]:
    """Return the findings, a sentence each, that mark the numbers of `attack` as untrusted; empty if none does."""
    return [check.finding for check in checks if check.passed is False and attack in check.attacks]


def trusted(checks: Sequence[TrustCheck]) -> bool | None:
    """Return False if a check failed, None if there are none or one could not be made, else True."""
    outcomes = [check.passed for check in checks]
    if False in outcomes:
        return False
    return None if not outcomes or None in outcomes else True
