"""The attacks against named peers: same models, images, radius and budget; robust accuracy and wall-time ratio.

    python benchmarks/attacks.py pgd [--images 256] [--repeats 5]
    python benchmarks/attacks.py ensemble --models DIR --data mnist_test.npz [--images 50] [--repeats 5]
    python benchmarks/attacks.py known --models DIR --data mnist_test.npz [--images 500]
    python benchmarks/attacks.py steps [--images 400] [--steps 50 100]
    python benchmarks/attacks.py memory
    python benchmarks/attacks.py large [--network resnet50] [--images 32] [--limits none 2GB 1GB]
    python benchmarks/attacks.py speed [--networks resnet18 ...] [--images 8] [--steps 5] [--repeats 2]

Peers attack the same classifier in torch's default memory layout, as a user would hand it over; ours is as
`load_classifier` lays it out, channels last. DIR holds the two networks of AdverTorch's MNIST example as safetensors,
and `lenet5.py`. A time ratio is peer / ours, the median over repeats that each time one after the other, the order
changing; robust accuracy is that of the last repeat. `memory` measures each number of images, `large` each
`max_memory`, and `speed` each pass, in a process of its own.

`speed` answers and attacks images of 224x224 with networks of random weights: at 8/255, where nearly all fall at once,
and at a radius so small that none falls, so that both sides do all steps on all images. Its times are of the processor.
"""

import argparse
import copy
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from audit.classifiers.classifier import Classifier
from audit.classifiers.load import load_classifier
from audit.classifiers.slices import Slices
from audit.config import ClassifierConfig, DataConfig, RobustnessConfig, load_config
from audit.data.audit_set import AuditSet
from audit.data.demo import demo_config
from audit.data.load import load_data
from audit.data.phantom import CLASS_NAMES, sample
from audit.robustness.attacks.pgd import pgd_attack
from audit.robustness.attacks.registry import stages_of
from audit.robustness.balls import attacked_rows
from audit.robustness.ensemble import run_cascade
from audit.robustness.evaluate import robust_accuracy
from audit.runtime.environment import peak_memory_mb, versions
from audit.runtime.seeds import stage_generator

Attack = Callable[[int], Tensor]
"""Maps the repeat's number to adversarial images."""


def header(*packages: str) -> str:
    from importlib.metadata import version

    found = {**{k: versions()[k] for k in ("python", "torch")}, **{name: version(name) for name in packages}}
    return ", ".join(f"{k} {v}" for k, v in found.items()) + f", {torch.get_num_threads()} threads"


def standing(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    with torch.no_grad():
        return float((model(images).argmax(1) == labels).float().mean())


def race(ours: Attack, peer: Attack, repeats: int) -> tuple[Tensor, Tensor, float]:
    """Time both `repeats` times, turn about who is first; returns their last images and the median of peer / ours."""
    ratios, found = [], {}
    for repeat in range(repeats):
        seconds = {}
        pair = [("ours", ours), ("peer", peer)]
        for name, attack in pair if repeat % 2 == 0 else pair[::-1]:
            began = time.perf_counter()
            with torch.random.fork_rng():
                torch.manual_seed(repeat)  # the peers draw from the global stream
                found[name] = attack(repeat)
            seconds[name] = time.perf_counter() - began
        ratios.append(seconds["peer"] / seconds["ours"])
    return found["ours"], found["peer"], statistics.median(ratios)


def default_layout(model: nn.Module) -> nn.Module:
    return copy.deepcopy(model).to(memory_format=torch.contiguous_format).eval()


def phantom_models() -> list[tuple[str, nn.Module]]:
    return [
        (name, load_classifier(ClassifierConfig(name=name, checkpoint=f"shipped:{name}"), (1, 64, 64), CLASS_NAMES))
        for name in ("plain", "trades")
    ]


def mnist(models: Path, data: Path) -> tuple[list[tuple[str, nn.Module]], AuditSet]:
    dataset = load_data(DataConfig(path=str(data)), 0).split("test")
    loaded = []
    for name in ("plain", "robust"):
        config = ClassifierConfig(
            name=name,
            factory=f"{models / 'lenet5.py'}:LeNet5",
            checkpoint=str(models / f"mnist_lenet5_{name}.safetensors"),
        )
        loaded.append((name, load_classifier(config, dataset.image_shape, dataset.class_names)))
    return loaded, dataset


def pgd(args: argparse.Namespace) -> None:
    import foolbox
    import torchattacks

    batch, eps = sample(args.images, seed=2024), 8 / 255
    images, labels = batch.images, batch.labels
    print(f"{header('torchattacks', 'foolbox')}; n = {args.images}, eps = 8/255, medians of {args.repeats}")
    print(f"{'model':8} {'steps':>5} {'peer':>13} {'robust, ours':>13} {'peer':>8} {'time ratio':>11}")
    for name, model in phantom_models():
        common = default_layout(model)
        wrapped = foolbox.PyTorchModel(common, bounds=(0, 1), device="cpu")
        for steps in (10, 40, 100):
            step_size = 2.5 * eps / steps

            def ours(repeat: int, model=model, steps=steps, step_size=step_size) -> Tensor:
                generator = stage_generator(repeat, "benchmark")
                return pgd_attack(model, images, labels, eps=eps, steps=steps, step_size=step_size, generator=generator)

            def with_torchattacks(_: int, model=common, steps=steps, step_size=step_size) -> Tensor:
                return torchattacks.PGD(model, eps=eps, alpha=step_size, steps=steps)(images, labels)

            def with_foolbox(_: int, wrapped=wrapped, steps=steps, step_size=step_size) -> Tensor:
                attack = foolbox.attacks.LinfPGD(abs_stepsize=step_size, steps=steps, random_start=True)
                return attack(wrapped, images, labels, epsilons=eps)[1]

            for peer_name, peer in (("torchattacks", with_torchattacks), ("foolbox", with_foolbox)):
                a, b, ratio = race(ours, peer, args.repeats)
                kept = [100 * standing(model, found, labels) for found in (a, b)]
                print(
                    f"{name:8} {steps:>5} {peer_name:>13} {kept[0]:>12.1f}% {kept[1]:>7.1f}% {ratio:>11.2f}", flush=True
                )


def ensemble(args: argparse.Namespace) -> None:
    from pyautoattack import AutoAttack

    models, dataset = mnist(args.models, args.data)
    chosen = attacked_rows(dataset, args.images, 0)
    images, labels = chosen.images(), chosen.row_labels
    print(f"{header('pyautoattack')}; MNIST, K = 10, n = {args.images}, eps = {args.eps}, medians of {args.repeats}")
    print(f"{'model':8} {'robust, ours':>13} {'pyautoattack':>13} {'time ratio':>11}   standing after each stage")
    for name, model in models:
        stages: list[str] = []
        common = default_layout(model)

        def ours(repeat: int, model=model, stages=stages) -> Tensor:
            cascade = run_cascade(
                model, images, labels, eps=args.eps, norm="Linf", attacks=stages_of(RobustnessConfig()), seed=repeat,
                seed_stage="benchmark",
            )  # fmt: skip
            stages[:] = [f"{stage.attack} {stage.standing}" for stage in cascade.stages]
            return cascade.images

        def peer(repeat: int, model=common) -> Tensor:
            attack = AutoAttack(model, norm="Linf", eps=args.eps, version="standard", device="cpu", seed=repeat)
            return attack.run_standard_evaluation(images, labels, batch_size=len(images))[0]

        a, b, ratio = race(ours, peer, args.repeats)
        kept = [100 * standing(model, found, labels) for found in (a, b)]
        print(f"{name:8} {kept[0]:>12.1f}% {kept[1]:>12.1f}% {ratio:>11.2f}   {', '.join(stages)}", flush=True)


def known(args: argparse.Namespace) -> None:
    models, dataset = mnist(args.models, args.data)
    config = RobustnessConfig(
        n=args.images, eps=("0.3",), steps=40, step_size=0.01, attacks=("pgd", "ensemble"), batch_size=250
    )
    print(
        f"{header()}; MNIST, eps = 0.3, n = {args.images}, seed 0; known: plain 0 %, robust 93.0 % under PGD-40 of 0.01"
    )
    for name, model in models:
        began = time.perf_counter()
        robust = robust_accuracy(model, dataset, config, seed=0).robust
        for kind, attack in (("PGD-40", robust.pgd["0.3"]), ("ensemble", robust.ensemble["0.3"])):
            share = attack.robust_accuracy
            print(
                f"{name:8} {kind:9} {100 * share.value:5.1f} % [{100 * share.low:.1f}, {100 * share.high:.1f}]",
                end="  ",
            )
            print(", ".join(f"{stage.attack} {stage.standing}" for stage in attack.stages))
        print(f"{name:8} {time.perf_counter() - began:.0f} s", flush=True)


class Endless:
    """Images of noise that are made when they are read."""

    def __call__(self, row: int) -> np.ndarray:
        return np.random.default_rng(row).integers(0, 256, (64, 64), dtype=np.uint8)


def steps(args: argparse.Namespace) -> None:
    """Attack the demonstration's classifiers by its ensemble with several numbers of steps."""
    config = load_config(demo_config())
    audited = load_data(config.data, config.seed).split(config.data.audit_split)
    radii = config.robustness.eps
    print(f"{header()}; n = {args.images}, images that stand at {', '.join(radii)}, seconds of processor time")
    for one in config.classifiers:
        model = load_classifier(one, (1, 64, 64), CLASS_NAMES)
        for number in args.steps:
            ensemble_of = config.robustness.ensemble.model_copy(update={"apgd_steps": number})
            changed = {"n": args.images, "attacks": ("ensemble",), "trust": None, "ensemble": ensemble_of}
            settings, began = config.robustness.model_copy(update=changed), time.process_time()
            found = robust_accuracy(model, audited, settings, config.seed).robust.ensemble
            left = [round(found[eps].robust_accuracy.value * args.images) for eps in radii]
            print(f"{one.name:14} {number:>5} steps {left} {time.process_time() - began:>8.1f}", flush=True)


def peak(n: int) -> float:
    """Peak memory in MB of attacking `n` images of 64x64 by two steps of PGD."""
    dataset = AuditSet(
        read_image=Endless(),
        labels=np.zeros(n, dtype=np.int64),
        class_names=CLASS_NAMES,
        ids=tuple(map(str, range(n))),
        splits=np.full(n, "test"),
        image_shape=(1, 64, 64),
    )
    model = nn.Sequential(nn.AvgPool2d(8), nn.Flatten(), nn.Linear(64, len(CLASS_NAMES)))
    robust_accuracy(model, dataset, RobustnessConfig(n=n, eps=("8/255",), steps=2), seed=0)
    return peak_memory_mb()


def memory(args: argparse.Namespace) -> None:
    print(f"{header()}; PGD, batches of 128, images of 64x64")
    peaks = []
    for n in args.sizes:
        out = subprocess.run([sys.executable, __file__, "peak", str(n)], capture_output=True, text=True, check=True)
        peaks.append(float(out.stdout.split()[-1]))
        print(f"{n:>7} images: peak {peaks[-1]:.0f} MB", flush=True)
    print(f"ratio {peaks[-1] / peaks[0]:.3f}")


def large_peak(network: str, n: int, limit: str) -> None:
    """Print what one step of PGD on a batch of `n` images adds to the process: MB, seconds, images at a time."""
    from timm import create_model

    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = create_model(network, num_classes=10).eval()
    names = tuple(map(str, range(10)))
    classifier = Classifier(model, name=network, class_names=names, input_shape=(3, 224, 224))
    if limit != "none":
        classifier.slices = Slices(network, limit)
    images = torch.rand(n, 3, 224, 224, generator=stage_generator(0, "benchmark"))
    with torch.no_grad():
        labels = torch.cat([classifier(part).argmax(1) for part in images.split(1)])
    before, began = peak_memory_mb(), time.perf_counter()
    pgd_attack(classifier, images, labels, eps=8 / 255, steps=1, generator=stage_generator(0, "benchmark"))
    print(classifier.slices.said() if classifier.slices is not None else None)
    print(f"{peak_memory_mb() - before:.0f} {time.perf_counter() - began:.1f}")


def large(args: argparse.Namespace) -> None:
    print(f"{header('timm')}; one step of PGD, {args.network} of random weights, a batch of {args.images} at 224x224")
    for limit in args.limits:
        command = [sys.executable, __file__, "large-peak", args.network, str(args.images), limit]
        out = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
        grown, seconds = out[-1].split()
        print(f"max_memory {limit:>5}: {grown:>6} MB more, {seconds:>6} s   {out[-2]}", flush=True)


NOTHING_FALLS = 1e-6
"""A radius at which no decision changes."""


def speed_once(network: str, who: str, n: int, steps: int, eps: float) -> None:
    """Print what the answers to `n` images and PGD on them take: processor seconds, wall seconds, MB more."""
    import torchattacks
    from timm import create_model

    with torch.random.fork_rng():
        torch.manual_seed(0)
        model: nn.Module = create_model(network, num_classes=10).eval()
    images = torch.rand(n, 3, 224, 224, generator=stage_generator(0, "benchmark"))
    if who == "ours":
        names = tuple(map(str, range(10)))
        model = Classifier(model, name=network, class_names=names, input_shape=(3, 224, 224)).eval()
        model.prefer_channels_last()

    def work(some: Tensor) -> None:
        with torch.no_grad():
            labels = model(some).argmax(1)
        if who == "ours":
            pgd_attack(model, some, labels, eps=eps, steps=steps, generator=stage_generator(0, "benchmark"))
        else:
            torchattacks.PGD(model, eps=eps, alpha=2.5 * eps / steps, steps=steps)(some, labels)

    work(images[:1])  # the first pass sets up what the libraries keep
    before, cpu, wall = peak_memory_mb(), time.process_time(), time.perf_counter()
    work(images)
    print(time.process_time() - cpu, time.perf_counter() - wall, peak_memory_mb() - before)


def speed(args: argparse.Namespace) -> None:
    print(
        f"{header('timm', 'torchattacks')}; clean and PGD of {args.steps} steps, {args.images} images of 224x224, "
        f"medians of {args.repeats}"
    )
    for network in args.networks:
        for eps in (8 / 255, NOTHING_FALLS):
            found: dict[str, list[list[float]]] = {"ours": [], "torchattacks": []}
            for _ in range(args.repeats):
                for who, rows in found.items():
                    given = [network, who, str(args.images), str(args.steps), str(eps)]
                    command = [sys.executable, __file__, "speed-once", *given]
                    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
                    rows.append([float(value) for value in out.split()[-3:]])
            pairs = list(zip(found["torchattacks"], found["ours"], strict=True))
            ratios = [statistics.median(theirs[what] / ours[what] for theirs, ours in pairs) for what in range(3)]
            each = {
                who: f"{args.images / statistics.median(row[0] for row in rows):.2f} images a processor second, "
                f"{statistics.median(row[2] for row in rows):.0f} MB"
                for who, rows in found.items()
            }
            print(
                f"{network:24} eps {eps:.2g}: ours {each['ours']}; torchattacks {each['torchattacks']}; ratios: "
                f"processor time {ratios[0]:.2f}, wall time {ratios[1]:.2f}, memory {ratios[2]:.2f}",
                flush=True,
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    for name, run, images in (("pgd", pgd, 256), ("ensemble", ensemble, 50), ("known", known, 500)):
        command = commands.add_parser(name)
        command.set_defaults(run=run)
        command.add_argument("--images", type=int, default=images)
        command.add_argument("--repeats", type=int, default=5)
        if name != "pgd":
            command.add_argument("--models", type=Path, required=True)
            command.add_argument("--data", type=Path, required=True)
            command.add_argument("--eps", type=float, default=0.3)
    stepped = commands.add_parser("steps")
    stepped.set_defaults(run=steps)
    stepped.add_argument("--images", type=int, default=400)
    stepped.add_argument("--steps", type=int, nargs="+", default=(50, 100))
    flat = commands.add_parser("memory")
    flat.set_defaults(run=memory)
    flat.add_argument("--sizes", type=int, nargs="+", default=(1000, 50000))
    single = commands.add_parser("peak")
    single.set_defaults(run=lambda args: print(peak(args.n)))
    single.add_argument("n", type=int)
    bounded = commands.add_parser("large")
    bounded.set_defaults(run=large)
    bounded.add_argument("--network", default="resnet50")
    bounded.add_argument("--images", type=int, default=32)
    bounded.add_argument("--limits", nargs="+", default=["none", "2GB", "1GB"])
    one = commands.add_parser("large-peak")
    one.set_defaults(run=lambda args: large_peak(args.network, args.n, args.limit))
    one.add_argument("network")
    one.add_argument("n", type=int)
    one.add_argument("limit")
    fast = commands.add_parser("speed")
    fast.set_defaults(run=speed)
    fast.add_argument(
        "--networks", nargs="+", default=["resnet18", "resnet50", "convnext_tiny", "vit_tiny_patch16_224"]
    )
    fast.add_argument("--images", type=int, default=8)
    fast.add_argument("--steps", type=int, default=5)
    fast.add_argument("--repeats", type=int, default=2)
    once = commands.add_parser("speed-once")
    once.set_defaults(run=lambda args: speed_once(args.network, args.who, args.n, args.steps, args.eps))
    for name, kind in (("network", str), ("who", str), ("n", int), ("steps", int), ("eps", float)):
        once.add_argument(name, type=kind)
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    args.run(args)


if __name__ == "__main__":
    main()
