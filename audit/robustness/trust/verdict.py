"""Which numbers of a model may be believed: every check's finding is put beside the numbers that it concerns.

`trust.py` makes the checks that ask for attacks of their own; `blind.py` reads what the attacks noted while they ran,
which costs nothing and is judged whatever is switched off. A number no check of which was made says so itself: it is
neither trusted nor untrusted, and a gate takes it for not measured.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

from torch import Tensor, nn

from audit.classifiers.slices import sparing
from audit.config import RobustnessConfig, eps_value
from audit.data.audit_set import AuditSet
from audit.results import Attack, MinimalDistance, Robust, TrustCheck
from audit.robustness.accuracy import device_of
from audit.robustness.attacks.ball import Norm
from audit.robustness.attacks.blind import Account, sight_check
from audit.robustness.attacks.checks import name_of
from audit.robustness.trust.checks import AttackName, ensemble_beats_pgd, trust_checks, trusted, untrusted_reasons
from audit.runtime.progress import stage_progress

FEWEST_STANDING = 8
"""Images that have to stand under an attack for its trust checks to have something to look at; half of few images."""
TABLES: dict[Norm, tuple[str, str]] = {"Linf": ("pgd", "ensemble"), "L2": ("pgd_l2", "ensemble_l2")}
"""Names of the tables of PGD and of the ensemble in `results.Robust`, by norm."""


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
    norm: Norm = "Linf" if config.eps else "L2"
    table = TABLES[norm][0 if "pgd" in config.attacks else 1]
    radii = sorted(config.eps or config.l2_eps, key=eps_value)
    stand = {radius: standing[f"robust.{table}.{radius}"] for radius in radii}
    telling = [r for r in radii if int(stand[r].sum()) >= min(FEWEST_STANDING, max(1, len(stand[r]) // 2))]
    return norm, eps_value((telling or radii)[-1])


def _numbers(robust: Robust) -> list[tuple[str, AttackName, Attack | MinimalDistance]]:
    """Return (path, attack, number) of everything that an attack is behind."""
    found: list[tuple[str, AttackName, Attack | MinimalDistance]] = []
    kinds: tuple[AttackName, AttackName] = ("pgd", "ensemble")
    for tables in TABLES.values():
        for table, kind in zip(tables, kinds, strict=True):
            attacks: dict[str, Attack] = getattr(robust, table)
            found += [(f"robust.{table}.{radius}", kind, attack) for radius, attack in attacks.items()]
    return found + [(f"robust.distances.{row.norm}", "distance", row) for row in robust.distances]


def _beaten(config: RobustnessConfig, evidence: Evidence) -> tuple[list[TrustCheck], dict[str, str]]:
    """Hold PGD against the ensemble where both were made; returns the check and a reason by path of the number."""
    if set(config.attacks) != {"pgd", "ensemble"}:
        return [], {}
    radii: dict[Norm, Sequence[str]] = {"Linf": config.eps, "L2": config.l2_eps}
    both = {
        (norm, radius): (
            evidence.standing[f"robust.{TABLES[norm][0]}.{radius}"],
            evidence.standing[f"robust.{TABLES[norm][1]}.{radius}"],
        )
        for norm, texts in radii.items()
        for radius in texts
    }
    check, reasons = ensemble_beats_pgd(both)
    return [check], {f"robust.{TABLES[norm][0]}.{radius}": reason for (norm, radius), reason in reasons.items()}


def _made_checks(
    classifier: nn.Module, chosen: AuditSet, config: RobustnessConfig, seed: int, evidence: Evidence
) -> list[TrustCheck]:
    assert config.trust is not None
    rows = chosen.select(range(min(config.trust.n, len(chosen))))
    device = device_of(classifier)
    standing = {path: values[: len(rows)] for path, values in evidence.standing.items()}
    norm, eps = telling_ball(config, standing)
    with stage_progress(f"trust checks of {name_of(classifier)}", 1) as advance:
        made = partial(
            trust_checks,
            classifier,
            rows.images().to(device),
            rows.row_labels.to(device),
            config.trust,
            eps=eps,
            norm=norm,
            steps=config.steps,
            step_size=config.step_size,
            seed=seed,
            stage="robustness/trust",
            ensemble=config.ensemble,
        )
        checks = sparing(classifier, made)
        advance(1)
    return checks


def check_trust(
    classifier: nn.Module, chosen: AuditSet, config: RobustnessConfig, seed: int, evidence: Evidence
) -> None:
    """Make every check that `config` asks for on the first images of `chosen`; writes into `evidence.robust`.

    With `config.trust` None only the attacks' own accounts are judged, and every number says that it is unchecked.
    """
    robust = evidence.robust
    blind, reasons = sight_check(evidence.accounts)
    checks = [] if config.trust is None else _made_checks(classifier, chosen, config, seed, evidence)
    beats, beaten = _beaten(config, evidence)
    for path, kind, number in _numbers(robust):
        number.untrusted = untrusted_reasons(checks, kind)
        number.untrusted += [own[path] for own in (reasons, beaten) if path in own]
        number.unchecked = [row.finding for row in checks if row.passed is None and kind in row.attacks]
        if config.trust is None:
            number.unchecked.append("No trust check was made, because robustness.trust is false.")
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
