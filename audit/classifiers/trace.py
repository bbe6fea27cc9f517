"""Find a network's features x = C(I) by running it: the input of its final linear layer, never by a layer's name.

Networks in Python are observed: a hook on every linear layer tells whose output the logits are. Networks from a
TorchScript or torch.export file run outside Python and call no hooks; there the weight W `[K, d]` of the final layer is
*widened* to `[W; I]`, so that the same forward pass returns the logits and, unchanged, the features: (Wx + b, x). Both
ways one pass gives both, gradients flow through either, and the result is accepted only if head(x) equals the logits.

Logits that are a weighted sum of several linear layers' outputs, as the mean of a distilled transformer's two heads or
of an ensemble's members, are one linear layer of these layers' inputs side by side, which are then the features.

A network in Python may put a softmax or a sigmoid behind that layer: its logits are then read in front of it, where
they do not saturate. Where the logits come from no linear layer, the features are the output of a module that the user
names, and without one the logits themselves.
"""

import difflib
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from audit.classifiers.feature_networks import (
    HookedNetwork,
    ObservedNetwork,
    OutputNetwork,
    Term,
    TracedNetwork,
    WidenedNetwork,
    linear_of,
)
from audit.classifiers.mode import preserve_mode
from audit.classifiers.outputs import AnswerSettings, Picked, Scale, are_probabilities
from audit.classifiers.probe import (
    HALVES,
    InDtype,
    answering,
    check_batches,
    checked_values,
    in_its_dtype,
    is_program,
    run,
    same,
    same_draws,
)
from audit.errors import ClassifierError

REVERSAL = -3.0
"""The final layer's output is also tried times this: a rectifier or clamp behind it may do nothing on the probe."""

SMALLEST_SHARE = 1e-3
"""Of a layer's output in the logits: less is what rounding makes of a layer that has nothing to do with them."""

BEHIND: dict[str, Callable[[Tensor], Tensor]] = {
    "softmax": lambda out: out.softmax(dim=1),
    "logarithm of a softmax": lambda out: out.log_softmax(dim=1),
    "sigmoid": torch.sigmoid,
}
"""What may follow the final linear layer without changing a decision."""

FAR = (1.0, 0.0, 100.0, -100.0)
"""The probe is tried times these where one number in [0, 1] is a probability, or a logit that happens to be small."""


def _is_final(module: nn.Module, num_classes: int) -> bool:
    if isinstance(module, nn.Linear):
        return module.out_features == num_classes
    return (
        isinstance(module, nn.Conv2d)
        and module.out_channels == num_classes
        and module.kernel_size == (1, 1)
        and module.groups == 1
    )


Call = tuple[str, nn.Module, Tensor, Tensor]
"""Name of a layer, the layer, its input and its output."""


def _with_reversed(network: nn.Module, layer: nn.Module, probe: Tensor) -> Tensor:
    """Return what `network` answers while the output of its `layer` is `REVERSAL` times what it is."""
    handle = layer.register_forward_hook(lambda _, __, out: REVERSAL * out)
    try:
        return run(network, probe)
    finally:
        handle.remove()


def _add_up(network: nn.Module, calls: list[Call], probe: Tensor, logits: Tensor) -> ObservedNetwork | None:
    """Trace a network whose `logits` are a weighted sum of several layers' outputs; None if they are none.

    A layer's share is how far the logits move with its output, which each class and image has to agree on.
    """
    terms: list[Term] = []
    total, precision = torch.zeros_like(logits), logits.dtype
    for place, layer, x, out in calls:
        term = Term(place, layer)
        once = sum(other is layer for _, other, *_ in calls) == 1
        if not once or out.numel() != logits.numel() or x.numel() != len(logits) * term.matrix[0].shape[1]:
            continue
        flat = out.reshape(logits.shape).to(logits.dtype)
        change, step = _with_reversed(network, layer, probe) - logits, (REVERSAL - 1) * flat
        share = float((change * step).sum() / step.square().sum().clamp_min(1e-12))
        if abs(share) > SMALLEST_SHARE and same(change, share * step, out.dtype):
            terms.append(replace(term, share=share))
            total, precision = total + share * flat, out.dtype
    if len(terms) < 2 or not same(total, logits, precision):
        return None
    weights, biases = zip(*(term.matrix for term in terms), strict=True)
    given = [bias for bias in biases if bias is not None]
    head = linear_of(torch.cat(weights, dim=1), sum(given) if given else None)
    return ObservedNetwork(network, tuple(terms), head.to(logits.dtype))


def _observe(
    network: nn.Module, modules: dict[str, nn.Module], probe: Tensor, *, through: bool
) -> ObservedNetwork | None:
    """Trace a Python network with these `modules`; None if the logits are no linear layers' output.

    `through`: a softmax or sigmoid behind the layer is seen through.
    """
    num_outputs = run(network, probe).shape[1]
    calls: list[Call] = []
    final = [(place, module) for place, module in modules.items() if _is_final(module, num_outputs)]
    handles = [m.register_forward_hook(lambda m, args, out, p=p: calls.append((p, m, args[0], out))) for p, m in final]
    try:
        logits = run(network, probe)
    finally:
        for handle in handles:
            handle.remove()
    ways: dict[str | None, Callable[[Tensor], Tensor]] = {None: lambda out: out}
    if through:
        ways.update(BEHIND)
    for place, module, x, out in reversed(calls):
        if out.numel() != logits.numel():
            continue
        flat = out.reshape(logits.shape).to(logits.dtype)
        for behind, follows in ways.items():
            if not same(follows(flat), logits, out.dtype):
                continue
            # A layer in another number type than the logits' cannot be given features in theirs: its copy can.
            term = Term(place, module)
            weight, bias = term.matrix
            whole = isinstance(module, nn.Linear) and out.dtype == weight.dtype == logits.dtype
            own = None if whole else linear_of(weight, bias).to(logits.dtype)
            traced = ObservedNetwork(network, (term,), own, behind=behind)
            reversed_too = same(_with_reversed(network, module, probe), follows(REVERSAL * flat), out.dtype)
            if reversed_too and x.numel() == len(logits) * traced.head.in_features:
                return traced
    return _add_up(network, calls, probe, logits)


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


@dataclass(frozen=True)
class Traced:
    """A network, of which it is known where its features come from, and what the values that it gives are.

    There are `width` of them an image; `picked` is their path in what its forward returns.
    """

    network: TracedNetwork
    scale: Scale
    width: int
    picked: tuple[str | int, ...] = ()


def trace_network(
    network: nn.Module,
    probe: Tensor,
    name: str,
    settings: AnswerSettings | None = None,
    num_classes: int | None = None,
) -> Traced:
    """Find features and logits of `network` by running `probe` `[N >= 2, C, H, W]`, normalised images.

    Networks from TorchScript or torch.export are changed for good (their final weight is widened); others are left
    untouched. `num_classes` tells the right one of several outputs. Raises ClassifierError if the network fails or
    returns nothing that can be read as one number per class.
    """
    settings = settings or AnswerSettings()
    buffers = [(buffer, buffer.clone()) for buffer in network.buffers()]
    with preserve_mode(network), torch.no_grad():
        fitting = answering(in_its_dtype(network, probe), probe, name, settings, num_classes)
        values = checked_values(fitting, probe, name)
        check_batches(fitting, probe, name)
        if not same(run(fitting, probe), values):
            raise ClassifierError(
                f"Classifier '{name}' draws at random in its forward, and not from torch's generator: its features "
                "cannot be found; draw from torch, or give the network without its noise."
            )
        traced = _traced(fitting, network, probe, name, settings)
        with same_draws(probe):
            x, again = traced.features_and_logits(probe)
        if traced.head is not None and not same(traced.head(x), again, _coarsest(network)):
            traced = OutputNetwork(fitting)
        stated = settings.scale if traced.behind is None else None
        scale = stated or _scale_of(traced, probe, settings.independent)
        if scale == "probabilities" and not bool(((values >= 0) & (values <= 1)).all()):
            raise ClassifierError(
                f"Classifier '{name}' returns numbers outside [0, 1], which are no probabilities: remove scale."
            )
        for buffer, value in buffers:
            # A batch norm in training mode counts along, even of random images.
            buffer.copy_(value)
    return Traced(traced, scale, values.shape[1], _path_of(fitting))


def _traced(
    fitting: nn.Module, network: nn.Module, probe: Tensor, name: str, settings: AnswerSettings
) -> TracedNetwork:
    """Find the final linear layer, or take the module that the user names; else the output."""
    if is_program(fitting):
        if settings.features is not None:
            raise ClassifierError(
                f"Classifier '{name}' is a file of TorchScript or torch.export, whose modules cannot be looked into: "
                "remove features, or give the network by architecture or factory."
            )
        return _widen(fitting, probe, run(fitting, probe)) or OutputNetwork(fitting)
    modules = {place: module for place, module in network.named_modules() if place or not list(network.children())}
    by_layer = _observe(fitting, modules, probe, through=settings.scale != "logits")
    if settings.features is None:
        return by_layer or OutputNetwork(fitting)
    if settings.features not in modules:
        near = difflib.get_close_matches(settings.features, modules, n=1, cutoff=0.0)
        raise ClassifierError(f"Classifier '{name}' has no module '{settings.features}': did you mean '{near[0]}'?")
    hooked = HookedNetwork(fitting, modules[settings.features], settings.features)
    try:
        with same_draws(probe):
            found, _ = hooked.features_and_logits(probe)
        fits = found.ndim == 2 and len(found) == len(probe)
    except (IndexError, AttributeError, TypeError, RuntimeError):
        fits = False
    if not fits:
        raise ClassifierError(
            f"Module '{settings.features}' of classifier '{name}' gives no tensor with one row per image: name another."
        )
    if by_layer is not None:
        with same_draws(probe):
            x, _ = by_layer.features_and_logits(probe)
        # The user has named what is the input of the final layer: with it, the head is known.
        if same(x, found):
            return by_layer
    return hooked


def _path_of(network: nn.Module) -> tuple[str | int, ...]:
    inner = network.network if isinstance(network, InDtype) else network
    return inner.path if isinstance(inner, Picked) else ()


def _scale_of(traced: TracedNetwork, probe: Tensor, independent: bool) -> Scale:
    """What the values are: of a linear layer logits, else probabilities where they look like them."""
    if traced.head is not None:
        return "logits"
    values = run(traced, probe)
    if values.shape[1] == 1 or independent:
        values = torch.cat([run(traced, factor * probe) for factor in FAR])
    return "probabilities" if are_probabilities(values, independent) else "logits"


def _coarsest(network: nn.Module) -> torch.dtype:
    dtypes = [p.dtype for p in network.parameters() if p.dtype in HALVES]
    return torch.bfloat16 if torch.bfloat16 in dtypes else dtypes[0] if dtypes else torch.float32
