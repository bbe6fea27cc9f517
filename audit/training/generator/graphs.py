"""CUDA graphs of a training step's parts: recorded once, replayed at every step.

With small networks a GPU waits for the CPU to launch thousands of kernels; a replayed graph launches them all at once.
A part that is replayed must read and write the same memory at every step, have no Python number that changes, and ask
the GPU for nothing. What a training draws comes from `rng`, which a graph follows: seeded alike, a replay computes what
the part itself would. Source: PyTorch's documentation, "CUDA semantics", CUDA Graphs.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

Scalars = dict[str, Tensor]
WARM_UP = 3
"""Times that a part runs by itself before it is recorded, so that libraries have chosen their algorithms."""


class Direct:
    """Runs every part by itself: what a processor does, and a GPU where a step cannot be recorded."""

    @contextmanager
    def step(self) -> Iterator[None]:
        yield

    def keep(self, images: Tensor) -> Tensor:
        """Return the step's images where parts find them."""
        return images

    def run(self, name: str, part: Callable[[], Scalars]) -> Scalars:
        """Run `part` and return its scalars."""
        return part()


class Graphs(Direct):
    """Runs a part by itself some times, then records it, then replays it; on one stream of its own."""

    def __init__(self, device: torch.device, rng: torch.Generator) -> None:
        self._stream = torch.cuda.Stream(device)
        self._rng = rng
        self._images: Tensor | None = None
        self._seen: Counter[str] = Counter()
        self._recorded: dict[str, tuple[torch.cuda.CUDAGraph, Scalars]] = {}

    @contextmanager
    def step(self) -> Iterator[None]:
        """Order a step behind what was asked for before it, and what follows behind the step."""
        outside = torch.cuda.current_stream(self._stream.device)
        self._stream.wait_stream(outside)
        with torch.cuda.stream(self._stream):
            yield
        outside.wait_stream(self._stream)

    def keep(self, images: Tensor) -> Tensor:
        if self._images is None:
            self._images = images.clone()
        return self._images.copy_(images)

    def run(self, name: str, part: Callable[[], Scalars]) -> Scalars:
        self._seen[name] += 1
        if self._seen[name] <= WARM_UP:
            return part()
        if name not in self._recorded:
            graph = torch.cuda.CUDAGraph()
            graph.register_generator_state(self._rng)
            with torch.cuda.graph(graph, stream=self._stream):
                scalars = part()
            self._recorded[name] = graph, scalars
        graph, scalars = self._recorded[name]
        graph.replay()
        return {key: value.clone() for key, value in scalars.items()}
