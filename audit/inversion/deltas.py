"""Per-image additions to the generator's weights: whole or as a product of two factors, in memory or in files.

An addition D to a kernel `[O, I, k, k]`, seen as a matrix `[O, I k k]`, is kept whole or as a product L R of rank r, as
Hu et al., "LoRA" (2021), section 4.1, do for linear layers: L starts at zero, so that nothing changes before the first
step, and R at random, so that L has a gradient. What would not become smaller (biases, image layers) stays whole.

Many inversions are kept in files. Their tensors are memory-mapped: indexing reads only the rows that are asked for.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Literal, Protocol

import torch
from torch import Tensor

from audit.generator.protocol import Generator
from audit.runtime.seeds import stage_generator

Form = Literal["full", "low-rank"]
LEFT, RIGHT = "/left", "/right"
"""What is appended to a parameter's name where its addition is a product."""


@dataclass(frozen=True)
class Layout:
    """Where every addition lies in the one row of numbers that an image has; `rank` is None for whole additions."""

    shapes: Mapping[str, torch.Size]
    rank: int | None = None

    def factored(self, name: str) -> bool:
        """Whether the addition `name` is kept as a product, which it is where that is smaller."""
        shape = self.shapes[name]
        if self.rank is None or len(shape) < 2:
            return False
        return self.rank * (shape[0] + prod(shape[1:])) < prod(shape)

    def pieces(self) -> dict[str, tuple[int, ...]]:
        """Names and shapes of what is kept for an image, in the order of its row."""
        found: dict[str, tuple[int, ...]] = {}
        for name, shape in self.shapes.items():
            if self.factored(name):
                assert self.rank is not None
                found[name + LEFT] = (shape[0], self.rank)
                found[name + RIGHT] = (self.rank, prod(shape[1:]))
            else:
                found[name] = tuple(shape)
        return found

    @property
    def size(self) -> int:
        """Numbers that are kept for an image."""
        return sum(prod(shape) for shape in self.pieces().values())

    @property
    def drawn_size(self) -> int:
        """Numbers of an image's additions when they are multiplied out."""
        return sum(prod(shape) for shape in self.shapes.values())

    def split(self, rows: Tensor) -> dict[str, Tensor]:
        """View rows `[N, size]` as pieces by name, `[N, *shape]` each."""
        pieces = self.pieces()
        parts = rows.split([prod(shape) for shape in pieces.values()], 1)
        return {name: part.reshape(-1, *shape) for (name, shape), part in zip(pieces.items(), parts, strict=True)}

    def additions(self, rows: Tensor) -> dict[str, Tensor]:
        """Additions by parameter name, `[N, *parameter.shape]`, multiplied out where they are products."""
        return multiplied(self.split(rows), self.shapes)

    def start(self, n: int, seed: int, device: torch.device) -> Tensor:
        """Rows `[n, size]` that change nothing; right factors are the same random numbers for every image."""
        row = []
        rng = stage_generator(seed, "right factors of weight changes")
        for name, shape in self.pieces().items():
            if name.endswith(RIGHT):
                # A step of L then moves D by about as much as a step of a whole D does.
                row.append(torch.randn(prod(shape), generator=rng) / shape[0] ** 0.5)
            else:
                row.append(torch.zeros(prod(shape)))
        return torch.cat(row).to(device).expand(n, -1).clone()


def layout_of(generator: Generator, form: Form, rank: int) -> Layout:
    """The layout of a generator's additions in `form`."""
    return Layout(generator.tunable, None if form == "full" else rank)


def multiplied(pieces: Mapping[str, Tensor], shapes: Mapping[str, Sequence[int]]) -> dict[str, Tensor]:
    """Additions `[N, *shape]` by parameter name out of pieces `[N, ...]`."""
    return {name: _addition(pieces, name, shape) for name, shape in shapes.items()}


def _addition(pieces: Mapping[str, Tensor], name: str, shape: Sequence[int]) -> Tensor:
    if name in pieces:
        return pieces[name]
    return torch.bmm(pieces[name + LEFT], pieces[name + RIGHT]).reshape(-1, *shape)


class Rows(Protocol):
    """Per-image tensors that can be asked for by image; a tensor `[N, ...]` is one."""

    def __getitem__(self, rows: Tensor, /) -> Tensor: ...


@dataclass(frozen=True)
class _Rows:
    """One parameter's additions of many images, read and multiplied out when they are asked for."""

    deltas: "Deltas"
    name: str

    def __getitem__(self, rows: "Tensor | slice | list[int]", /) -> Tensor:
        return self.deltas.read(rows, (self.name,))[self.name]


class Deltas(Mapping[str, _Rows]):
    """Additions of N images by parameter name; `deltas[name][rows]` is `[len(rows), *shape]`.

    `chunks` hold pieces by name, `[n, ...]` each, in memory or mapped from files; `places` `[N, 2]` says in which chunk
    and row of it an image lies. Empty (and false) where nothing was tuned.
    """

    def __init__(
        self, shapes: Mapping[str, Sequence[int]], chunks: Sequence[Mapping[str, Tensor]], places: Tensor | None = None
    ):
        self._shapes, self._chunks = dict(shapes), list(chunks)
        if places is None:
            counts = [len(next(iter(chunk.values()))) if chunk else 0 for chunk in self._chunks]
            places = torch.tensor([(c, r) for c, n in enumerate(counts) for r in range(n)], dtype=torch.long)
        self._places = places.reshape(-1, 2)

    def __getitem__(self, name: str) -> _Rows:
        if name not in self._shapes:
            raise KeyError(name)
        return _Rows(self, name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._shapes)

    def __len__(self) -> int:
        return len(self._shapes)

    @property
    def images(self) -> int:
        """Number of images."""
        return len(self._places)

    def cpu(self) -> "Deltas":
        """A copy on the CPU."""
        chunks = [{name: piece.cpu() for name, piece in chunk.items()} for chunk in self._chunks]
        return Deltas(self._shapes, chunks, self._places)

    def pieces(self) -> dict[str, Tensor]:
        """What is kept, `[N, ...]` by name, as `Layout.split` names it; additions that are products stay products."""
        names = self._chunks[0] if self._chunks else {}
        return {name: torch.stack([self._chunks[c][name][r] for c, r in self._places.tolist()]) for name in names}

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the parameters that were tuned."""
        return {name: tuple(shape) for name, shape in self._shapes.items()}

    @property
    def bytes_per_image(self) -> int:
        """What is kept for an image, in bytes."""
        chunk = self._chunks[0] if self._chunks else {}
        return sum(piece[0].numel() * piece.element_size() for piece in chunk.values())

    def select(self, rows: "Tensor | slice | Sequence[int]") -> "Deltas":
        """The additions of the images at `rows`, still unread."""
        return Deltas(self._shapes, self._chunks, self._places[_index(rows)])

    def read(
        self, rows: "Tensor | slice | Sequence[int]" = slice(None), names: Sequence[str] | None = None
    ) -> dict[str, Tensor]:
        """Read and multiply out the additions `names` (all when None) of the images at `rows`."""
        places = self._places[_index(rows)]
        found = {}
        for name in self._shapes if names is None else names:
            shape = self._shapes[name]
            device = next(iter(self._chunks[0].values())).device
            found[name] = torch.zeros(len(places), *shape, device=device)
            for chunk in places[:, 0].unique().tolist():
                here = (places[:, 0] == chunk).nonzero()[:, 0]
                taken = places[here, 1]
                held = self._chunks[chunk]
                wanted = {k: v[taken].float() for k, v in held.items() if k in (name, name + LEFT, name + RIGHT)}
                found[name][here] = _addition(wanted, name, shape)
        return found


def _index(rows: "Tensor | slice | Sequence[int]") -> Tensor | slice:
    if isinstance(rows, slice):
        return rows
    return rows.cpu() if isinstance(rows, Tensor) else torch.as_tensor(rows, dtype=torch.long)


NOTHING = Deltas({}, [])
"""No weights were tuned."""


def joined(parts: Sequence[Deltas]) -> Deltas:
    """Additions of one layout behind one another, still unread."""
    chunks: list[Mapping[str, Tensor]] = []
    places = []
    for part in parts:
        moved = part._places.clone()
        moved[:, 0] += len(chunks)
        places.append(moved)
        chunks += part._chunks
    return Deltas(parts[0].shapes, chunks, torch.cat(places))
