"""Stages of an audit whose results are kept: each is computed once for all that it depends on, and read after that.

What a stage returns comes back as it was, to the bit (`codec.py`). Work on many images is kept in *lots*, the images
that were worked on together: an image finds its result whichever lot it was in. Which images are together does not
change a result but by rounding (networks add in another order in batches of another size), so that an image's result is
that of the lot in which it was first computed. A lot counts as kept when its file is complete, which is written last: a
run that was killed makes up the same lots again, and comes to the same bits.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Generic, Protocol, TypeVar

from audit.storage.cache import Store
from audit.storage.codec import Entry, pack, unpack
from audit.storage.keys import code_hash, key_of

T = TypeVar("T")


class Meter(Protocol):
    """What is told of how a stage was computed, which belongs to its result: for instance how batches were divided."""

    def during(self, work: Callable[[], T]) -> tuple[T, Any]:
        """Return what `work` returns, and what there is to tell of it."""
        ...

    def told(self, what: Any) -> None:
        """Take note of what was told of work that was done earlier."""
        ...


@dataclass(frozen=True)
class Stages:
    """Where results are kept (None: nowhere), and what all of them depend on beside their own inputs."""

    store: Store | None = None
    given: Mapping[str, Any] = field(default_factory=dict)
    meter: Meter | None = None

    def on(self, meter: Meter | None = None, **given: Any) -> "Stages":
        """Return the stages that depend on `given`, too; what `meter` tells of their work is kept with it."""
        return replace(self, given={**self.given, **given}, meter=meter or self.meter)

    def kept(self, stage: str, compute: Callable[[], T], code: Sequence[str], **inputs: Any) -> T:
        """Return what `compute` does, read from the store where it holds the result of `stage` for these `inputs`.

        `code` names the modules that compute it. What raises is not kept.
        """
        if self.store is None:
            return compute()
        key = self._key(stage, code, inputs)
        found = self.read(key)
        if found is None:
            value, said = (compute(), None) if self.meter is None else self.meter.during(compute)
            self.write(key, (value, said), stage)
            return value
        value, said = found
        if self.meter is not None:
            self.meter.told(said)
        return value

    def lots(self, stage: str, items: Sequence[Mapping[str, Any]], code: Sequence[str], **inputs: Any) -> "Lots[Any]":
        """Return what is kept of `stage` for each of `items`, which depend on `inputs` and on what each maps to."""
        keys = [self._key(stage, code, {**inputs, "item": item}) for item in items] if self.store is not None else []
        return Lots(self, stage, len(items), keys)

    def _key(self, stage: str, code: Sequence[str], inputs: Mapping[str, Any]) -> str:
        return key_of(stage, code_hash(*code), {**self.given, **inputs})

    def read(self, key: str) -> Any:
        """Return what is kept as `key`; None: nothing that this version can read."""
        assert self.store is not None
        entry = self.store.get(key)
        try:
            return None if entry is None else unpack(entry)
        except ValueError:
            return None

    def write(self, key: str, value: Any, stage: str) -> None:
        """Keep `value` as `key`."""
        assert self.store is not None
        entry: Entry = pack(value)
        self.store.put(key, entry.tensors, entry.metadata, stage)


class Lots(Generic[T]):
    """Results of one stage, one an item, in the order of the items; those not `missing` were kept."""

    def __init__(self, stages: Stages, stage: str, n: int, keys: Sequence[str]) -> None:
        self._stages, self._stage, self._keys = stages, stage, list(keys)
        self._found: dict[int, T] = {}
        lots: dict[str, Any] = {}
        for i, key in enumerate(self._keys):
            lot, row = stages.read(key) or ("", 0)
            if lot and lot not in lots:
                lots[lot] = stages.read(lot)
                if lots[lot] is not None and stages.meter is not None:
                    stages.meter.told(lots[lot][1])
            if lots.get(lot) is not None:
                self._found[i] = lots[lot][0][row]
        # Where an item's own entry is lost, another item of its lot leads to its result, too: computed by itself, it
        # would round otherwise. (Lots that were kept by earlier versions do not name their items.)
        beside = {
            key: one
            for results, _, *named in filter(None, lots.values())
            for keys in named
            for key, one in zip(keys, results, strict=True)
        }
        self._found = {i: beside[key] for i, key in enumerate(self._keys) if key in beside} | self._found
        self.missing = [i for i in range(n) if i not in self._found]

    def keep(self, items: Sequence[int], compute: Callable[[], Sequence[T]]) -> list[T]:
        """Keep and return the results of `items`, which `compute` computes together."""
        meter = self._stages.meter
        results, said = (compute(), None) if meter is None else meter.during(compute)
        if self._keys:
            lot = key_of(f"{self._stage} (lot)", "", {"items": [self._keys[i] for i in items]})
            for row, i in enumerate(items):
                self._stages.write(self._keys[i], (lot, row), f"{self._stage} (place)")
            kept = list(results), said, [self._keys[i] for i in items]
            self._stages.write(lot, kept, self._stage)
            # What was written, mapped from its file: what is in memory can go.
            results, *_ = self._stages.read(lot) or kept
        self._found |= dict(zip(items, results, strict=True))
        return list(results)

    def all(self) -> list[T]:
        """Return the results of all items, of which none is missing any more."""
        return [self._found[i] for i in range(len(self._found))]
