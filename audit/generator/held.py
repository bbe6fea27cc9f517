"""Additions to a generator's weights with which many images are drawn, one after the other."""

from collections.abc import Callable, Collection, Mapping

from torch import Tensor


class Held(dict[str, Tensor]):
    """Additions `[N, *shape]` by parameter name, beside which is kept what follows from them alone.

    A search draws some two hundred times with the same additions. To a generator that does not know of this class they
    are a mapping as any other.
    """

    def __init__(self, additions: Mapping[str, Tensor], known: Mapping[str, Tensor] | None = None) -> None:
        super().__init__(additions)
        self._known = dict(known or {})

    def once(self, what: str, compute: Callable[[], Tensor]) -> Tensor:
        """Return what `compute` does, a tensor `[N, ...]` without a gradient, computed when it is first asked for."""
        if what not in self._known:
            self._known[what] = compute()
        return self._known[what]

    def select(self, rows: Tensor) -> "Held":
        """Return those of the images at `rows` (indices or a mask)."""
        own, known = ({name: value[rows] for name, value in one.items()} for one in (self, self._known))
        return Held(own, known)

    def without(self, names: Collection[str]) -> "Held":
        """Return the others than `names`; what is kept beside them is shared, and holds what is computed later, too."""
        others = Held({name: value for name, value in self.items() if name not in names})
        others._known = self._known
        return others
