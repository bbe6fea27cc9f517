"""Find a network's final linear layer and penultimate features x = C(I) by running it, never by a layer's name.

Networks in Python are observed: a hook on every linear layer tells whose output the logits are. Networks from a
TorchScript or torch.export file run outside Python and call no hooks; there the weight W `[K, d]` of the final layer is
*widened* to `[W; I]`, so that the same forward pass returns the logits and, unchanged, the features: (Wx + b, x). Both
ways one pass gives both, gradients flow through either, and the result is accepted only if head(x) equals the logits.
"""

from contextlib import suppress

import torch
from torch import Tensor, nn
from torch.nn.utils import skip_init

from audit.classifiers.mode import preserve_mode
from audit.classifiers.probe import (
    HALVES,
    HOW,
    at_least_float,
    check_batches,
    in_its_dtype,
    is_program,
    logits_of,
    run,
    same,
    same_draws,
)
from audit.errors import ClassifierError

REVERSAL = -3.0
"""The final layer's output is also tried times this: a rectifier or clamp behind it may do nothing on the probe."""


class ObservedNetwork(nn.Module):
    """A network in Python whose layer `final` (one of its own submodules) produces the logits."""

    def __init__(self, network: nn.Module, final: nn.Module, head: nn.Linear | None) -> None:
        super().__init__()
        self.network = network
        # In a tuple, because as an attribute the layer would be registered a second time under another name.
        self._final = (final,)
        self._own_head = head

    @property
    def head(self) -> nn.Linear:
        """The final linear layer: the network's own, or its copy where the network has a 1x1 convolution instead."""
        if self._own_head is not None:
            return self._own_head
        final = self._final[0]
        assert isinstance(final, nn.Linear)
        return final

    def forward(self, images: Tensor) -> Tensor:
        """Logits `[N, K]` of normalised images."""
        return at_least_float(self.network(images))

    def features_and_logits(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Features `[N, d]` and logits `[N, K]` of normalised images, in one pass."""
        seen: list[Tensor] = []
        handle = self._final[0].register_forward_hook(lambda _, args, __: seen.append(args[0]))
        try:
            logits: Tensor = self.network(images)
        finally:
            handle.remove()
        logits = at_least_float(logits)
        return seen[-1].reshape(len(logits), -1).to(logits.dtype), logits


class WidenedNetwork(nn.Module):
    """A TorchScript or exported network whose widened final weight returns logits and features side by side."""

    def __init__(self, network: nn.Module, head: nn.Linear) -> None:
        super().__init__()
        self.network = network
        self.head = head

    def train(self, mode: bool = True) -> "WidenedNetwork":
        """Pass the mode on, except to modules of torch.export, which have one fixed mode and refuse the call."""
        self.training = mode
        self.head.train(mode)
        with suppress(NotImplementedError):
            self.network.train(mode)
        return self

    def forward(self, images: Tensor) -> Tensor:
        """Logits `[N, K]` of normalised images."""
        return self.features_and_logits(images)[1]

    def features_and_logits(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Features `[N, d]` and logits `[N, K]` of normalised images, in one pass."""
        out = at_least_float(self.network(images))
        num_classes = self.head.out_features
        return out[:, num_classes:].reshape(len(out), -1), out[:, :num_classes].reshape(len(out), -1)


TracedNetwork = ObservedNetwork | WidenedNetwork


def _is_final(module: nn.Module, num_classes: int) -> bool:
    if isinstance(module, nn.Linear):
        return module.out_features == num_classes
    return (
        isinstance(module, nn.Conv2d)
        and module.out_channels == num_classes
        and module.kernel_size == (1, 1)
        and module.groups == 1
    )


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


def _observe(network: nn.Module, probe: Tensor, num_classes: int) -> ObservedNetwork | None:
    """Trace a Python network; None if no linear layer's output is the logits."""
    calls: list[tuple[nn.Module, Tensor, Tensor]] = []
    final = [module for module in network.modules() if _is_final(module, num_classes)]
    handles = [m.register_forward_hook(lambda m, args, out: calls.append((m, args[0], out))) for m in final]
    try:
        logits = run(network, probe)
    finally:
        for handle in handles:
            handle.remove()
    for module, x, out in reversed(calls):
        if out.numel() != logits.numel() or not same(out.reshape(logits.shape).to(logits.dtype), logits, out.dtype):
            continue
        weight: Tensor = module.weight  # type: ignore[assignment]
        bias: Tensor | None = module.bias  # type: ignore[assignment]
        # A layer in another number type than the logits' cannot be given features in theirs: its copy can.
        whole = isinstance(module, nn.Linear) and out.dtype == weight.dtype == logits.dtype
        own = None if whole else linear_of(weight, bias).to(logits.dtype)
        traced = ObservedNetwork(network, module, own)
        handle = module.register_forward_hook(lambda _, __, out: REVERSAL * out)
        try:
            reversed_too = same(run(network, probe), REVERSAL * logits, out.dtype)
        finally:
            handle.remove()
        if reversed_too and x.numel() == len(logits) * traced.head.in_features:
            return traced
    return None


def _widen(network: nn.Module, probe: Tensor, logits: Tensor) -> WidenedNetwork | None:
    """Trace a TorchScript or exported network; None if no weight is that of a final linear layer."""
    parameters = dict(network.named_parameters())
    num_classes = logits.shape[1]
    for key, weight in reversed(parameters.items()):
        if not key.endswith("weight") or weight.ndim not in (2, 4) or len(weight) != num_classes:
            continue
        if weight.ndim == 4 and tuple(weight.shape[2:]) != (1, 1):
            continue
        bias = parameters.get(key.removesuffix("weight") + "bias")
        before = weight.detach(), None if bias is None else bias.detach()
        head = linear_of(*before).to(logits.dtype)
        identity = torch.eye(head.in_features, dtype=weight.dtype, device=weight.device).reshape(-1, *weight.shape[1:])
        traced = WidenedNetwork(network, head)
        found = True
        for factor in (REVERSAL, 1.0):
            # By `.data`: parameters of a script module cannot be replaced, and their shape is not part of its type.
            weight.data = torch.cat([factor * before[0], identity])
            if bias is not None and before[1] is not None:
                bias.data = torch.cat([factor * before[1], before[1].new_zeros(head.in_features)])
            try:
                with same_draws(probe):
                    x, out = traced.features_and_logits(probe)
                fits = x.shape[1] == head.in_features and same(out, factor * logits, weight.dtype)
                fits = fits and same(head(x), logits, weight.dtype)
            except (RuntimeError, ValueError, AssertionError, IndexError, TypeError):
                fits = False  # The layer lies elsewhere in the network: its wider output fits nothing.
            found = found and fits
        if found:
            return traced
        weight.data = before[0]
        if bias is not None and before[1] is not None:
            bias.data = before[1]
    return None


def _why_no_head(network: nn.Module, logits: Tensor, name: str) -> str:
    ones = torch.ones(len(logits), dtype=logits.dtype, device=logits.device)
    if bool((logits >= 0).all()) and torch.allclose(logits.sum(dim=1), ones, atol=1e-3):
        return f"Classifier '{name}' returns probabilities (rows sum to 1) where logits are needed: {HOW}"
    if bool((logits <= 0).all()) and torch.allclose(logits.exp().sum(dim=1), ones, atol=1e-3):
        return f"Classifier '{name}' returns log-probabilities where logits are needed: {HOW}"
    if isinstance(network, torch.jit.ScriptModule) and not dict(network.named_parameters()):
        return f"Classifier '{name}' is a frozen TorchScript file without parameters: save it before torch.jit.freeze."
    return (
        f"Classifier '{name}' has no final linear layer whose output is the logits (something follows it, or there is "
        f"none): {HOW}"
    )


def trace_network(network: nn.Module, probe: Tensor, name: str) -> TracedNetwork:
    """Find the final linear layer of `network` by running `probe` `[N >= 2, C, H, W]`, normalised images.

    Networks from TorchScript or torch.export are changed for good (their final weight is widened); others are left
    untouched. Raises ClassifierError if the output is not finite logits `[N, K]` straight from a linear layer.
    """
    buffers = [(buffer, buffer.clone()) for buffer in network.buffers()]
    with preserve_mode(network), torch.no_grad():
        fitting = in_its_dtype(network, probe)
        logits = logits_of(fitting, probe, name)
        check_batches(fitting, probe, name)
        if not same(run(fitting, probe), logits):
            raise ClassifierError(
                f"Classifier '{name}' draws at random in its forward, and not from torch's generator: its features "
                "cannot be found; draw from torch, or give the network without its noise."
            )
        widened = is_program(fitting)
        traced = _widen(fitting, probe, logits) if widened else _observe(fitting, probe, logits.shape[1])
        if traced is None:
            raise ClassifierError(_why_no_head(network, logits, name))
        with same_draws(probe):
            x, again = traced.features_and_logits(probe)
        if not same(traced.head(x), again, _coarsest(network)):
            raise ClassifierError(f"Classifier '{name}' has a final layer that does not reproduce its logits: {HOW}")
        for buffer, value in buffers:
            # A batch norm in training mode counts along, even of random images.
            buffer.copy_(value)
    return traced


def _coarsest(network: nn.Module) -> torch.dtype:
    dtypes = [p.dtype for p in network.parameters() if p.dtype in HALVES]
    return torch.bfloat16 if torch.bfloat16 in dtypes else dtypes[0] if dtypes else torch.float32
