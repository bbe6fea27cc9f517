"""Methods that edit the query images batch by batch, with no more of them together than fit in the memory allowed."""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from audit.counterfactual.blend import drawing
from audit.counterfactual.iterates import Choice, Iterates, goal_of
from audit.counterfactual.protocol import CalibratedClassifier, Counterfactuals, InvertedQueries, SearchNetworks
from audit.generator.held import Held
from audit.runtime.memory import allowed, at_once, in_slices
from audit.runtime.progress import Advance


@dataclass(frozen=True)
class Batch:
    """N images explained together, on the generator's device; `goals [N]` are the log-odds asked for."""

    queries: Tensor
    inversions: Tensor
    pivots: Tensor
    deltas: Held
    sources: Tensor
    targets: Tensor
    goals: Tensor

    def select(self, rows: Tensor) -> "Batch":
        """Return the images at `rows` (indices or a mask)."""
        return Batch(
            queries=self.queries[rows],
            inversions=self.inversions[rows],
            pivots=self.pivots[rows],
            deltas=self.deltas.select(rows),
            sources=self.sources[rows],
            targets=self.targets[rows],
            goals=self.goals[rows],
        )

    def iterates(self, choose: Choice = "reached") -> Iterates:
        """Return the running choice among the iterates of a search that is about to begin."""
        return Iterates(self.inversions, self.sources, self.targets, self.goals, choose)


Edit = Callable[[CalibratedClassifier, SearchNetworks, Batch, Advance], Counterfactuals]
"""Draws one batch's counterfactuals; told apart from `Method.explain` by what it is given of the queries."""


@dataclass(frozen=True)
class InBatches:
    """The method that an `edit` of one batch makes; `most` images at a time at most.

    By what `trial` takes of the memory for one image it is told how many fit: by default the step that every search in
    the generator's codes makes.
    """

    edit: Edit
    most: int
    trial: Callable[[CalibratedClassifier, SearchNetworks, Batch, Advance], object] | None = None

    def explain(
        self,
        subject: CalibratedClassifier,
        networks: SearchNetworks,
        queries: InvertedQueries,
        targets: Tensor,
        advance: Advance,
    ) -> Counterfactuals:
        """Draw the counterfactual of every query image towards its class of `targets [N]`.

        Raises ClassifierError where a target class has no operating point.
        """
        goals = goal_of(subject.operating_point.cpu(), targets.cpu())
        device, inversion = networks.generator.mean_code.device, queries.inversion
        networks = replace(networks, generator=drawing(networks.generator, inversion.deltas))

        def batch(rows: slice) -> Batch:
            places = torch.arange(len(queries.images))[rows]
            return Batch(
                queries=queries.images[rows].to(device),
                inversions=inversion.images[rows].to(device),
                pivots=inversion.pivots[rows].to(device),
                deltas=Held({name: delta[places].to(device) for name, delta in inversion.deltas.items()}),
                sources=queries.labels[rows].to(device),
                targets=targets[rows].to(device),
                goals=goals[rows].to(device),
            )

        def work(rows: slice) -> Counterfactuals:
            done = 0.0

            def step(amount: float = 1) -> None:
                nonlocal done
                done += amount
                advance(amount)

            try:
                return self.edit(subject, networks, batch(rows), step)
            except BaseException:
                advance(-done)  # the batch begins anew where memory ran out
                raise

        wanted = min(self.most, len(queries.images))
        trial = _one_step if self.trial is None else self.trial

        def one() -> None:
            trial(subject, networks, batch(slice(1)), lambda amount=1: None)

        return _joined(in_slices(len(queries.images), at_once(wanted, one, device, allowed(device)), work))


def _one_step(subject: CalibratedClassifier, networks: SearchNetworks, batch: Batch, advance: Advance) -> None:
    """Do what a step of a search costs most of: draw, classify, and find the way back to the codes."""
    codes = batch.pivots.clone().requires_grad_()
    with torch.enable_grad():
        logits = subject.classifier(networks.generator.images(codes, deltas=batch.deltas))
    if logits.requires_grad:
        torch.autograd.grad(logits.sum(), codes, allow_unused=True)


def _joined(parts: list[Counterfactuals]) -> Counterfactuals:
    """Put the batches together again; traces of unequal length stay at their last value."""
    longest = max(part.trace.shape[1] for part in parts)
    joined: dict[str, Tensor | None] = {}
    for name in (one.name for one in fields(Counterfactuals)):
        values = [getattr(part, name) for part in parts]
        if name == "trace":
            values = [torch.cat([t, t[:, -1:].expand(-1, longest - t.shape[1])], dim=1) for t in values]
        joined[name] = None if values[0] is None else torch.cat(values)
    return Counterfactuals(**joined)  # type: ignore[arg-type]
