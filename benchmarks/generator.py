"""The generator's training and what comes of it.

    python benchmarks/generator.py throughput [--base 1024 --max 32] [--resolution 64] [--repeats 5] [--plain] [--wall]
    python benchmarks/generator.py replayed [--base 1024 --max 64] [--batch 32] [--steps 48]
    python benchmarks/generator.py quality FILE --data TRAINING.toml [--embedding NAME] [--n 2000] [--draws 7]
    python benchmarks/generator.py factors FILE [--n 2000] [--seed 0]

`throughput` times whole training steps - codes, both networks' losses, gradients, Adam and the averaged generator - of
`audit.training.generator.step` and of the papers' textbook form (`benchmarks/networks.py`) with torch's default Adam,
turn about in one process: one step without regularisers, and the mean of 16 steps with R1 in every 16th and path length
in every 8th (left out with `--plain`). Printed are medians of the repeats and of their ratios. Times are the process's
CPU seconds, or wall time with `--wall`; threads are those of OMP_NUM_THREADS.

`replayed` needs a CUDA GPU and times the same steps, with two discriminators, the first twice as wide as the generator,
named kernel by kernel and replayed as CUDA graphs.

`quality` prints FID, precision and recall of n drawn images against n real ones of the training's data, in the
embedding that the training names or that is given (phantom-factors, inception, or the file of a domain embedding),
beside the same numbers between those real images and n others. One draw of either is uncertain by a fifth and more
where a few directions carry the embedding's variance, so images are drawn `--draws` times; printed are means and the
ratio of the mean FID to the mean floor with its 95 % interval (BCa bootstrap over the draws, which share their real
images).

`factors` asks the phantom's factor network what a generator of phantoms varies: for each causal factor that the network
reads on real images with an R2 of at least .5, the variance and the mean (in standard deviations of the real images)
among n drawn images against n real ones.
"""

import argparse
import copy
import statistics
import time
from pathlib import Path

import numpy as np
import torch
from networks import race, textbook_discriminator, textbook_mapping, textbook_synthesis
from scipy.stats import bootstrap
from torch import Tensor

from audit.data import phantom
from audit.data.load import load_images, training_split
from audit.embeddings.embedding import embed_all
from audit.embeddings.phantom_factors import load_phantom_factors
from audit.generator.files.load import load_generator
from audit.generator.stylegan2.losses import logistic
from audit.generator.stylegan2.networks import network_range
from audit.runtime.environment import choose_device, versions
from audit.storage import shipped
from audit.training.embedding.factors import r_squared
from audit.training.generator.config import GeneratorTrainConfig, load_generator_train_config
from audit.training.generator.graphs import Direct
from audit.training.generator.snapshot import compare, embed_drawn, fid_network, reference_of
from audit.training.generator.state import State
from audit.training.generator.step import Means, train_step
from audit.training.generator.stream import Reals

CYCLE = 16
READABLE = 0.5


class Textbook:
    """The same training in the papers' own order of operations."""

    def __init__(self, state: State, config: GeneratorTrainConfig) -> None:
        self.g, self.d = copy.deepcopy(state.g).to(memory_format=torch.contiguous_format), copy.deepcopy(state.d)
        self.d.to(memory_format=torch.contiguous_format)
        self.ema, self.config, self.step_number = copy.deepcopy(self.g), config, 0
        self.g_opt = torch.optim.Adam(self.g.parameters(), lr=config.lr, betas=(0.0, 0.99))
        self.d_opt = torch.optim.Adam(self.d.parameters(), lr=config.lr, betas=(0.0, 0.99))
        self.path_mean = 0.0

    def codes(self, n: int) -> Tensor:
        first, second = (textbook_mapping(self.g, torch.randn(n, self.g.z_dim)) for _ in range(2))
        cut = torch.randint(1, self.g.num_ws, (n, 1))
        late = (torch.arange(self.g.num_ws)[None] >= cut) & (torch.rand(n, 1) < self.config.style_mixing)
        return torch.where(late[..., None], second, first)

    def step(self, real: Tensor, regularised: bool) -> None:
        g, d, config = self.g, self.d, self.config
        r1 = regularised and self.step_number % config.r1_interval == 0
        path = regularised and self.step_number % config.path_length_interval == 0
        real = network_range(real.float() / 255)
        with torch.no_grad():
            fake = textbook_synthesis(g, self.codes(len(real)))
        loss = logistic(-textbook_discriminator(d, fake)) + logistic(textbook_discriminator(d, real))
        self.d_opt.zero_grad()
        loss.backward()
        if r1:
            seen = real.clone().requires_grad_()
            (gradient,) = torch.autograd.grad(textbook_discriminator(d, seen).sum(), seen, create_graph=True)
            (gradient.square().sum((1, 2, 3)).mean() * (0.5 * config.r1_gamma * config.r1_interval)).backward()
        self.d_opt.step()
        d.requires_grad_(False)
        self.g_opt.zero_grad()
        loss = logistic(textbook_discriminator(d, textbook_synthesis(g, self.codes(len(real)))))
        loss.backward()
        if path:
            ws = self.codes(len(real) // 2)
            images = textbook_synthesis(g, ws)
            noise = torch.randn_like(images) / images.shape[-1]
            (gradient,) = torch.autograd.grad((images * noise).sum(), ws, create_graph=True)
            lengths = gradient.square().sum(2).mean(1).sqrt()
            self.path_mean += 0.01 * (lengths.mean().item() - self.path_mean)
            ((lengths - self.path_mean).square().mean() * (2 * config.path_length_interval)).backward()
        self.g_opt.step()
        d.requires_grad_(True)
        with torch.no_grad():
            for average, new in zip(self.ema.parameters(), g.parameters(), strict=True):
                average.mul_(0.99).add_(new, alpha=0.01)
        self.step_number += 1


def throughput(args: argparse.Namespace) -> None:
    shape = (args.channels, args.resolution, args.resolution)
    real = torch.randint(0, 256, (args.batch, *shape), dtype=torch.uint8)
    labels = torch.zeros(args.batch, dtype=torch.long)
    print(f"{shape[0]}x{args.resolution}x{args.resolution}, base {args.base}, max {args.max}, batch {args.batch}")
    for regularised in (False,) if args.plain else (False, True):
        settings = {} if regularised else {"r1_gamma": 0.0, "path_length_weight": 0.0}
        config = GeneratorTrainConfig.model_validate(
            {"data": {"path": "phantom"}, "channel_base": args.base, "channel_max": args.max, "batch_size": args.batch,
             "augmentation": "none", **settings}
        ).resolved(args.resolution)  # fmt: skip
        state = State(config, shape, 0, torch.device("cpu"))
        book, steps = Textbook(state, config), CYCLE if regularised else 1

        def theirs(book: Textbook = book, steps: int = steps, regularised: bool = regularised) -> None:
            for _ in range(steps):
                book.step(real, regularised)

        def ours(state: State = state, config: GeneratorTrainConfig = config, steps: int = steps) -> None:
            for _ in range(steps):
                train_step(state, config, real, labels, Means())

        seconds = race({"textbook": theirs, "ours": ours}, args.repeats, args.clock)
        ratio = statistics.median(a / b for a, b in zip(seconds["textbook"], seconds["ours"], strict=True))
        speeds = [args.batch * steps / statistics.median(seconds[name]) for name in ("textbook", "ours")]
        kind = "R1 and path length" if regularised else "no regularisers"
        print(
            f"{kind}: textbook {speeds[0]:.0f} images/s, ours {speeds[1]:.0f} images/s, ratio {ratio:.2f}", flush=True
        )


def replayed(args: argparse.Namespace) -> None:
    if not torch.cuda.is_available():
        raise SystemExit("replayed needs a CUDA GPU: graphs are recorded there")
    device, shape = torch.device("cuda"), (1, args.resolution, args.resolution)
    real = torch.randint(0, 256, (args.batch, *shape), dtype=torch.uint8, device=device)
    labels = torch.zeros(args.batch, dtype=torch.long, device=device)
    config = GeneratorTrainConfig.model_validate(
        {"data": {"path": "phantom"}, "channel_base": args.base, "channel_max": args.max, "batch_size": args.batch,
         "discriminator_channel_base": 2 * args.base, "discriminator_channel_max": 2 * args.max,
         "second_discriminator": "scales-spread", "augmentation": "none", "path_length_weight": 0.0}
    ).resolved(args.resolution)  # fmt: skip
    seconds = []
    for graphs in (False, True):
        state, means = State(config, shape, 0, device), Means()
        if not graphs:
            state.parts = Direct()
        for step in range(64 + args.steps):  # the steps with R1, every 16th, are recorded at the fourth
            if step == 64:
                torch.cuda.synchronize()
                began = time.perf_counter()
            train_step(state, config, real, labels, means)
        torch.cuda.synchronize()
        seconds.append((time.perf_counter() - began) / args.steps)
    print(
        f"{torch.cuda.get_device_name()}: {1e3 * seconds[0]:.1f} ms a step, {1e3 * seconds[1]:.1f} replayed, "
        f"ratio {seconds[0] / seconds[1]:.2f}"
    )


def quality(args: argparse.Namespace) -> None:
    config = load_generator_train_config(args.data)
    if args.embedding:
        config = config.model_copy(update={"fid_embedding": args.embedding})
    device = choose_device(config.device)
    g = load_generator(args.file, device).generator
    network = fid_network(config.fid_embedding, config.data.is_phantom, device)
    if network is None:
        raise SystemExit("no embedding: set fid_embedding, or put Inception's weights where the package finds them")
    data = load_images(config.data, config.seed)
    chosen = data.split(training_split(config.data, data, config.split))
    n = args.n or config.fid_images
    scores, floors = [], []
    with Reals(chosen, config.batch_size, config.seed, device, config.cache_mb) as reals:
        for seed in range(args.seed, args.seed + args.draws):
            reference = reference_of(reals, network, n, seed, device)
            scores.append(compare(embed_drawn(g, network, reference.labels, seed), reference.real))
            floors.append(reference.floor)
    print(
        f"{args.file}: embedding {network.name} {network.weights_sha256[:12]}, {n} drawn, {len(reference.real)} real, "
        f"means (standard deviations) of {args.draws} draws from seed {args.seed}"
    )
    print(f"{'':10} {'drawn':>16} {'real against real':>18} (n = {int(reference.floor['n'])})")
    for name in scores[0]:
        print(f"{name:10} {mean_and_spread(scores, name):>16} {mean_and_spread(floors, name):>18}")
    fid, floor = ([row["fid"] for row in rows] for rows in (scores, floors))
    interval = ""
    if args.draws > 2:
        # The ratio of means, not the mean of ratios, which a small floor would rule.
        found = bootstrap(
            (fid, floor), lambda a, b, axis: a.mean(axis) / b.mean(axis), paired=True, rng=np.random.default_rng(0)
        ).confidence_interval
        interval = f" [{found.low:.2f}, {found.high:.2f}]"
    print(f"FID / floor: {statistics.mean(fid) / statistics.mean(floor):.2f}{interval}")


def at_least_one(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is less than 1")
    return value


def mean_and_spread(rows: list[dict[str, float]], name: str) -> str:
    values = [row[name] for row in rows]
    spread = f" ({statistics.stdev(values):.3f})" if len(values) > 1 else ""
    return f"{statistics.mean(values):.3f}{spread}"


@torch.inference_mode()
def factors(args: argparse.Namespace) -> None:
    network = load_phantom_factors(shipped.path("embeddings", "phantom-factors"))
    g = load_generator(args.file, torch.device("cpu")).generator
    explained = r_squared(network, args.n, args.seed, "factors/evaluation")
    real = network.head(embed_all(network, phantom.sample(args.n, args.seed).images))
    drawn = network.head(embed_drawn(g, network, torch.zeros(args.n, dtype=torch.long), args.seed))
    ratios, shifts = drawn.var(0) / real.var(0), (drawn.mean(0) - real.mean(0)) / real.std(0)
    print(f"{args.file}: {args.n} drawn, {args.n} real, seed {args.seed}")
    print(f"{'factor':24} {'variance ratio':>14} {'mean':>6} {'R2 on real':>10}")
    for i in ratios.argsort():
        if explained[i] >= READABLE:
            print(f"{network.factor_names[i]:24} {ratios[i]:14.2f} {shifts[i]:6.2f} {explained[i]:10.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    fast = commands.add_parser("throughput")
    for name, default in (("base", 1024), ("max", 32), ("resolution", 64), ("channels", 1), ("batch", 32)):
        fast.add_argument(f"--{name}", type=int, default=default)
    fast.add_argument("--repeats", type=int, default=5)
    fast.add_argument("--plain", action="store_true", help="without the steps with regularisers")
    fast.add_argument("--wall", action="store_true")
    graphs = commands.add_parser("replayed")
    for name, default in (("base", 1024), ("max", 64), ("resolution", 64), ("batch", 32), ("steps", 48)):
        graphs.add_argument(f"--{name}", type=int, default=default)
    good = commands.add_parser("quality")
    good.add_argument("file")
    good.add_argument("--data", type=Path, required=True, help="the TOML file of the generator's training")
    good.add_argument("--embedding", help="in place of the training's fid_embedding")
    good.add_argument("--n", type=at_least_one, help="default: fid_images of the training")
    good.add_argument("--seed", type=int, default=0, help="of the first draw; the others follow")
    good.add_argument("--draws", type=at_least_one, default=7)
    varied = commands.add_parser("factors")
    varied.add_argument("file")
    varied.add_argument("--n", type=at_least_one, default=2000)
    varied.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    print(f"python {versions()['python']}, torch {versions()['torch']}, {torch.get_num_threads()} threads")
    if args.command == "throughput":
        args.clock = time.perf_counter if args.wall else time.process_time
        torch.manual_seed(0)
        throughput(args)
    else:
        {"replayed": replayed, "quality": quality, "factors": factors}[args.command](args)


if __name__ == "__main__":
    main()
