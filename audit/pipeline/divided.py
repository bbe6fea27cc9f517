"""Parts of an audit's work, computed by an engine ahead of the stages that need them.

A part is a function that does some of what a stage does - one model on one batch of images - and leaves the results in
the store, under the keys of that stage. The stages are the same with an engine and without: with one they find
everything in the store. So nothing can be lost with a node, and no number can depend on where it was computed: what is
not there, a stage computes itself, and what a part fails at, fails there again and is told with the model's name.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial

from audit.classifiers.classifier import Classifier
from audit.data.audit_set import AuditSet
from audit.pipeline.context import Context
from audit.pipeline.networks import Networks
from audit.robustness.balls import attacked_rows
from audit.robustness.precision import IMAGES, LowPasses, low_passes
from audit.runtime.progress import stage_progress
from audit.storage.cache import Store
from audit.storage.codec import Entry


@dataclass(frozen=True)
class Site:
    """What parts are computed with, in whichever process: all images, those to calibrate on if any, and networks."""

    context: Context
    images: AuditSet
    calibration: AuditSet | None
    model: Callable[[str], Classifier]
    networks: Callable[[], Networks | None]
    _low: dict[str, LowPasses | str] = field(default_factory=dict)

    @cached_property
    def audited(self) -> AuditSet:
        return self.images.split(self.context.config.data.audit_split)

    def low(self, name: str) -> LowPasses | str | None:
        """Return a model's passes in 16 bits, or why there are none; None where they are not asked for."""
        config = self.context.config
        if config.precision == "float32":
            return None
        if name not in self._low:
            some = attacked_rows(self.audited, IMAGES, config.seed)
            found = low_passes(self.model(name), some, config.precision, config.robustness.batch_size)
            self._low.clear()  # parts come model by model
            self._low[name] = found
        return self._low[name]

    def keeping(self, store: Store) -> "Site":
        """Return the same with another store."""
        return replace(self, context=replace(self.context, store=store))


Part = Callable[[Site], object]
"""Leaves results in the store of the site it is given. It pickles: a function of a module, with some arguments."""


class _NotKept(Exception):
    """Something that a part leaves in the store is not there."""


@dataclass(frozen=True)
class _Looking(Store):
    """A store in which what is not there is not to be computed; `seen` are the keys that were."""

    seen: list[str] = field(default_factory=list)

    def get(self, key: str) -> Entry | None:
        """Read an entry as a store does; raises _NotKept if there is none."""
        found = super().get(key)
        if found is None:
            raise _NotKept
        self.seen.append(key)
        return found


@dataclass(frozen=True)
class Order:
    """A part to compute, and by their keys the entries that it rests on."""

    part: Part
    given: Mapping[str, bytes] = field(default_factory=dict)


def spread(site: Site, what: str, parts: Sequence[Part | Order]) -> None:
    """Have the engine of `site` compute those of `parts` that the store does not hold; `what` they are, for a bar.

    Orders are not looked up: they are computed.
    """
    context = site.context
    store = context.store
    if context.engine is None or store is None:
        return
    found = [(one, [] if isinstance(one, Order) else _looked_up(site, store, one)) for one in parts]
    missing = [(one, seen) for one, seen in found if seen is not None]
    if not missing:
        return
    orders = (
        one if isinstance(one, Order) else Order(one, {key: store.raw(key) for key in seen}) for one, seen in missing
    )
    with context.watch.stage(what):
        compute(context, what, len(missing), orders)


def compute(context: Context, what: str, n: int, orders: Iterable[Order]) -> None:
    """Have the engine compute the `n` parts of `orders`, and put what they leave in the store."""
    # The process that computes a part knows the stages, which import this module.
    from audit.pipeline.node import computed, plan

    assert context.engine is not None
    assert context.store is not None
    with stage_progress(what, n) as advance:
        for _, entries in context.engine.map(partial(computed, plan(context)), orders):
            for key, file in (entries or {}).items():
                context.store.take(key, file)
            advance()


def _looked_up(site: Site, store: Store, part: Part) -> list[str] | None:
    """Return the keys of what `part` finds in the store before it misses something; None: it misses nothing."""
    looking = _Looking(store.root)
    try:
        part(site.keeping(looking))
    except _NotKept:
        return looking.seen
    except Exception:  # noqa: BLE001 - the stage itself fails at it, and says so
        return None
    return None
