"""Reliance against the truth: do tokens and gains that know nothing of the phantom order its classifiers rightly?

    python benchmarks/reliance.py --family first --out runs/family [--n 400]

Needs the classifiers of `benchmarks/family.py train`. The truth is what the phantom's own interventions do: its marker
put on or taken off, exposure or contrast drawn anew. `[reliance]` measures on other images what a drawn side marker, a
token cut out of one of the phantom's images (as a user would cut out a marker of theirs), exposure and contrast do.

Both are told in the same three terms, at the strength and place that do most: the mean total variation distance between
the probabilities before and after, over all images (`shift`); the mean |change of P(healthy)| over images with a
finding (`finding`), as the truth about the family is defined; and the mean fall of the class hit most (`fall`, of
reliance alone). Everything is measured on two independent sets of images: how far the two agree is what no other
measurement can be asked to exceed.
"""

import argparse
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from family import FAMILIES, film, load
from PIL import Image
from scipy.stats import kendalltau, spearmanr
from torch import Tensor

from audit.config import RelianceConfig
from audit.data.phantom import HEALTHY, draw_exogenous, phantom_set, sample
from audit.reliance.interventions import choose_interventions
from audit.reliance.reactions import FEWEST
from audit.reliance.spec import intervene
from audit.runtime.seeds import stage_generator

STAND_FOR = {"marker": ("side-marker", "own-token"), "exposure": ("exposure",), "contrast": ("contrast",)}
"""Which interventions stand for which cause of the phantom."""
TRUTH_SEEDS, SEEDS = (4711, 4712), (7, 8)
Values = dict[str, np.ndarray]
"""A number of each model, by the term that it is told in."""


def cut_out(path: Path) -> None:
    """Write the marker of the first image that has one, its place in the mask opaque, as a PNG."""
    batch = sample(20, seed=1)
    place = next(i for i, mask in enumerate(batch.regions["marker"]) if bool(mask.any()))
    mask, image = batch.regions["marker"][place], batch.images[place, 0]
    rows, columns = mask.any(1).nonzero()[:, 0], mask.any(0).nonzero()[:, 0]
    box = slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1)
    grey, alpha = (image[box] * 255).round().byte().numpy(), mask[box].byte().numpy() * 255
    Image.fromarray(np.stack([grey, grey, grey, alpha], axis=2), "RGBA").save(path)


@torch.no_grad()
def answers(classifiers: Mapping[str, Callable[[Tensor], Tensor]], images: Tensor) -> Tensor:
    """Probabilities `[models, N, K]`."""
    return torch.stack(
        [torch.cat([model(part) for part in images.split(200)]).softmax(1) for model in classifiers.values()]
    )


def effects(before: Tensor, after: Tensor, labels: Tensor) -> Values:
    """Return what changes from `before` to `after` `[models, N, K]` in each of the three terms."""
    moved = after - before
    decided = before.argmax(2)
    falls = []
    for model, decisions in enumerate(decided):
        classes = [c for c in range(before.shape[2]) if int((decisions == c).sum()) >= FEWEST]
        falls.append(max((float(-moved[model, decisions == c, c].mean()) for c in classes), default=0.0))
    return {
        "shift": (moved.abs().sum(2) / 2).mean(1).numpy(),
        "finding": moved[:, labels != HEALTHY, HEALTHY].abs().mean(1).numpy(),
        "fall": np.array(falls),
    }


def truth(ask: Callable[[Tensor], Tensor], n: int, seed: int) -> dict[str, Values]:
    """Return the effects of the phantom's own interventions by cause."""
    labels = torch.arange(n) % 3
    exogenous = draw_exogenous(n, stage_generator(seed, "phantom/exogenous"))
    other = draw_exogenous(n, stage_generator(seed + 100, "phantom/exogenous"))
    marker = torch.rand(n, generator=stage_generator(seed, "truth")) < 0.5
    before = ask(film(exogenous, labels, marker, seed))
    found = {"marker": effects(before, ask(film(exogenous, labels, ~marker, seed)), labels)}
    for cause in ("exposure", "contrast"):
        changed = film(exogenous | {cause: other[cause]}, labels, marker, seed)
        found[cause] = effects(before, ask(changed), labels)
    return found


def reliance(ask: Callable[[Tensor], Tensor], config: RelianceConfig, n: int, seed: int) -> dict[str, Values]:
    """Return the effects of every intervention, of its variants and strengths the largest."""
    dataset = phantom_set(calibration=30, audit=n, seed=seed).split("test")
    images, labels = dataset.images(), dataset.row_labels
    before = ask(images)
    found = {}
    for name, one in choose_interventions(config).items():
        cells = [(change, strength) for change in one.variants.values() for strength in one.strengths]
        seen = [effects(before, ask(intervene(images, *cell)), labels) for cell in cells]
        found[name] = {term: np.max([values[term] for values in seen], axis=0) for term in seen[0]}
    return found


def agreement(x: np.ndarray, y: np.ndarray) -> str:
    """Spearman's correlation with its bootstrap interval over models, and Kendall's."""
    draws = np.random.default_rng(0).integers(0, len(x), (2000, len(x)))
    low, high = np.nanquantile([spearmanr(x[rows], y[rows]).statistic for rows in draws], (0.025, 0.975))
    return f"Spearman {spearmanr(x, y).statistic:.2f} [{low:.2f}, {high:.2f}], tau {kendalltau(x, y).statistic:.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--family", choices=tuple(FAMILIES), default="first")
    parser.add_argument("--out", type=Path, default=Path("runs/family"))
    parser.add_argument("--n", type=int, default=400, help="images of each of the four sets")
    args = parser.parse_args()
    classifiers = load(args.family, args.out.resolve())
    ask = partial(answers, classifiers)
    true = [truth(ask, args.n, seed) for seed in TRUTH_SEEDS]
    with TemporaryDirectory() as folder:
        path = Path(folder) / "own.png"
        cut_out(path)
        token = {"name": "own-token", "path": str(path), "sizes": [0.1, 0.12, 0.16], "places": ["top right"]}
        settings = {"interventions": ["side-marker", "exposure", "contrast"], "tokens": [token]}
        config = RelianceConfig.model_validate(settings)
        seen = [reliance(ask, config, args.n, seed) for seed in SEEDS]
    print(f"{len(classifiers)} models, {args.n} images a set")
    for cause, names in STAND_FOR.items():
        truths = {term: (true[0][cause][term] + true[1][cause][term]) / 2 for term in ("shift", "finding")}
        for term in truths:
            print(f"do({cause}), {term}: two sets agree by {agreement(true[0][cause][term], true[1][cause][term])}")
        for name in names:
            for term in ("shift", "finding", "fall"):
                two = [one[name][term] for one in seen]
                print(f"  {name}, {term}: two sets agree by {agreement(*two)}")
                for their, known in truths.items():
                    print(f"    with the truth, {their}: {agreement((two[0] + two[1]) / 2, known)}")
        for place, model in enumerate(classifiers):
            said = [
                f"{name} {(seen[0][name][term][place] + seen[1][name][term][place]) / 2:.3f} ({term})"
                for name in names
                for term in ("shift", "fall")
            ]
            told = ", ".join(f"{values[place]:.3f} ({term})" for term, values in truths.items())
            print(f"    {model:18} truth {told}; {', '.join(said)}")


if __name__ == "__main__":
    main()
