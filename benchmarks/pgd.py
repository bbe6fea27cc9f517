"""PGD against torchattacks' PGD: same model, images, radius and number of steps; robust accuracy and wall-time ratio.

    python benchmarks/pgd.py [--images 256] [--repeats 5]

Prints one row per model and number of steps: robust accuracy of both (ours should never be higher) and the median of
the ratios of wall times (peer / ours) over the repeats, each repeat timing both one after the other.
"""

import argparse
import statistics
import time

import torch
import torchattacks

from audit.classifiers.classifier import Classifier
from audit.classifiers.load import load_classifier
from audit.config import ClassifierConfig
from audit.data.phantom import CLASS_NAMES, sample
from audit.robustness.pgd import pgd_attack
from audit.seeds import stage_generator

EPS = 8 / 255
STEPS = (10, 40)
MODELS = ("plain", "trades")


def robust_accuracy(model: Classifier, images: torch.Tensor, labels: torch.Tensor) -> float:
    with torch.no_grad():
        return float((model(images).argmax(1) == labels).float().mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    batch = sample(args.images, seed=2024)
    print(
        f"torch {torch.__version__}, torchattacks {torchattacks.__version__}, {torch.get_num_threads()} threads, ",
        end="",
    )
    print(f"n = {args.images}, eps = 8/255, medians of {args.repeats}")
    print(f"{'model':10} {'steps':>5} {'robust, ours':>13} {'torchattacks':>13} {'time ratio':>11}")
    for name in MODELS:
        config = ClassifierConfig(name=name, checkpoint=f"embedded:{name}")
        model = load_classifier(config, (1, 64, 64), CLASS_NAMES)
        for steps in STEPS:
            step_size = 2.5 * EPS / steps
            ratios = []
            for repeat in range(args.repeats):
                began = time.perf_counter()
                ours = pgd_attack(
                    model, batch.images, batch.labels, eps=EPS, steps=steps, step_size=step_size,
                    generator=stage_generator(repeat, "benchmark"),
                )  # fmt: skip
                middle = time.perf_counter()
                with torch.random.fork_rng():
                    torch.manual_seed(repeat)
                    peer = torchattacks.PGD(model, eps=EPS, alpha=step_size, steps=steps)
                    theirs = peer(batch.images, batch.labels)
                ratios.append((time.perf_counter() - middle) / (middle - began))
            a, b = (robust_accuracy(model, found, batch.labels) for found in (ours, theirs))
            print(f"{name:10} {steps:>5} {100 * a:>12.1f}% {100 * b:>12.1f}% {statistics.median(ratios):>11.2f}")


if __name__ == "__main__":
    main()
