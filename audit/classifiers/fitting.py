"""Find a network's weights among the tensors of a file by their names, and copy them strictly.

A file may hold several sets of weights (raw and averaged), and wrappers put prefixes before every name: DataParallel
`module.`, Lightning `model.`, a user's own class `backbone.`. No list of such names could be complete. Every path in
the file is therefore tried as a prefix, and one fits if every tensor of the network has its name and shape behind it.
"""

import math
import re
from collections import Counter, OrderedDict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn

from audit.classifiers.architectures import SIDES, build_architecture
from audit.classifiers.checkpoint import Checkpoint, Stored
from audit.errors import ClassifierError

WRAPPERS = {"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
"""Parts of names that DataParallel, torch.compile and FSDP put anywhere into them."""

AVERAGED = {"ema", "swa", "average", "averaged", "averaging", "avg", "polyak", "teacher"}
"""Words in the key of weights that are averaged over the training, which timm and others prefer to the raw ones."""

RAW = {"current", "online", "student"}
"""Words in the key of raw weights that stand beside averaged ones."""

USUAL = (
    "state_dict_ema",
    "model_ema",
    "",
    "state_dict",
    "model_state_dict",
    "model",
    "net",
    "network",
    "params",
    "weights",
)
"""Keys of the one set of weights of most files, in the order in which they are taken."""

DERIVED = {
    "num_batches_tracked", "n_averaged", "relative_position_index", "relative_coords_table", "attn_mask",
    "position_ids", "total_ops", "total_params",
}  # fmt: skip
"""Last parts of the names of counters and of tables that a network computes from its sizes."""

TRAINING = re.compile(r"(^|[._])(optim|scaler|amp|lr_|sched|callback|loops?[._]|rng|random|fp16)", re.IGNORECASE)
"""Names of what a training script stores to be resumed: optimiser, scheduler, random state."""


@dataclass(frozen=True)
class Fit:
    """Weights found for a network: `prefix` is their path in the file, and `others` are paths that fit as well.

    `own` is the prefix of the network's names that the file lacks; `leftover` are the tensors that the network has no
    name for, and `kept` those of the network's own that stay.
    """

    tensors: dict[str, Stored]
    prefix: str
    own: str
    others: tuple[str, ...]
    leftover: tuple[str, ...]
    kept: tuple[str, ...] = ()

    @property
    def entry(self) -> str | None:
        """The key under which the weights stand; None: at the top of the file."""
        return self.prefix.rstrip(".") or None


def few(names: Collection[str]) -> str:
    """The first three names, quoted, and how many more there are."""
    rest = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(f"'{name}'" for name in list(names)[:3]) + rest


def without_wrappers(names: Collection[str], wanted: Collection[str]) -> dict[str, str]:
    """Names of a file without the parts that wrappers put into them, by the names as they stand in it."""
    own = {part for name in wanted for part in name.split(".")}
    short = {n: ".".join(part for part in n.split(".") if part not in WRAPPERS - own) for n in names}
    count = Counter(short.values())
    return {name: new if count[new] == 1 else name for name, new in short.items()}


def _shared_prefixes(names: Collection[str]) -> list[str]:
    """Prefixes, the empty one first, that stand before every one of `names`."""
    parts = [name.split(".")[:-1] for name in names]
    shared = []
    for level in zip(*parts, strict=False):
        if len(set(level)) > 1:
            break
        shared.append(level[0])
    return ["", *(".".join(shared[: i + 1]) + "." for i in range(len(shared)))]


def _prefixes(names: Collection[str], wanted: Collection[str]) -> Counter[str]:
    """How many of `wanted` stand behind each prefix in `names`."""
    found: Counter[str] = Counter()
    for name in names:
        start = 0
        while start >= 0:
            if name[start:] in wanted:
                found[name[:start]] += 1
            start = name.find(".", start) + 1 or -1
    return found


def _rank(prefix: str, raw_first: bool) -> tuple[int, int, str]:
    words = set(re.split(r"[._\-]+", prefix.lower()))
    averaged = bool(words & AVERAGED) != raw_first
    kind = 2 if words & RAW or (raw_first and words & AVERAGED) else 0 if averaged else 1
    first = prefix.split(".")[0]
    return kind, USUAL.index(first) if first in USUAL else len(USUAL), prefix


def _chosen_by(key: str | None, prefixes: Sequence[str], checkpoint: Checkpoint, where: str) -> list[str]:
    """Return those of `prefixes` that a `weights_key` names or that lie below it."""
    if key is None:
        return list(prefixes)
    start = ".".join(part for part in key.split(".") if part not in WRAPPERS)
    found = [p for p in prefixes if p == f"{start}." or p.startswith(f"{start}.")]
    if found:
        return found
    if prefixes:
        there = few([p.rstrip(".") or "(the top of the file)" for p in prefixes])
        raise ClassifierError(
            f"weights_key '{key}' names no weights of {where} that fit the network: there are {there}."
        )
    tops = list(dict.fromkeys(name.split(".")[0] for name in checkpoint.stored))
    raise ClassifierError(f"weights_key '{key}' names no weights of {where}: its first names are {few(tops)}.")


def find_weights(
    wanted: Mapping[str, torch.Size],
    checkpoint: Checkpoint,
    where: str,
    *,
    weights_key: str | None = None,
    replaced: tuple[str, ...] = (),
) -> Fit:
    """Find the tensors of names and shapes `wanted` in `checkpoint`, under `weights_key` if it is given.

    Averaged weights come before raw ones. Tensors whose names begin with one of `replaced` may have another shape.
    Raises ClassifierError saying which name or shape of the set that fits best differs, or which sets there are.
    """
    needed = [name for name in wanted if name.rsplit(".", 1)[-1] != "num_batches_tracked"]
    short = without_wrappers(checkpoint.stored, wanted)
    stored = {new: checkpoint.stored[name] for name, new in short.items()}
    best: list[tuple[int, str, str]] = []
    for own in _shared_prefixes(wanted):
        behind = {name[len(own) :] for name in needed}
        counted = _prefixes(stored, behind)
        full = [p for p, n in counted.items() if n == len(behind)]
        # Sets of the right shapes first: a file may hold another network of the same names.
        right = [p for p in full if not _misfits(wanted, stored, p, own, replaced)]
        if right:
            ways = sorted(right, key=lambda p: _rank(p, checkpoint.raw_first))
            taken = _chosen_by(weights_key, ways, checkpoint, where)[0]
            return _fit(wanted, stored, Fit({}, taken, own, tuple(p for p in ways if p != taken), ()), where, replaced)
        best += [(-n, own, p) for p, n in counted.items()]
    if not best:
        raise ClassifierError(
            f"{where} has no tensor of a name that the network has{checkpoint.unread}: it belongs to another "
            f"architecture (it begins with {few(list(stored)[:1])}, the network with {few(list(wanted)[:1])})."
        )
    if weights_key is not None:
        named = _chosen_by(weights_key, [p for _, _, p in best], checkpoint, where)
        best = [one for one in best if one[2] in named]
    _, own, prefix = min(best, key=lambda one: (one[0], one[1], *_rank(one[2], checkpoint.raw_first)))
    raise ClassifierError(_why_not(wanted, stored, prefix, own, where, replaced) + checkpoint.unread + ".")


def _misfits(
    wanted: Mapping[str, torch.Size], stored: Mapping[str, Stored], prefix: str, own: str, replaced: tuple[str, ...]
) -> list[str]:
    """The tensors behind `prefix` that have another shape than the network's."""
    there = {name: stored.get(prefix + name[len(own) :]) for name in wanted if not name.startswith(replaced)}
    return [name for name, one in there.items() if one is not None and tuple(one.shape) != tuple(wanted[name])]


def _why_not(
    wanted: Mapping[str, torch.Size], stored: Mapping[str, Stored], prefix: str, own: str, where: str,
    replaced: tuple[str, ...],
) -> str:  # fmt: skip
    behind = f" behind '{prefix}'" if prefix else ""
    wrong = _misfits(wanted, stored, prefix, own, replaced)
    if wrong:
        found, needs = stored[prefix + wrong[0][len(own) :]].shape, wanted[wrong[0]]
        mend = "check architecture, channels and number of classes"
        if len({name.rsplit(".", 1)[0] for name in wrong}) == 1 and tuple(found[1:]) == tuple(needs[1:]):
            mend = f"if this is its last layer, it was trained for {found[0]} classes where there are {needs[0]} here"
        shapes = f"has shape {list(found)} in {where}{behind} where the network needs {list(needs)}"
        return f"Tensor '{wrong[0]}' {shapes}: {mend}"
    names = {name: prefix + name[len(own) :] for name in wanted}
    missing = [
        name for name, there in names.items() if there not in stored and not name.endswith("num_batches_tracked")
    ]
    left = [name for name in stored if name not in names.values() and not TRAINING.search(name)]
    beside = f" (it has {few(left)}, which the network has not)" if left else ""
    return f"{where} lacks {few(missing)}{behind}{beside}: it belongs to another architecture"


def _fit(
    wanted: Mapping[str, torch.Size], stored: Mapping[str, Stored], fit: Fit, where: str, replaced: tuple[str, ...]
) -> Fit:
    """Fill `fit` with the tensors behind its prefix; raises ClassifierError if what is left over is of the network."""
    names = {fit.prefix + name[len(fit.own) :]: name for name in wanted}
    tensors = {new: stored[name] for name, new in names.items() if name in stored}
    kept = tuple(n for n, one in tensors.items() if tuple(one.shape) != tuple(wanted[n]))
    elsewhere = tuple(other for other in fit.others if other)
    left = [n for n in stored if n not in names and not TRAINING.search(n) and not n.startswith(elsewhere)]
    tops = {_kind(name[len(fit.own) :]) for name in wanted}
    behind = [name for name in left if name.startswith(fit.prefix) and name.rsplit(".", 1)[-1] not in DERIVED]
    strange = [name for name in behind if _kind(name[len(fit.prefix) :]) in tops]
    if strange:
        raise ClassifierError(
            f"{where} has {few(strange)}, which the network has not: it belongs to another architecture."
        )
    return replace(fit, tensors={n: t for n, t in tensors.items() if n not in kept}, leftover=tuple(left), kept=kept)


def _kind(name: str) -> str:
    """The first part of a name without its number: what `layer5` and `layer4`, or '7' and '0', have in common."""
    return name.split(".")[0].rstrip("0123456789")


def check_finite(tensors: Mapping[str, Tensor], where: str) -> None:
    """Raise ClassifierError naming the first tensor of `where` that holds NaN or infinity."""
    for key, value in tensors.items():
        if value.is_floating_point() and not torch.isfinite(value).all():
            bad = int((~torch.isfinite(value)).sum())
            raise ClassifierError(
                f"Tensor '{key}' of {where} holds {bad} NaN or infinite values: train or save it again."
            )


def fit_weights(
    network: nn.Module,
    checkpoint: Checkpoint,
    where: str,
    *,
    weights_key: str | None = None,
    replaced: tuple[str, ...] = (),
) -> Fit:
    """Copy the checkpoint's weights into `network` and say which; raises as `find_weights` and `check_finite`.

    Counters of batch norm that old files lack may be missing; nothing else may.
    """
    own = network.state_dict()
    wanted = {name: value.shape for name, value in own.items()}
    fit = find_weights(wanted, checkpoint, where, weights_key=weights_key, replaced=replaced)
    tensors = {name: one.read() for name, one in fit.tensors.items()}
    check_finite(tensors, where)
    # Torch keeps the versions of layouts beside a state dict, and some modules refuse one without: the names and shapes
    # that were found are those of the present layout.
    state = OrderedDict(tensors)
    state._metadata = getattr(own, "_metadata", {})  # type: ignore[attr-defined]
    network.load_state_dict(state, strict=False)
    return fit


def fitting_arguments(
    architecture: str,
    num_classes: int,
    channels: int,
    args: Mapping[str, Any],
    checkpoint: Checkpoint,
    key: str | None,
) -> dict[str, int] | None:
    """Find the `img_size`, and more if need be, with which timm's `architecture` has the checkpoint's shapes.

    The shapes of a table of positions and of the layer that embeds patches say which to try first.
    """
    for found in [*_of_positions(checkpoint), *({"img_size": side} for side in SIDES)]:
        try:
            with torch.device("meta"):
                network = build_architecture(architecture, num_classes, channels, {**args, **found})
        except ClassifierError as error:
            if "unexpected keyword argument 'img_size'" in str(error):
                return None
            continue
        shapes = {name: value.shape for name, value in network.state_dict().items()}
        try:
            find_weights(shapes, checkpoint, "", weights_key=key)
        except ClassifierError:
            continue
        return found
    return None


def _of_positions(checkpoint: Checkpoint) -> Iterator[dict[str, int]]:
    """Sizes of images whose patches a table of positions `[1, tokens, d]` counts, then with patches and blocks."""
    shapes = [(name, one.shape) for name, one in checkpoint.stored.items()]
    patches = [shape[-1] for name, shape in shapes if name.endswith("patch_embed.proj.weight") and len(shape) == 4]
    tables = [shape[1] for name, shape in shapes if name.endswith("pos_embed") and len(shape) == 3]
    blocks = {found[1] for name, _ in shapes if (found := re.search(r"(?:^|\.)blocks\.(\d+)\.", name))}
    for patch, tokens, extra in product(patches[:1], tables[:1], (1, 0, 2)):
        grid = math.isqrt(max(0, tokens - extra))
        if grid and grid * grid == tokens - extra:
            yield {"img_size": grid * patch}
            yield {"img_size": grid * patch, "patch_size": patch}
            yield {"img_size": grid * patch, "patch_size": patch, "depth": len(blocks)}
