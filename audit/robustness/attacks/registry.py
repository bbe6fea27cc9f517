"""The attacks that an audit can make, by name: ours, those of other packages, and the classes of torchattacks.

Another package adds one by an entry point of the group `spruce_audit.attacks`; `torchattacks:NAME` is the class NAME of
that package. What the rest of the code asks about an attack stands in its row.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from audit.config import RobustnessConfig
from audit.errors import ConfigError
from audit.results import ENSEMBLE, PGD, TRANSFER
from audit.robustness.attacks import from_torchattacks
from audit.robustness.attacks.apgd import apgd_attack, apgd_targeted_attack
from audit.robustness.attacks.ball import Norm
from audit.robustness.attacks.fab import fab_attack
from audit.robustness.attacks.pgd import pgd_attack
from audit.robustness.attacks.rays import rays_attack
from audit.robustness.attacks.spatial import NAME as SPATIAL
from audit.robustness.attacks.spatial import SpatialGrid, grid_of, spatial_attack
from audit.robustness.attacks.spec import AttackSpec
from audit.robustness.attacks.square import square_attack
from audit.runtime.registry import Registry


def _pgd_settings(config: RobustnessConfig) -> dict[str, Any]:
    return {key: getattr(config, key) for key in ("steps", "step_size", "momentum", "restarts")}


def _apgd_settings(config: RobustnessConfig) -> dict[str, Any]:
    return {"steps": config.ensemble.apgd_steps, "restarts": config.ensemble.apgd_restarts}


def _targeted_settings(config: RobustnessConfig) -> dict[str, Any]:
    return {**_apgd_settings(config), "target_classes": config.ensemble.target_classes}


def _fab_settings(config: RobustnessConfig) -> dict[str, Any]:
    return {"steps": config.ensemble.fab_steps, "target_classes": config.ensemble.target_classes}


def _square_settings(config: RobustnessConfig) -> dict[str, Any]:
    return {"queries": config.ensemble.square_queries}


RAYS = "rays"

BY_ANSWERS = ("square", RAYS)
"""Attacks on a black box where the configuration names none that it allows."""


ATTACKS: Registry[AttackSpec] = Registry(
    "attacks",
    "attack",
    {
        PGD: AttackSpec(pgd_attack, takes=frozenset({"sight"}), settings=_pgd_settings),
        "apgd-ce": AttackSpec(partial(apgd_attack, loss="ce"), takes=frozenset({"sight"}), settings=_apgd_settings),
        "apgd-dlr": AttackSpec(
            partial(apgd_attack, loss="dlr"),
            scale_free=True,
            fewest_classes=3,
            takes=frozenset({"sight"}),
            settings=_apgd_settings,
        ),
        "apgd-t": AttackSpec(
            apgd_targeted_attack,
            scale_free=True,
            takes=frozenset({"sight", "batch_size"}),
            settings=_targeted_settings,
        ),
        "fab-t": AttackSpec(fab_attack, scale_free=True, takes=frozenset({"sight"}), settings=_fab_settings),
        "square": AttackSpec(square_attack, gradients=False, settings=_square_settings),
        RAYS: AttackSpec(rays_attack, norms=("Linf",), gradients=False, scale_free=True, minimal=True),
        SPATIAL: AttackSpec(
            spatial_attack,
            norms=(),
            gradients=False,
            scale_free=True,
            extent=lambda options: grid_of(options).extent,
            options=frozenset(SpatialGrid.model_fields),
        ),
    },
)


@dataclass(frozen=True)
class ChosenAttack:
    """An attack of the audit: its name, what it is like, and its options.

    `source` is the package and version that it comes from, None for one of ours.
    """

    name: str
    spec: AttackSpec
    options: Mapping[str, Any]
    source: str | None = None

    @property
    def extent(self) -> str | None:
        """What bounds an attack that no norm bounds; None: a norm does. Raises ConfigError on its options."""
        return None if self.spec.extent is None else self.spec.extent(dict(self.options))


def choose(name: str, config: RobustnessConfig, key: str = "robustness.attacks") -> ChosenAttack:
    """Return the attack `name`, which the configuration gives in `key`, with its options.

    Raises ConfigError if there is no such attack, or none of its options is called so.
    """
    source: str | None
    if name.startswith(from_torchattacks.PREFIX):
        spec, source = from_torchattacks.spec_of(name, key), from_torchattacks.source()
    else:
        spec, source = ATTACKS.get(name, key), ATTACKS.origin(name)
    settings, options = spec.settings(config), config.options.get(name, {})
    table = f'[robustness.options."{name}"]'
    for option in options:
        if option in settings:
            raise ConfigError(
                f"Option '{option}' in {table} has a key of its own in [robustness] or [robustness.ensemble]: set it "
                "there."
            )
        if not spec.accepts(option):
            raise ConfigError(f"Attack '{name}' has no option '{option}' that can be set in {table}: remove it.")
    return ChosenAttack(name, spec, {**settings, **options}, source)


def stages_of(config: RobustnessConfig) -> list[ChosenAttack]:
    """Return the attacks of the ensemble in their order; raises ConfigError."""
    return [choose(name, config, "robustness.ensemble.stages") for name in config.ensemble.stages]


def others_of(config: RobustnessConfig) -> list[ChosenAttack]:
    """Return the attacks of `robustness.attacks` with a row of their own, PGD's left out; raises ConfigError."""
    return [choose(name, config) for name in config.attacks if name not in (PGD, ENSEMBLE, TRANSFER)]


def shown_attack(config: RobustnessConfig) -> str | None:
    """Return the attack whose images the other models are shown: PGD if it is made, else the first with radii."""
    bounded = [one.name for one in others_of(config) if one.spec.norms and not one.spec.minimal]
    able = [name for name in config.attacks if name in (PGD, ENSEMBLE, *bounded)]
    return min(able, key=lambda name: name != PGD, default=None)


def by_answers(config: RobustnessConfig) -> tuple[RobustnessConfig, list[str]]:
    """Return `config` with the attacks that need no gradients, and the names of those that do.

    Where none is left, they are `BY_ANSWERS`. An ensemble counts by its stages.
    """
    graded = {one.name for one in [choose(PGD, config), *stages_of(config), *others_of(config)] if one.spec.gradients}
    if graded & set(config.ensemble.stages):
        graded.add(ENSEMBLE)
    kept = tuple(name for name in config.attacks if name not in graded)
    made = kept if set(kept) - {TRANSFER} else (*BY_ANSWERS, *kept)
    return config.model_copy(update={"attacks": made}), [name for name in config.attacks if name in graded]


def radii_of(config: RobustnessConfig) -> dict[Norm, Sequence[str]]:
    """Return the radii by norm, as the configuration writes them; norms without any are left out."""
    radii: dict[Norm, Sequence[str]] = {"Linf": config.eps, "L2": config.l2_eps}
    return {norm: texts for norm, texts in radii.items() if texts}


def check_attacks(config: RobustnessConfig) -> None:
    """Raise ConfigError for an attack that is not there, an option that is none, and norms that do not fit.

    Meant for the start of a run, before data are read.
    """
    radii = radii_of(config)
    if TRANSFER in config.attacks and shown_attack(config) is None:
        raise ConfigError(
            "Attack 'transfer' of robustness.attacks shows every model the images that another attack made for the "
            'others: name one with a radius, for instance "pgd".'
        )
    for chosen in (choose(name, config) for name in config.attacks if name not in (ENSEMBLE, TRANSFER)):
        if chosen.extent is None and not chosen.spec.minimal and not set(radii) & set(chosen.spec.norms):
            raise ConfigError(
                f"Attack '{chosen.name}' of robustness.attacks works in {' and '.join(chosen.spec.norms)} only, where "
                "no radius is given: set robustness.eps (Linf) or robustness.l2_eps (L2)."
            )
    for chosen in stages_of(config):
        missing = [norm for norm in radii if norm not in chosen.spec.norms]
        if ENSEMBLE in config.attacks and missing:
            raise ConfigError(
                f"Attack '{chosen.name}' of robustness.ensemble.stages does not work in {missing[0]}, in which radii "
                "are given: leave the attack or these radii out."
            )
    for name in config.options:
        if name not in (*config.attacks, *config.ensemble.stages):
            raise ConfigError(f'Table [robustness.options."{name}"] belongs to no attack of the audit: remove it.')
