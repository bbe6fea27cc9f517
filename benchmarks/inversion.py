"""Inversion: how faithful, how fast in batches, what the form of the weight changes costs, how much memory it takes.

    python benchmarks/inversion.py fidelity [--data phantom] [--generator shipped:phantom] [--n 32]
    python benchmarks/inversion.py deltas   [--ranks 1 2 4 8 16]
    python benchmarks/inversion.py speed    [--batch 16] [--steps 20] [--repeats 5]
    python benchmarks/inversion.py memory   [--limits 512MB 1GB] [--side 64]

`fidelity`: error by method, Frechet distance of inversions to the very images in the named embedding, and whether a
latent step still does what it did. `deltas`: fidelity against bytes kept per image. `speed`: a batch against the same
images one at a time, by the same code with the same result; medians of ratios taken in one process. `memory`: the
images that `max_memory` lets be inverted at once, and the growth of the process (Linux).
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from audit.config import DataConfig, InversionConfig
from audit.data.load import load_data
from audit.embeddings.canonical import available, load_lpips
from audit.embeddings.embedding import FeatureNetwork, embed_all
from audit.embeddings.resolve import Request, resolve
from audit.generator.files.load import LoadedStyleGAN2, load_generator
from audit.generator.stylegan2.networks import Generator
from audit.inversion.codes import candidate_codes, spread
from audit.inversion.encoder import Encoder, encoder_beside, load_encoder
from audit.inversion.invert import Inversion, invert
from audit.inversion.inverter import Inverter
from audit.inversion.loss import squared_error, targets_of
from audit.inversion.pivot import optimise_pivots
from audit.inversion.pivotal import editability, tune
from audit.metrics.fid import frechet_distance
from audit.runtime.seeds import stage_generator


class Bench:
    """Generator, encoder, feature network and images that a comparison stands on."""

    def __init__(self, args: argparse.Namespace):
        self.device = torch.device(args.device)
        self.loaded: LoadedStyleGAN2 = load_generator(args.generator, self.device)
        self.generator: Generator = self.loaded.generator
        file = args.encoder or encoder_beside(args.generator)
        self.encoder: Encoder | None = None if file is None else load_encoder(file, self.device)
        config = DataConfig(path=args.data, image_size=self.generator.resolution)
        test = load_data(config, args.seed).split("test")
        order = torch.randperm(len(test), generator=stage_generator(args.seed, "benchmark images"))[: args.n]
        self.images: Tensor = test.select(order.tolist()).images().to(self.device)
        request = Request("metrics.perceptual", self.device, config.is_phantom, self.loaded)
        self.network: FeatureNetwork = resolve("auto", request, "vectors and maps")
        self.lpips = {}
        for net in ("alex", "vgg"):
            if not isinstance(available()[f"lpips-v0.1-{net}"], str) and self.generator.resolution >= 32:
                self.lpips[net] = load_lpips(net).to(self.device)

    def perceived(self, drawn: Tensor) -> str:
        """LPIPS in both networks, where their weights are on the machine."""
        values = [net.distance_all(drawn.cpu(), self.images.cpu()).mean() for net in self.lpips.values()]
        return " ".join(f"{float(v):>10.4f}" for v in values) if values else "  (no LPIPS weights)"

    def start(self, config: InversionConfig, seed: int) -> Tensor:
        """Optimised pivots of the images."""
        codes = candidate_codes(self.generator, seed)
        if self.encoder is None:
            optimised = config.model_copy(update={"method": "optimise"})
            return invert(Inverter(self.generator, optimised, seed, self.network), self.images).pivots.to(self.device)
        with torch.no_grad():
            start = self.encoder(self.images).contiguous()
        targets = targets_of(self.images, self.network)
        return optimise_pivots(Inverter(self.generator, config, 0, self.network), start, targets, spread(codes))


def head(args: argparse.Namespace, bench: Bench) -> None:
    print(
        f"torch {torch.__version__}, {torch.get_num_threads()} threads, {args.device}, {Path(args.generator).name} "
        f"({bench.generator.resolution}x{bench.generator.resolution}, {bench.loaded.sha256[:12]}), "
        f"data {Path(args.data).name}, n = {len(bench.images)}, seed {args.seed}, embedding {bench.network.name}"
    )


def settings(args: argparse.Namespace, **values: object) -> InversionConfig:
    given = {} if args.steps is None else {"tuning_steps": args.steps}
    return InversionConfig.model_validate({"batch_size": args.batch} | given | values)


@torch.no_grad()
def kept(bench: Bench, pivots: Tensor, additions: dict[str, Tensor], seed: int) -> Tensor:
    return editability(bench.generator, pivots, {k: v.to(bench.device) for k, v in additions.items()}, seed)


def fidelity(args: argparse.Namespace, bench: Bench) -> None:
    real = embed_all(bench.network, bench.images)
    lpips = " ".join(f"{'LPIPS ' + n:>10}" for n in bench.lpips)
    print(f"{'method':10} {'MSE':>9} {'worst':>9} {lpips} {'FID':>9} {'editability':>11} {'worst':>6} {'s/image':>8}")
    for method in ("encoder", "optimise", "pti"):
        if method == "encoder" and bench.encoder is None:
            continue
        began = time.perf_counter()
        config = settings(args, method=method)
        found = invert(Inverter(bench.generator, config, args.seed, bench.network, bench.encoder), bench.images)
        seconds = (time.perf_counter() - began) / len(bench.images)
        distance = frechet_distance(embed_all(bench.network, found.images), real)
        edits = torch.ones(len(found.mse))
        if found.deltas:
            edits = kept(bench, found.pivots.to(bench.device), found.deltas.read(), args.seed).cpu()
        print(
            f"{method:10} {float(found.mse.mean()):>9.2e} {float(found.mse.max()):>9.2e} "
            f"{bench.perceived(found.images)} {distance:>9.4g} {float(edits.mean()):>11.3f} "
            f"{float(edits.min()):>6.3f} {seconds:>8.2f}",
            flush=True,
        )


def deltas(args: argparse.Namespace, bench: Bench) -> None:
    config = settings(args)
    pivots, targets = bench.start(config, args.seed), targets_of(bench.images, bench.network)
    lpips = " ".join(f"{'LPIPS ' + n:>10}" for n in bench.lpips)
    print(f"{'form':12} {'bytes/image':>11} {'MSE':>9} {'worst':>9} {lpips} {'editability':>11} {'s/image':>8}")
    forms = [("full", 1), *(("low-rank", rank) for rank in args.ranks)]
    for form, rank in forms:
        began = time.perf_counter()
        changed = config.model_copy(update={"deltas": form, "rank": rank})
        found = tune(Inverter(bench.generator, changed, args.seed, bench.network), pivots, targets)
        seconds = (time.perf_counter() - began) / len(pivots)
        additions = found.read()
        with torch.no_grad():
            drawn = bench.generator.images(pivots, deltas=additions)
        error, edits = squared_error(drawn, bench.images), kept(bench, pivots, additions, args.seed)
        print(
            f"{form if form == 'full' else f'rank {rank}':12} {found.bytes_per_image:>11} {float(error.mean()):>9.2e} "
            f"{float(error.max()):>9.2e} {bench.perceived(drawn)} {float(edits.mean()):>11.3f} {seconds:>8.2f}",
            flush=True,
        )


def speed(args: argparse.Namespace, bench: Bench) -> None:
    config = settings(args, stop_mse=0.0).model_copy(update={"tuning_steps": args.steps or 20})
    n = min(args.batch, len(bench.images))
    images, network, generator = bench.images[:n], bench.network, bench.generator
    rng = stage_generator(args.seed, "benchmark pivots")
    pivots = generator.random_codes(n, rng)[:, None].expand(-1, generator.num_ws, -1).contiguous()
    targets = targets_of(images, network)

    def wait() -> float:
        if bench.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    def error(rows: slice, additions: dict[str, Tensor]) -> Tensor:
        with torch.no_grad():
            return squared_error(generator.images(pivots[rows], deltas=additions), images[rows])

    print(
        f"{'form':9} {'batch':>5} {'steps':>5} {'img/s batched':>13} {'one by one':>10} {'ratio':>6} {'PSNR apart':>10}"
    )
    for form in ("full", "low-rank"):
        changed = config.model_copy(update={"deltas": form})
        ratios, together, alone, apart = [], [], [], 0.0
        for repeat in range(args.repeats + 1):
            began = wait()
            whole = tune(Inverter(generator, changed, args.seed, network), pivots, targets)
            middle = wait()
            ones = []
            for i in range(n):
                row = torch.tensor([i], device=bench.device)
                ones.append(tune(Inverter(generator, changed, args.seed, network), pivots[row], targets.select(row)))
            end = wait()
            if repeat == 0:  # warms up, and shows that both end at the same place
                one = torch.cat([error(slice(i, i + 1), d.read()) for i, d in enumerate(ones)])
                apart = float((10 * (error(slice(0, n), whole.read()) / one).log10()).abs().max())
                continue
            together.append(n / (middle - began))
            alone.append(n / (end - middle))
            ratios.append(together[-1] / alone[-1])
        print(
            f"{form:9} {n:>5} {changed.tuning_steps:>5} {statistics.median(together):>13.2f} "
            f"{statistics.median(alone):>10.2f} {statistics.median(ratios):>6.2f} {apart:>7.4f} dB",
            flush=True,
        )


def peak(reset: bool = False) -> int:
    """Largest memory that the process held since the last reset, in bytes (Linux)."""
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def memory(args: argparse.Namespace, bench: Bench) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(args.seed)
        wide = Generator(z_dim=64, w_dim=64, resolution=args.side, channel_base=64 * args.side, channel_max=256).eval()
    wide.requires_grad_(False)
    images = torch.rand(args.batch, 1, args.side, args.side, generator=stage_generator(args.seed, "benchmark images"))
    print(f"{'form':9} {'max_memory':>10} {'images at once':>14} {'MB measured':>11}")
    for form in ("full", "low-rank"):
        for limit in args.limits:
            sizes: list[int] = []

            def keep(given: Tensor, compute: Callable[[], Inversion], sizes: list[int] = sizes) -> Inversion:
                sizes.append(len(given))
                return compute()

            values = {"deltas": form, "rank": 8, "stop_mse": 0.0, "max_memory": limit, "tuning_steps": 5}
            config = settings(args, **values).model_copy(update={"pivot_steps": 5, "tuning_steps": 5})
            invert(Inverter(wide, config, args.seed), images[:1])  # loads what the first step loads
            before = peak(reset=True)
            invert(Inverter(wide, config, args.seed), images, keep=keep)
            print(f"{form:9} {limit:>10} {sizes[0]:>14} {(peak() - before) / 1e6:>11.0f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = {"fidelity": fidelity, "deltas": deltas, "speed": speed, "memory": memory}
    parser.add_argument("command", choices=commands)
    parser.add_argument("--data", default="phantom", help="'phantom' or a path that an audit's data.path takes")
    parser.add_argument("--generator", default="shipped:phantom")
    parser.add_argument("--encoder", help="default: the one beside the generator")
    parser.add_argument("--n", type=int, default=32)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--steps", type=int, help="of tuning; default: the configuration's, and 20 for speed")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 4, 8, 16])
    parser.add_argument("--limits", nargs="+", default=["512MB", "1GB"])
    parser.add_argument("--side", type=int, default=64, help="pixels of the images of memory")
    args = parser.parse_args()
    bench = Bench(args)
    head(args, bench)
    commands[args.command](args, bench)


if __name__ == "__main__":
    main()
