"""Counterfactual methods by name: those of this package, and those that another package adds.

A method is made once, before any data is read, from the table `counterfactual` and the audit's seed; it reads settings
of its own from `counterfactual.options`. Whatever it does, the networks are left as they came, and what it returns is
checked before a number rests on it.
"""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, fields
from functools import partial

import torch
from torch import Tensor, nn

from audit.classifiers.mode import preserve_mode
from audit.config import CounterfactualConfig
from audit.counterfactual import gradient_free, latent_gradient, latent_shift, piece, pixel, region_replacement
from audit.counterfactual.batches import InBatches
from audit.counterfactual.nearest_image import NearestImage
from audit.counterfactual.protocol import (
    CalibratedClassifier,
    Counterfactuals,
    InvertedQueries,
    Method,
    SearchNetworks,
)
from audit.counterfactual.spruce import Spruce
from audit.errors import AuditError, ClassifierError, ConfigError, MethodError
from audit.runtime.memory import out_of_memory
from audit.runtime.progress import Advance
from audit.runtime.registry import Registry
from audit.runtime.seeds import lent_randomness, stage_seed

Make = Callable[[CounterfactualConfig, int], Method]
"""Makes a method from the table `counterfactual` and the audit's seed. Raises ConfigError for what it cannot use."""


def _spruce(settings: CounterfactualConfig, seed: int) -> Method:
    return Spruce(settings)  # it draws nothing at random


def _nearest_image(settings: CounterfactualConfig, seed: int) -> Method:
    return NearestImage()


def _gradient_free(settings: CounterfactualConfig, seed: int) -> Method:
    return InBatches(partial(gradient_free.edit, settings, seed=seed), settings.batch_size)


def _in_batches(edit: Callable[..., Counterfactuals]) -> Make:
    """Return how the method is made whose `edit` takes the settings and then what `batches.Edit` says."""
    return lambda settings, seed: InBatches(partial(edit, settings), settings.batch_size)


METHODS: Registry[Make] = Registry(
    "methods",
    "counterfactual method",
    {
        "spruce": _spruce,
        "piece": _in_batches(piece.edit),
        "latent-gradient": _in_batches(latent_gradient.edit),
        "latent-shift": _in_batches(latent_shift.edit),
        "gradient-free": _gradient_free,
        "pixel": _in_batches(pixel.edit),
        "nearest-image": _nearest_image,
        "region-replacement": _in_batches(region_replacement.edit),
    },
)


BY_ANSWERS = frozenset({"gradient-free", "nearest-image", "region-replacement"})
"""Built-in methods that follow no gradient, and so explain black boxes."""


@dataclass(frozen=True)
class ChosenMethod:
    """The method that the configuration names; `package` gives it (None: this one)."""

    name: str
    package: str | None
    seed: int
    method: Method

    @property
    def known_by_version(self) -> bool:
        """Whether name and package stand for the method's code, so that its results can be cached."""
        return self.name not in METHODS.added

    @property
    def in_batches(self) -> bool:
        """Whether query images are explained batch by batch, so that the others have no part in an image's edit."""
        return isinstance(self.method, InBatches | Spruce)

    def explain(
        self,
        subject: CalibratedClassifier,
        networks: SearchNetworks,
        queries: InvertedQueries,
        targets: Tensor,
        advance: Advance,
    ) -> Counterfactuals:
        """Draw the counterfactuals as `Method.explain` does; global random state and networks are left as they came.

        Raises ClassifierError for a black box where the method follows gradients, and MethodError for a method of
        another package that fails and for any that returns something else.
        """
        if not subject.classifier.differentiable and self.package is None and self.name not in BY_ANSWERS:
            raise ClassifierError(
                f"Classifier '{subject.classifier.name}' is a black box, and method '{self.name}' follows gradients: "
                'set counterfactual.method = "gradient-free".'
            )
        who = f"Counterfactual method '{self.name}'" + ("" if self.package is None else f" ({self.package})")
        who += f", asked to explain classifier '{subject.classifier.name}',"
        with (
            preserve_mode(subject.classifier),
            preserve_mode(networks.generator) if isinstance(networks.generator, nn.Module) else nullcontext(),
            lent_randomness(networks.generator.mean_code.device, stage_seed(self.seed, "counterfactuals")),
        ):
            try:
                found = self.method.explain(subject, networks, queries, targets, advance)
            except Exception as error:
                if self.package is None or isinstance(error, AuditError) or out_of_memory(error):
                    raise
                raise MethodError(f"{who} fails: {type(error).__name__}: {error}") from error
        fault = _fault(found, queries.images.shape)
        if fault is not None:
            raise MethodError(f"{who} returned {fault}: mend the method (audit/counterfactual/protocol.py).")
        return found


def choose_methods(settings: CounterfactualConfig, seed: int) -> tuple[ChosenMethod, ...]:
    """Make the methods that `settings` name, the audited one first.

    `options` are given to each method of another package. Raises ConfigError for an unknown name, and for options that
    a method cannot use or that there is no method for.
    """
    chosen = tuple(_choose(settings, name, seed) for name in settings.methods)
    if settings.options and all(one.package is None for one in chosen):
        which = f"method '{chosen[0].name}' is a built-in one" if len(chosen) == 1 else "methods are built-in ones"
        raise ConfigError(
            f"Table 'counterfactual.options' holds '{next(iter(settings.options))}', but the {which}, whose settings "
            "are keys of the table 'counterfactual': remove it."
        )
    return chosen


def choose_method(settings: CounterfactualConfig, seed: int) -> ChosenMethod:
    """Make the audited method that `settings` name. Raises ConfigError as `choose_methods` does."""
    return choose_methods(settings, seed)[0]


def _choose(settings: CounterfactualConfig, name: str, seed: int) -> ChosenMethod:
    make = METHODS.get(name, "counterfactual.method")
    package = METHODS.origin(name)
    try:
        return ChosenMethod(name, package, seed, make(settings, seed))
    except AuditError:
        raise
    except Exception as error:
        raise ConfigError(
            f"Key 'counterfactual.method' names '{name}' ({package}), which cannot be set up "
            f"({type(error).__name__}: {error}): see 'counterfactual.options'."
        ) from error


def _fault(found: object, shape: torch.Size) -> str | None:
    """Say what of `found` is not as a method has to return it for queries of `shape`; None where all is well."""
    if not isinstance(found, Counterfactuals):
        return f"a {type(found).__name__} where Counterfactuals are expected"
    for one in fields(found):
        value = getattr(found, one.name)
        if value is None and one.default is None:
            continue
        if not isinstance(value, Tensor) or value.device.type != "cpu" or len(value) != shape[0]:
            return f"no tensor on the CPU with a row for each of the {shape[0]} query images as '{one.name}'"
        if not bool(value.isfinite().all()):
            return f"'{one.name}' with numbers that are not finite"
    for name in ("images", "semifactuals"):
        pixels = getattr(found, name)
        if pixels.shape != shape or not pixels.is_floating_point():
            return f"'{name}' as {pixels.dtype} {tuple(pixels.shape)} where floats {tuple(shape)} are expected"
        if float(pixels.min()) < 0 or float(pixels.max()) > 1:
            return f"'{name}' between {float(pixels.min()):.3g} and {float(pixels.max()):.3g} where [0, 1] is expected"
    for name in ("flipped", "reached", "feature_target_flips", "converged", "carried_target_flips"):
        value = getattr(found, name)
        if value is not None and (value.dtype != torch.bool or value.ndim != 1):
            return f"'{name}' as {value.dtype} {tuple(value.shape)} where bool {tuple(shape[:1])} is expected"
    return None
