"""Networks that give features x = C(I) beside their logits, in one pass: how each kind comes to them."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils import skip_init

from audit.classifiers.mode import Wrapper
from audit.classifiers.probe import at_least_float


@dataclass(frozen=True)
class Term:
    """A linear layer of a network, called `place` there, whose output times `share` is a part of the logits."""

    place: str
    layer: nn.Module
    share: float = 1.0

    @property
    def matrix(self) -> tuple[Tensor, Tensor | None]:
        """What the layer contributes to weight `[K, d]` and bias `[K]` of the logits."""
        weight: Tensor = self.layer.weight  # type: ignore[assignment]
        bias: Tensor | None = self.layer.bias  # type: ignore[assignment]
        return self.share * weight.detach().flatten(1), None if bias is None else self.share * bias.detach()


class ObservedNetwork(nn.Module):
    """A network in Python whose logits are the sum of `terms`, of its own layers; mostly there is one.

    `behind` names what follows a single layer, in front of which the logits are then read.
    """

    def __init__(
        self, network: nn.Module, terms: tuple[Term, ...], head: nn.Linear | None, *, behind: str | None = None
    ) -> None:
        super().__init__()
        self.network = network
        # Not as attributes, for the layers would be registered a second time under other names.
        self._terms = terms
        self._own_head = head
        self.behind = behind
        places = " and ".join(f"'{term.place}'" for term in terms)
        self.features_of = (
            f"input of the final linear layer {places}"
            if len(terms) == 1
            else f"inputs of the linear layers {places}, whose outputs add up to the logits"
        )

    @property
    def head(self) -> nn.Linear:
        """The final linear layer: the network's own, or a copy of what the network has in its place."""
        if self._own_head is not None:
            return self._own_head
        final = self._terms[0].layer
        assert isinstance(final, nn.Linear)
        return final

    def forward(self, images: Tensor) -> Tensor:
        """Logits `[N, K]` of normalised images."""
        return at_least_float(self.network(images)) if self.behind is None else self.features_and_logits(images)[1]

    def features_and_logits(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Features `[N, d]` and logits `[N, K]` of normalised images, in one pass."""
        seen: dict[nn.Module, tuple[Tensor, Tensor]] = {}
        layers = [term.layer for term in self._terms]
        handles = [m.register_forward_hook(lambda m, args, out: seen.update({m: (args[0], out)})) for m in layers]
        try:
            logits: Tensor = self.network(images)
        finally:
            for handle in handles:
                handle.remove()
        if self.behind is not None:
            logits = seen[layers[0]][1].reshape(logits.shape)
        logits = at_least_float(logits)
        inputs = [seen[layer][0].reshape(len(logits), -1).to(logits.dtype) for layer in layers]
        return inputs[0] if len(inputs) == 1 else torch.cat(inputs, dim=1), logits


class HookedNetwork(nn.Module):
    """A network in Python whose features are what its module `place` gives, averaged over positions.

    Its logits follow from them in a way that nothing is known of.
    """

    head = None
    behind = None

    def __init__(self, network: nn.Module, module: nn.Module, place: str) -> None:
        super().__init__()
        self.network = network
        self.features_of = f"output of '{place}'"
        self._module = (module,)

    def forward(self, images: Tensor) -> Tensor:
        """Values `[N, K]` of normalised images."""
        return at_least_float(self.network(images))

    def features_and_logits(self, images: Tensor, shift: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Features `[N, d]` and values `[N, K]` of normalised images, in one pass.

        `shift` `[N, d]` is added to the features at every position, and is not in those that are returned.
        """
        seen: list[Tensor] = []

        def hook(_: nn.Module, __: object, out: Tensor) -> Tensor | None:
            seen.append(out)
            return None if shift is None else out + _over_positions(shift.to(out.dtype), out)

        handle = self._module[0].register_forward_hook(hook)
        try:
            values = at_least_float(self.network(images))
        finally:
            handle.remove()
        return _pooled(seen[-1]).to(values.dtype), values


def _pooled(out: Tensor) -> Tensor:
    """Maps `[N, d, H, W]` and tokens `[N, T, d]` averaged over positions; anything else flattened to `[N, d]`."""
    if out.ndim == 4:
        return out.mean(dim=(2, 3))
    return out.mean(dim=1) if out.ndim == 3 else out.flatten(1)


def _over_positions(features: Tensor, out: Tensor) -> Tensor:
    """Return `features` `[N, d]` in a shape that is added to `out` at each of the positions `_pooled` averages."""
    if out.ndim == 4:
        return features[:, :, None, None]
    return features[:, None] if out.ndim == 3 else features.reshape(out.shape)


class OutputNetwork(Wrapper):
    """A network whose features are its output, for want of others."""

    head = None
    behind = None
    features_of = "logits"

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        """Values `[N, K]` of normalised images."""
        return at_least_float(self.network(images))

    def features_and_logits(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """The values `[N, K]` twice."""
        values = self(images)
        return values, values


class WidenedNetwork(Wrapper):
    """A TorchScript or exported network whose widened final weight returns logits and features side by side."""

    behind = None
    features_of = "input of the final linear layer"

    def __init__(self, network: nn.Module, head: nn.Linear) -> None:
        super().__init__()
        self.network = network
        self.head = head

    def forward(self, images: Tensor) -> Tensor:
        """Logits `[N, K]` of normalised images."""
        return self.features_and_logits(images)[1]

    def features_and_logits(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Features `[N, d]` and logits `[N, K]` of normalised images, in one pass."""
        out = at_least_float(self.network(images))
        num_classes = self.head.out_features
        return out[:, num_classes:].reshape(len(out), -1), out[:, :num_classes].reshape(len(out), -1)


TracedNetwork = ObservedNetwork | WidenedNetwork | HookedNetwork | OutputNetwork


def linear_of(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    """Return a linear layer of its own holding copies of `weight` `[K, d]` (or `[K, d, 1, 1]`) and `bias` `[K]`."""
    matrix = weight.detach().flatten(1)
    rows, columns = matrix.shape
    # Left uninitialised: initial weights would be drawn from the global generator.
    layer: nn.Linear = skip_init(
        nn.Linear, columns, rows, bias=bias is not None, device=matrix.device, dtype=matrix.dtype
    )
    with torch.no_grad():
        layer.weight.copy_(matrix)
        if bias is not None:
            layer.bias.copy_(bias.detach())
    return layer
