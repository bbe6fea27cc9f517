"""What the networks cost: against a textbook form of the same equations, and between the forms that could be chosen.

    python benchmarks/networks.py step [--base 1024 --max 32] [--resolution 64] [--batch 32] [--repeats 7] [--wall]
    python benchmarks/networks.py tuned

`step` is one update's forward and backward passes of discriminator and generator without regularisers and without
optimiser. The textbook form reads the same parameters: weights modulated image by image and a grouped convolution
(StyleGAN2, section 2.2, as the paper describes it), zero insertion and a full convolution for every change of
resolution, gains and biases one after the other.

All forms run turn about in one process, in changing order; printed are medians of the repeats and of their ratios.
Times are the process's CPU seconds, which other work on the machine disturbs less, or with `--wall` wall time; threads
are those of OMP_NUM_THREADS.

Measured with torch 2.15.0 on 1 thread of an AMD EPYC (Zen 5) that other work shared, CPU seconds, 64x64, one channel:

| what | n | base 1024, max 32 | base 2048, max 64 |
|---|---|---|---|
| G and D step, textbook / ours | 32 | 492 / 251 ms, x1.95 (busier: x1.76) | 1359 / 786 ms, x1.76 |
| synthesis and gradient, own weights / one at a time | 32 | x2.2 (busier: x2.9) | |

Two forms were measured and not taken: `torch.compile` (x1.36 for the synthesis, x0.90 for the discriminator, after 79 s
of compiling; and compiled code has no second derivative, which R1 and path lengths need), and the highest resolutions
alone in bfloat16 (x0.83 to x0.91 in narrow networks, x1.10 to x1.32 in wide ones; a training may take all of them).
"""

import argparse
import math
import statistics
import time
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from audit.generator.stylegan2.discriminator import Discriminator, minibatch_stddev
from audit.generator.stylegan2.layers import EqualConv, EqualLinear, blur_filter
from audit.generator.stylegan2.losses import logistic
from audit.generator.stylegan2.networks import Generator
from audit.runtime.environment import versions

Work = Callable[[], object]


def race(forms: Mapping[str, Work], repeats: int, clock: Callable[[], float]) -> dict[str, list[float]]:
    """Seconds of every form, turn about, after one run of each that is not counted."""
    names = list(forms)
    for name in names:
        forms[name]()
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for repeat in range(repeats):
        turn = repeat % len(names)
        for name in names[turn:] + names[:turn]:
            began = clock()
            forms[name]()
            seconds[name].append(clock() - began)
    return seconds


def table(title: str, seconds: Mapping[str, list[float]]) -> None:
    """Print medians, and how many times as fast as the first form each is."""
    first = next(iter(seconds.values()))
    cells = []
    for name, values in seconds.items():
        ratio = statistics.median(a / b for a, b in zip(first, values, strict=True))
        cells.append(f"{name} {1e3 * statistics.median(values):.1f} ms (x{ratio:.2f})")
    print(f"{title}: " + ", ".join(cells), flush=True)


# The textbook form.


def resampled(x: Tensor, up: int, down: int, before: int, after: int, gain: float) -> Tensor:
    """Insert zeros, pad, filter by [1, 3, 3, 1] in both directions, drop pixels."""
    n, c, h, w = x.shape
    if up > 1:
        wide = x.reshape(n, c, h, 1, w, 1)
        x = F.pad(wide, (0, up - 1, 0, 0, 0, up - 1)).reshape(n, c, h * up, w * up)
    x = F.pad(x, (before, after, before, after))
    kernel = (blur_filter().to(x) * gain).expand(c, 1, 4, 4)
    return F.conv2d(x, kernel, groups=c)[..., ::down, ::down]


def textbook_linear(layer: EqualLinear, x: Tensor) -> Tensor:
    x = F.linear(x, layer.weight * layer.weight_gain) + layer.bias * layer.bias_gain
    return F.leaky_relu(x, 0.2) * math.sqrt(2) if layer.act else x


def textbook_modulated(x: Tensor, weight: Tensor, styles: Tensor, demodulate: bool, up: bool) -> Tensor:
    n, _, height, width = x.shape
    weight = weight[None] * styles[:, None, :, None, None]
    if demodulate:
        weight = weight * torch.rsqrt(weight.square().sum((2, 3, 4), keepdim=True) + 1e-8)
    x = x.reshape(1, -1, height, width)
    if up:
        kernel = weight.transpose(1, 2).reshape(-1, weight.shape[1], *weight.shape[3:])
        x = F.conv_transpose2d(x, kernel, stride=2, groups=n)
        x = x.reshape(n, -1, *x.shape[2:])
        return resampled(x, 1, 1, 1, 1, 4.0)
    x = F.conv2d(x, weight.reshape(-1, *weight.shape[2:]), padding=weight.shape[-1] // 2, groups=n)
    return x.reshape(n, -1, *x.shape[2:])


def textbook_mapping(g: Generator, z: Tensor) -> Tensor:
    x = z * torch.rsqrt(z.square().mean(1, keepdim=True) + 1e-8)
    for i in range(g.mapping.layers):
        x = textbook_linear(getattr(g.mapping, f"fc{i}"), x)
    return x[:, None].repeat(1, g.num_ws, 1)


def textbook_synthesis(g: Generator, ws: Tensor, noise: str = "random") -> Tensor:
    def layer(module: nn.Module, x: Tensor, w: Tensor) -> Tensor:
        x = textbook_modulated(x, module.weight, textbook_linear(module.affine, w), True, module.up)
        if noise == "random":
            x = x + torch.randn(len(x), 1, *x.shape[2:]) * module.noise_strength
        elif noise == "const":
            x = x + module.noise_const * module.noise_strength
        return F.leaky_relu(x + module.bias[:, None, None], 0.2) * math.sqrt(2)

    x, image, index = None, None, 0
    for res in g.synthesis.resolutions:
        block = getattr(g.synthesis, f"b{res}")
        if x is None:
            x = block.const[None].repeat(len(ws), 1, 1, 1)
        else:
            x, index = layer(block.conv0, x, ws[:, index]), index + 1
        x, index = layer(block.conv1, x, ws[:, index]), index + 1
        styles = textbook_linear(block.torgb.affine, ws[:, index]) * block.torgb.style_gain
        drawn = textbook_modulated(x, block.torgb.weight, styles, False, False) + block.torgb.bias[:, None, None]
        image = drawn if image is None else resampled(image, 2, 1, 2, 1, 4.0) + drawn
    assert image is not None
    return image


def textbook_conv(layer: EqualConv, x: Tensor, gain: float = 1.0) -> Tensor:
    weight, pad = layer.weight * layer.weight_gain, layer.weight.shape[-1] // 2
    if layer.down and pad:
        x = F.conv2d(resampled(x, 1, 1, 2, 2, 1.0), weight, stride=2)
    else:
        x = resampled(x, 1, 2, 1, 1, 1.0) if layer.down else x
        x = F.conv2d(x, weight, padding=pad)
    x = x if layer.bias is None else x + layer.bias[:, None, None]
    x = F.leaky_relu(x, 0.2) * math.sqrt(2) if layer.act else x
    return x if gain == 1.0 else x * gain


def textbook_discriminator(d: Discriminator, x: Tensor) -> Tensor:
    for res in d.resolutions:
        block = getattr(d, f"b{res}")
        x = textbook_conv(block.fromrgb, x) if hasattr(block, "fromrgb") else x
        gain = math.sqrt(0.5)
        x = textbook_conv(block.skip, x, gain) + textbook_conv(block.conv1, textbook_conv(block.conv0, x), gain)
    x = textbook_conv(d.b4.conv, minibatch_stddev(x, d.b4.group)).flatten(1)
    return textbook_linear(d.b4.out, textbook_linear(d.b4.fc, x))


# One update.


def title(args: argparse.Namespace) -> str:
    return f"{args.resolution}x{args.resolution}, base {args.base}, max {args.max}, n {args.batch}"


def networks(args: argparse.Namespace) -> tuple[Generator, Discriminator]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        g = Generator(64, 64, args.resolution, args.channels, args.base, args.max)
        d = Discriminator(args.resolution, args.channels, args.base, args.max)
    return g, d


def update(
    g: Generator,
    d: Discriminator,
    real: Tensor,
    mapping: Callable[[Tensor], Tensor],
    synthesis: Callable[[Tensor], Tensor],
    score: Callable[[Tensor], Tensor],
) -> None:
    """Forward and backward passes of one step of the discriminator and one of the generator."""
    z = torch.randn(2, len(real), g.z_dim)
    g.requires_grad_(False)
    with torch.no_grad():
        fake = synthesis(mapping(z[0]))
    (logistic(-score(fake)) + logistic(score(real))).backward()
    g.requires_grad_(True)
    d.requires_grad_(False)
    logistic(score(synthesis(mapping(z[1])))).backward()
    d.requires_grad_(True)
    g.zero_grad(set_to_none=True)
    d.zero_grad(set_to_none=True)


def steps(g: Generator, d: Discriminator, real: Tensor) -> dict[str, Work]:
    return {
        "textbook": lambda: update(
            g, d, real, lambda z: textbook_mapping(g, z), lambda w: textbook_synthesis(g, w),
            lambda x: textbook_discriminator(d, x),
        ),
        "ours": lambda: update(g, d, real, g.mapping, lambda w: g.synthesis(w, "random"), d),
    }  # fmt: skip


def agreement(g: Generator, d: Discriminator) -> float:
    """Largest difference of the two forms' images and logits."""
    with torch.no_grad():
        ws = g.mapping(torch.randn(4, g.z_dim))
        ours, book = g.synthesis(ws), textbook_synthesis(g, ws, "const")
        return max(float((ours - book).abs().max()), float((d(ours) - textbook_discriminator(d, ours)).abs().max()))


def step(args: argparse.Namespace) -> None:
    g, d = networks(args)
    real = torch.randn(args.batch, args.channels, args.resolution, args.resolution)
    print(f"largest difference of images and logits: {agreement(g, d):.1e}")
    seconds = race(steps(g, d, real), args.repeats, args.clock)
    table(
        f"G and D step, {args.resolution}x{args.resolution}, base {args.base}, max {args.max}, n {args.batch}", seconds
    )
    print(", ".join(f"{name} {args.batch / statistics.median(s):.0f} images/s" for name, s in seconds.items()))


def tuned(args: argparse.Namespace) -> None:
    """Synthesis and its gradient: one image at a time, a batch with weights of every image, and with shared weights."""
    g, _ = networks(args)
    g.requires_grad_(False)
    ws = g.mapping(torch.randn(args.batch, g.z_dim))
    names = {k: p for k, p in g.synthesis.named_parameters() if "affine" not in k and "noise_strength" not in k}
    deltas = {name: torch.zeros(args.batch, *p.shape, requires_grad=True) for name, p in names.items()}
    codes = ws.clone().requires_grad_()

    def own(rows: slice) -> Tensor:
        return g.synthesis(ws[rows], deltas={name: d[rows] for name, d in deltas.items()}).square().mean()

    def alone() -> None:
        for i in range(args.batch):
            torch.autograd.grad(own(slice(i, i + 1)), list(deltas.values()))

    forms: dict[str, Work] = {
        "one image at a time": alone,
        "own weights": lambda: torch.autograd.grad(own(slice(None)), list(deltas.values())),
        "shared weights": lambda: torch.autograd.grad(g.synthesis(codes).square().mean(), codes),
    }
    table(f"Synthesis and gradient, {title(args)}", race(forms, args.repeats, args.clock))


MODES = {"step": step, "tuned": tuned}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("mode", choices=MODES)
    parser.add_argument("--base", type=int, default=1024)
    parser.add_argument("--max", type=int, default=32)
    parser.add_argument("--resolution", type=int, default=64)
    parser.add_argument("--channels", type=int, default=1)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--wall", action="store_true")
    args = parser.parse_args()
    args.clock = time.perf_counter if args.wall else time.process_time
    torch.manual_seed(0)
    print(f"python {versions()['python']}, torch {versions()['torch']}, {torch.get_num_threads()} threads")
    MODES[args.mode](args)


if __name__ == "__main__":
    main()
