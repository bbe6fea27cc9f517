"""Forms of the networks' convolutions that could be chosen, forward and backward: why layers.py has those it has.

    python benchmarks/convolutions.py up | down | tuned | tuned-up [--batch 32] [--repeats 7] [--wall]

`up` and `down` change the resolution with weights that the batch shares; in `tuned` and `tuned-up` every image has its
own, as in pivotal tuning. All forms give the same numbers, which is checked. Clock, turns and medians are those of
`benchmarks/networks.py`; a ratio is that of the first form's time to a form's.

Measured with torch 2.15.0 on 1 thread of an AMD EPYC (Zen 5), n = 32, ratios of CPU seconds over the four (`up`), three
(`down`), five (`tuned`, 8 to 32 maps) and three (`tuned-up`, 32 maps in) shapes:

| mode | first form | others |
|---|---|---|
| up | filter after | channels last 1.06-1.23, separable .92-1.19, 6x6 .46-.77, four 3x3 .43-.67, bilinear .21-.49 |
| down | filter before | channels last 1.08-1.47, separable .99-1.45, fused 6x6 .45-.94 |
| tuned | grouped | one by one .36-.78, unfold and bmm .11-.36, nine shifted bmm .13-.27, shared weights .92-1.17 |
| tuned-up | grouped | parts of 8 .97-1.44, parts of 4 .96-1.40, fold 1.02-1.07, one by one .78-1.34, shared 1.9-2.2 |

Up to 4 images at a time the forms of `tuned-up` are equal within the noise but for bmm and fold, which is slower.
"""

import argparse
import time
from collections.abc import Callable

import torch
from networks import Work, race, table
from torch import Tensor
from torch.nn import functional as F

from audit.generator.stylegan2.layers import blur, blur_filter
from audit.runtime.environment import versions

Form = Callable[[Tensor, Tensor], Tensor]
LAST = torch.channels_last
FILTER = blur_filter()


def last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=LAST)


def separable(x: Tensor, padding: int, gain: float = 1.0) -> Tensor:
    taps = (torch.tensor([1.0, 3.0, 3.0, 1.0]) / 8 * gain**0.5).expand(x.shape[1], 1, 4)
    x = F.conv2d(x, taps[:, :, None], padding=(0, padding), groups=x.shape[1])
    return F.conv2d(x, taps[..., None], padding=(padding, 0), groups=x.shape[1])


def fused(weight: Tensor, gain: float) -> Tensor:
    """The 6x6 kernel that a 3x3 kernel and the filter make together."""
    flat = F.pad(weight, (3, 3, 3, 3)).reshape(-1, 1, 9, 9)
    return F.conv2d(flat, FILTER[None, None] * gain).reshape(*weight.shape[:-2], 6, 6)


def shuffled(x: Tensor, weight: Tensor) -> Tensor:
    """The fused kernel as four 3x3 kernels, one for each place of a 2x2 cell."""
    o, i = weight.shape[:2]
    kernel = fused(weight, 4.0).reshape(o, i, 3, 2, 3, 2).flip(2, 4).permute(0, 3, 5, 1, 2, 4)
    return F.pixel_shuffle(F.conv2d(x, kernel.reshape(4 * o, i, 3, 3), padding=1), 2)


def upsampled_first(x: Tensor, weight: Tensor) -> Tensor:
    x = F.interpolate(F.pad(x, (1, 1, 1, 1)), scale_factor=2, mode="bilinear")[..., 1:-1, 1:-1]
    return F.conv2d(x, weight.flip(2, 3))


def transposed(x: Tensor, weight: Tensor) -> Tensor:
    return F.conv_transpose2d(x, weight.transpose(0, 1), stride=2)


UP: dict[str, Form] = {
    "filter after": lambda x, w: blur(transposed(x, w), FILTER, 1, gain=4.0),
    "channels last": lambda x, w: blur(transposed(last(x), last(w)), FILTER, 1, gain=4.0),
    "last, separable": lambda x, w: separable(transposed(last(x), last(w)), 1, 4.0),
    "last, fused 6x6": lambda x, w: F.conv_transpose2d(
        last(x), last(fused(w, 4.0).transpose(0, 1)), stride=2, padding=2
    ),
    "last, four 3x3": lambda x, w: shuffled(last(x), w),
    "last, bilinear first": lambda x, w: upsampled_first(last(x), last(w)),
}
DOWN: dict[str, Form] = {
    "filter before": lambda x, w: F.conv2d(blur(x, FILTER, 2), w, stride=2),
    "channels last": lambda x, w: F.conv2d(blur(last(x), FILTER, 2), last(w), stride=2),
    "last, separable": lambda x, w: F.conv2d(separable(last(x), 2), last(w), stride=2),
    "last, fused 6x6": lambda x, w: F.conv2d(last(x), last(fused(w, 1.0)), stride=2, padding=2),
}


def grouped(x: Tensor, w: Tensor) -> Tensor:
    n, _, h, v = x.shape
    x = F.conv2d(x.reshape(1, -1, h, v), w.reshape(-1, *w.shape[2:]), padding=1, groups=n)
    return x.reshape(n, -1, h, v)


def one_by_one(x: Tensor, w: Tensor) -> Tensor:
    pairs = zip(last(x).split(1), w.split(1), strict=True)
    return torch.cat([F.conv2d(a, last(b[0]), padding=1) for a, b in pairs])


def shifted(x: Tensor, w: Tensor) -> Tensor:
    """A sum of nine batched products of shifted maps."""
    n, i, h, v = x.shape
    padded, out = F.pad(x.permute(0, 2, 3, 1), (0, 0, 1, 1, 1, 1)), torch.zeros(n, h * v, w.shape[1])
    for a in range(3):
        for b in range(3):
            out = torch.baddbmm(out, padded[:, a : a + h, b : b + v].reshape(n, h * v, i), w[..., a, b].transpose(1, 2))
    return out.reshape(n, h, v, -1).permute(0, 3, 1, 2)


TUNED: dict[str, Form] = {
    "grouped": grouped,
    "one by one, last": one_by_one,
    "unfold and bmm": lambda x, w: torch.bmm(w.flatten(2), F.unfold(x, 3, padding=1)).reshape(*grouped_shape(x, w)),
    "nine shifted bmm": shifted,
    "shared weights": lambda x, w: F.conv2d(last(x), last(w[0]), padding=1),
}


def grouped_shape(x: Tensor, w: Tensor) -> tuple[int, ...]:
    return (len(x), w.shape[1], *x.shape[2:])


def grouped_up(x: Tensor, w: Tensor) -> Tensor:
    n, _, h, v = x.shape
    kernel = w.transpose(1, 2).reshape(-1, w.shape[1], 3, 3)
    return F.conv_transpose2d(x.reshape(1, -1, h, v), kernel, stride=2, groups=n).reshape(n, -1, 2 * h + 1, 2 * v + 1)


def in_parts(size: int) -> Form:
    def run(x: Tensor, w: Tensor) -> Tensor:
        parts = [grouped_up(a, b) for a, b in zip(x.split(size), w.split(size), strict=True)]
        return blur(torch.cat(parts), FILTER, 1, gain=4.0)

    return run


def folded(x: Tensor, w: Tensor) -> Tensor:
    n, i, h, v = x.shape
    columns = torch.bmm(w.permute(0, 1, 3, 4, 2).reshape(n, -1, i), x.flatten(2))
    return blur(F.fold(columns, (2 * h + 1, 2 * v + 1), 3, stride=2), FILTER, 1, gain=4.0)


def one_by_one_up(x: Tensor, w: Tensor) -> Tensor:
    pairs = zip(last(x).split(1), w.split(1), strict=True)
    return blur(torch.cat([transposed(a, last(b[0])) for a, b in pairs]), FILTER, 1, gain=4.0)


TUNED_UP: dict[str, Form] = {
    "grouped": lambda x, w: blur(grouped_up(x, w), FILTER, 1, gain=4.0),
    "parts of 8": in_parts(8),
    "parts of 4": in_parts(4),
    "bmm and fold": folded,
    "one by one, last": one_by_one_up,
    "shared weights": lambda x, w: blur(transposed(last(x), last(w[0])), FILTER, 1, gain=4.0),
}
SHAPES = [(32, 32, 8), (32, 32, 16), (32, 16, 32), (64, 32, 32)]
MODES = {
    "up": (UP, SHAPES, False),
    "down": (DOWN, [(32, 32, 16), (16, 32, 64), (32, 64, 64)], False),
    "tuned": (TUNED, [(32, 32, 8), (32, 32, 16), (32, 32, 32), (8, 8, 64), (16, 16, 64), (64, 64, 32)], True),
    "tuned-up": (TUNED_UP, SHAPES, True),
}


def both_ways(form: Form, x: Tensor, w: Tensor, gradient: Tensor) -> Work:
    return lambda: torch.autograd.grad(form(x, w), (x, w), gradient)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("mode", choices=MODES)
    parser.add_argument("--batch", type=int, nargs="+", default=[32])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--wall", action="store_true")
    args = parser.parse_args()
    print(f"torch {versions()['torch']}, {torch.get_num_threads()} threads")
    forms, shapes, own = MODES[args.mode]
    for inputs, outputs, side in shapes:
        for n in args.batch:
            x = torch.randn(n, inputs, side, side).requires_grad_()
            w = torch.randn(*([n] if own else []), outputs, inputs, 3, 3).requires_grad_()
            first = next(iter(forms.values()))(x, w)
            for name, form in forms.items():
                assert name == "shared weights" or (form(x, w) - first).abs().max() < 1e-3, name
            works = {name: both_ways(form, x, w, torch.ones_like(first)) for name, form in forms.items()}
            seconds = race(works, args.repeats, time.perf_counter if args.wall else time.process_time)
            table(f"{n} images, {inputs} to {outputs} maps at {side}x{side}", seconds)


if __name__ == "__main__":
    main()
