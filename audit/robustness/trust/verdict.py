"""Which numbers of a model may be believed: every check's finding is put beside the numbers that it concerns.

`trust.py` makes the checks that ask for attacks of their own; `blind.py` reads what the attacks noted while they ran,
which costs nothing and is checked whatever is switched off. A number no check of which was made says so itself: it is
neither trusted nor untrusted, and a gate takes it for not measured.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

from torch import Tensor, nn

from audit.classifiers.slices import sparing
from audit.config import RobustnessConfig, eps_value
from audit.data.audit_set import AuditSet
from audit.results import ENSEMBLE, PGD, Attack, MinimalDistance, Robust, TrustCheck, attack_path
from audit.robustness.accuracy import device_of
from audit.robustness.attacks.ball import Norm
from audit.robustness.attacks.blind import Account, sight_check
from audit.robustness.attacks.checks import name_of
from audit.robustness.attacks.registry import radii_of
from audit.robustness.trust.case import DISTANCE
from audit.robustness.trust.checks import ensemble_beats_pgd, trust_checks, trusted, untrusted_reasons
from audit.runtime.progress import stage_progress
from audit.storage.stages import Stages

CODE = ("audit.robustness.trust.checks",)
FEWEST_STANDING = 8
"""Images that have to stand under an attack for its trust checks to have something to look at; half of few images."""


@dataclass
class Evidence:
    """What was measured of one model: its numbers, and what they are the outcome of.

    `standing` bool `[n]` says by the number's path which images stood; `accounts` by the same paths what its attack
    saw.
    """

    robust: Robust
    standing: Mapping[str, Tensor]
    accounts: dict[str, Account] = field(default_factory=dict)


def telling_ball(config: RobustnessConfig, standing: Mapping[str, Tensor]) -> tuple[Norm, float]:
    """Return the norm and radius at which the checks are made: L-inf, or L2 where no L-inf radius is configured.

    It is the largest radius at which images stand that a stronger attack could still fool, else the largest. Where
    nothing stands there is nothing to over-state, and the checks that compare attacks say nothing.
    """
    norm, texts = next(iter(radii_of(config).items()))
    radii = sorted(texts, key=eps_value)
    attacks = sorted(config.attacks, key=lambda attack: (attack != PGD, attack != ENSEMBLE))
    tables = [attack_path(attack, norm) for attack in attacks]
    measured = next((table for table in tables if f"{table}.{radii[0]}" in standing), None)
    stand = {} if measured is None else {radius: standing[f"{measured}.{radius}"] for radius in radii}
    telling = [r for r, on in stand.items() if int(on.sum()) >= min(FEWEST_STANDING, max(1, len(on) // 2))]
    return norm, eps_value((telling or radii)[-1])


def _numbers(robust: Robust) -> list[tuple[str, str, Attack | MinimalDistance]]:
    """Return (path, attack, number) of everything that an attack is behind."""
    found: list[tuple[str, str, Attack | MinimalDistance]] = [
        (f"{table.path}.{radius}", table.attack, attack)
        for table in robust.tables()
        for radius, attack in table.radii.items()
    ]
    return found + [(row.path, row.attack or DISTANCE, row) for row in robust.distances]


def _beaten(evidence: Evidence) -> tuple[list[TrustCheck], dict[str, str]]:
    """Hold PGD against the ensemble where both were made; returns the check and a reason by path of the number."""
    both = {
        (table.norm, radius): (
            evidence.standing[f"{table.path}.{radius}"],
            evidence.standing[f"{attack_path(ENSEMBLE, table.norm)}.{radius}"],
        )
        for table in evidence.robust.tables()
        for radius in table.radii
        if table.attack == PGD and radius in evidence.robust.table(ENSEMBLE, table.norm)
    }
    if not both:
        return [], {}
    check, reasons = ensemble_beats_pgd(both)
    return [check], {f"{attack_path(PGD, norm)}.{radius}": reason for (norm, radius), reason in reasons.items()}


def _made_checks(
    classifier: nn.Module,
    chosen: AuditSet,
    config: RobustnessConfig,
    seed: int,
    evidence: Evidence,
    stages: Stages,
) -> list[TrustCheck]:
    assert config.trust is not None
    rows = chosen.select(range(min(config.trust.n, len(chosen))))
    device = device_of(classifier)
    standing = {path: values[: len(rows)] for path, values in evidence.standing.items()}
    norm, eps = telling_ball(config, standing)

    def checked() -> list[TrustCheck]:
        images, labels = rows.images().to(device), rows.row_labels.to(device)
        made = partial(trust_checks, classifier, images, labels, config, norm=norm, eps=eps, seed=seed)
        return sparing(classifier, made)

    with stage_progress(f"trust checks of {name_of(classifier)}", 1) as advance:
        checks = stages.kept(
            "trust checks", checked, CODE, images=rows.content, settings=config, norm=norm, eps=eps, seed=seed
        )
        advance(1)
    return checks


def check_trust(
    classifier: nn.Module,
    chosen: AuditSet,
    config: RobustnessConfig,
    seed: int,
    evidence: Evidence,
    stages: Stages,
) -> None:
    """Make every check that `config` asks for on the first images of `chosen`; writes into `evidence.robust`.

    With `config.trust` None only the attacks' own accounts are checked, and every number says that it is unchecked.
    """
    robust = evidence.robust
    blind, reasons = sight_check(evidence.accounts)
    checks = [] if config.trust is None else _made_checks(classifier, chosen, config, seed, evidence, stages)
    beats, beaten = _beaten(evidence)
    for path, kind, number in _numbers(robust):
        number.untrusted = untrusted_reasons(checks, kind)
        number.untrusted += [own[path] for own in (reasons, beaten) if path in own]
        number.unchecked = [row.finding for row in checks if row.passed is None and kind in row.attacks]
        if config.trust is None:
            differentiable = getattr(classifier, "differentiable", True)
            why = "because robustness.trust is false" if differentiable else "because the model is a black box"
            number.unchecked.append(f"No trust check was made, {why}.")
    robust.checks = [*checks, *([blind] if evidence.accounts else []), *beats]
    verdict = trusted(robust.checks)
    robust.trusted = None if config.trust is None and verdict is True else verdict


def doubt_all(robust: Robust, whole: Sequence[TrustCheck]) -> None:
    """Put the checks `whole`, which are about the model itself, before the others and their findings beside numbers."""
    failed = [check.finding for check in whole if check.passed is False]
    open_ones = [check.finding for check in whole if check.passed is None]
    robust.checks = [*whole, *robust.checks]
    for _, _, number in _numbers(robust):
        number.untrusted, number.unchecked = failed + number.untrusted, open_ones + number.unchecked
    if failed:
        robust.trusted = False
    elif open_ones and robust.trusted is True:
        robust.trusted = None
