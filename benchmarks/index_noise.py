"""How well any index could order a family, given on how few images it and the truth are measured, and what is wrong.

    python benchmarks/index_noise.py --family first --out runs/family --images 7 8:0:48 [--embedding NAME]
    python benchmarks/index_noise.py --family third --out runs/family --images 11 --beside second:7

Kendall's tau between index and truth mixes two things: where the index is wrong, and where models lie so close that
means over these images do not tell them apart. This program separates them. Index and truth are redrawn by a bootstrap
over their images, paired across models. A pair of models is *open* where the 95 % interval of the difference of its
truths or that of its indices holds 0; it is *surely wrong* where neither does, and they disagree.

The *ceiling* is the tau of a perfect index of the same noise: the truth (the index's scale is that of the least-squares
line over the family) plus the bootstrap's deviations of the index, against the truth plus its own deviations. A retest
compares two such indices. For other numbers of images the index's deviations are scaled by the square root.

Beside it: components alone and left out, with the interval of what that changes; with what components go among sound
models; random subsets of the images, and how far two of them agree, each finding alone, and findings that weigh alike;
small panels of models; and, of several sets of images, how far indices agree between them. `--beside FAMILY:SEED` takes
the audit of another family for the mean over families of what leaving components out changes.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from itertools import combinations
from pathlib import Path

import numpy as np
import torch
from family import CLEAR, VISIBLE, Effects, intervene, load
from index_parts import Evidence, answers_of, gather, means_of, parser_of
from torch import Tensor
from torchmetrics.functional import concordance_corrcoef, pearson_corrcoef, spearman_corrcoef

from audit.config import RankingConfig
from audit.metrics.components import ModelScores, components, localisation_scores, sparsity_scores, target_kernels
from audit.metrics.distribution import EmbeddedSets
from audit.metrics.response import Answers
from audit.pipeline.rank import bootstrap_weights, weighted_index
from audit.results import COMPONENTS
from audit.runtime.seeds import stage_generator

DRAWS = 1000
PANELS, SUBSETS = (2, 3, 4, 6), 400
"""How many models are audited together, and how many such panels are drawn."""
SOUND = 0.7
"""Truth from which on a model is called sound."""
MEANS = "response, means of edits"
"""Beside the components: response as it was before, by means over makers and without other acquisitions."""
LINE = " {:>22}"
Array = np.ndarray


def scores_of(evidence: Evidence, name: str) -> ModelScores:
    """Score one model image by image, as an audit does."""
    one = evidence.edited[name]
    n = len(one.flipped)
    judges = list(evidence.said[name].values())
    total = sum((said.heard.double() for said in judges), torch.zeros(n, dtype=torch.float64))
    agreed = sum((said.heard * said.way for said in judges), torch.zeros(n, dtype=torch.float64))
    seen = one.edit * (one.edit > VISIBLE)
    mass = (seen * one.region).sum((1, 2)) / seen.sum((1, 2))
    rng = stage_generator(0, f"{name}/realism")
    sets = EmbeddedSets("healthy", one.embedded, one.embedded_inversions, evidence.real)
    return ModelScores(
        name=name,
        flipped=one.flipped,
        sparsity=sparsity_scores(one.l1, one.nearest, one.flipped),
        localisation=localisation_scores(mass, one.region.flatten(1).double().mean(1), one.flipped),
        transfer=torch.where(one.flipped, torch.where(total > 0, agreed / total, torch.nan), 0.0),
        realism=(target_kernels(sets, torch.arange(n), one.flipped, rng),),
        response=answers_of(evidence, name),
    )


@dataclass(frozen=True)
class Measured:
    """Components `[B, M]` of all models in B draws of the images, and the truths `[B, M]`; draw 0 are the images."""

    names: tuple[str, ...]
    parts: dict[str, Array]
    truths: Array

    def index(self, weights: Mapping[str, float]) -> Array:
        """Index `[B, M]` with these weights of components."""
        values = {part: torch.from_numpy(self.parts[part]) for part in weights}
        return weighted_index(values, weights).numpy()


@dataclass(frozen=True)
class Examined:
    """An audit of a family: what was measured of it, and on what."""

    measured: Measured
    evidence: Evidence
    scores: dict[str, ModelScores]
    findings: Sequence[str]
    sizes: Array

    def redrawn(self, weights: Tensor) -> dict[str, Array]:
        """Components `[B, M]` under image weights `[B, n]`."""
        return redrawn(self.scores, self.evidence, weights)


def redrawn(scores: Mapping[str, ModelScores], evidence: Evidence, weights: Tensor) -> dict[str, Array]:
    """Components `[B, M]` under image weights `[B, n]`."""
    found = [components(one, weights)[0] for one in scores.values()]
    parts = {part: torch.stack([values[part] for values in found], 1).numpy() for part in COMPONENTS}
    return parts | {MEANS: shares([means_of(evidence, name) for name in scores], weights)}


def shares(some: Sequence[Answers], weights: Tensor) -> Array:
    """Share `[B, M]` of what is answered to that lies in the region, under image weights `[B, n]`."""
    return torch.stack([one.share(weights) for one in some], 1).numpy()


def with_estimate(draws: Tensor) -> Tensor:
    return torch.cat([torch.ones(1, draws.shape[1], dtype=draws.dtype), draws])


def signs(values: Array) -> Array:
    """Order `[B, P]` of every pair of models, from values `[B, M]`."""
    a, b = np.triu_indices(values.shape[1], 1)
    return np.sign(values[:, a] - values[:, b])


def tau(x: Array, y: Array) -> Array:
    """Kendall's tau-b `[B]` of two values `[B, M]` of every model; NaN where all are equal."""
    one, other = signs(x), signs(y)
    with np.errstate(invalid="ignore"):
        return (one * other).sum(1) / np.sqrt((one != 0).sum(1) * (other != 0).sum(1))


def pairs(x: Array, true: Array) -> Array:
    """Share `[B]` of the pairs of clearly different truth `[1, M]` that `x` `[B, M]` orders alike."""
    a, b = np.triu_indices(true.shape[1], 1)
    clear = np.abs(true[0, a] - true[0, b]) >= CLEAR
    return (signs(x) == signs(true))[:, clear].mean(1)


def spread(values: Array) -> str:
    low, high = np.nanquantile(values, (0.025, 0.975))
    return f"{np.nanmean(values):.2f} [{low:.2f}, {high:.2f}]"


def ceilings(index: Array, truths: Array, n: int) -> None:
    """Print what a perfect index with the noise of this one could reach."""
    true = truths[:1]
    slope = np.polyfit(true[0], index[0], 1)[0]
    noise, known = (index[1:] - index[0]) / slope, truths[1:]
    half = float(np.mean(np.quantile(index[1:], 0.975, 0) - np.quantile(index[1:], 0.025, 0))) / 2
    print(f"\na unit of truth is {slope:.0f} points; half an interval {half:.1f} points, {half / slope:.3f} of truth")
    print(f"{'perfect index':14}" + "".join(map(LINE.format, ("tau", "pairs", "tau of a retest"))))
    order = np.random.default_rng(0).permutation(len(noise))
    for images in sorted({25, n, 50, 100, 200}):
        once = true + (n / images) ** 0.5 * noise
        columns = (tau(once, known), pairs(once, true), tau(once, once[order]))
        print(f"{images:4} images   " + "".join(LINE.format(spread(column)) for column in columns))
    print(f"retest of models as the index puts them: {spread(tau(index[1:], index[1:][order]))}")


def wrong_pairs(measured: Measured, weights: Mapping[str, float]) -> None:
    """Print the pairs that the index orders wrongly, and by which components."""
    index, truths, names = measured.index(weights), measured.truths, measured.names
    logs = {k: weights[k] / sum(weights.values()) * np.log(np.clip(measured.parts[k][0], 0.01, 1)) for k in weights}
    counts = dict.fromkeys(("pairs", "wrong", "open by truth", "open by index", "open", "wrong and not open"), 0)
    lines = []
    for a, b in combinations(range(len(names)), 2):
        a, b = (a, b) if truths[0, a] >= truths[0, b] else (b, a)
        true, said = truths[:, a] - truths[:, b], index[:, a] - index[:, b]
        (low, high), (least, most) = (np.quantile(d[1:], (0.025, 0.975)) for d in (true, said))
        open_truth, open_index, wrong = low <= 0 <= high, least <= 0 <= most, said[0] <= 0
        counts["pairs"] += 1
        counts["open by truth"] += open_truth
        counts["open by index"] += open_index
        counts["open"] += open_truth or open_index
        counts["wrong"] += wrong
        counts["wrong and not open"] += wrong and not (open_truth or open_index)
        if wrong:
            why = "  ".join(f"{k} {100 * (logs[k][a] - logs[k][b]):+.0f}" for k in weights)
            mark = "" if open_truth or open_index else "  SURELY"
            clear = "  CLEAR" if true[0] >= CLEAR else ""
            lines.append(
                f"  {names[a]:16}{names[b]:16}truth {true[0]:+.3f} [{low:+.3f}, {high:+.3f}]  "
                f"index {said[0]:+5.1f} [{least:+.1f}, {most:+.1f}]  {why}{mark}{clear}"
            )
    print("\nWrongly ordered, the truer one first; log-ratio of each component's part in the index, in hundredths")
    print("\n".join(lines))
    print("  ".join(f"{what}: {count}" for what, count in counts.items()))


def trials(weights: Mapping[str, float]) -> dict[str, dict[str, float]]:
    """Weights of the index, without one of its components, and where there is no response."""
    left_out: list[tuple[str, ...]] = [(), *((part,) for part, weight in weights.items() if weight)]
    found = {
        " ".join(("index", *(f"- {part}" for part in parts))): {k: w for k, w in weights.items() if k not in parts}
        for parts in left_out
    }
    bare = RankingConfig().weights(response=False)
    judged = {k: w for k, w in bare.items() if k not in ("realism", "transfer")}
    earlier = {MEANS if k == "response" else k: w for k, w in weights.items()}
    return found | {
        "index without response": bare, "the same - realism - transfer": judged, f"index, {MEANS}": earlier
    }  # fmt: skip


def tried(measured: Measured, weights: Mapping[str, float], sizes: Array) -> None:
    """Print components alone and left out, and with what they go among sound models (`sizes` `[M]` of the edits)."""
    true, index = measured.truths[:1], measured.index(weights)[:1]
    rows = np.random.default_rng(0).integers(0, true.shape[1], (DRAWS, true.shape[1]))
    values = {title: measured.index(some)[:1] for title, some in trials(weights).items()}
    values |= {f"{part} alone": value[:1] for part, value in measured.parts.items() if np.ptp(value[0]) > 0}
    sound = true[0] >= SOUND
    print(
        f"{'':28}{'tau':>20} pairs{'change of tau, share above 0':>31}  among {sound.sum()} sound models: with truth, "
        "size of edits"
    )
    for title, value in values.items():
        once = tau(value[0][rows], true[0][rows])
        low, high = np.nanquantile(once, (0.025, 0.975))
        rise = once - tau(index[0][rows], true[0][rows])
        less, more = np.nanquantile(rise, (0.025, 0.975))
        own, now = (float(tau(one, true)[0]) for one in (value, index))
        along = (float(tau(value[:, sound], other[None, sound])[0]) for other in (true[0], sizes))
        print(
            f"{title:28}{own:5.2f} [{low:5.2f}, {high:5.2f}] {float(pairs(value, true)[0]):.3f}"
            f"   {own - now:+.2f} [{less:+.2f}, {more:+.2f}] {np.nanmean(rise > 0):.3f}   "
            + "  ".join(f"{one:5.2f}" for one in along)
        )


def alike(findings: Sequence[str]) -> Tensor:
    """Weights `[1, n]` of images by which every finding weighs the same."""
    return torch.tensor([[1 / findings.count(one) for one in findings]], dtype=torch.float64)


def subsets(one: Examined, weights: dict[str, float]) -> None:
    """Print the index on random subsets of the images, on those of one finding, and with findings that weigh alike; and
    how far two disjoint subsets agree."""
    findings, true = one.findings, one.measured.truths[:1]
    n, rng = len(findings), np.random.default_rng(0)
    sizes = [size for size in (25, 50, 100) if size < n]
    cases = {f"{size} of {n}": torch.zeros(200, n, dtype=torch.float64) for size in sizes}
    for rows, size in zip(cases.values(), sizes, strict=True):
        for row in rows:
            row[torch.from_numpy(rng.choice(n, size, replace=False))] = 1
    for what in sorted(set(findings)):
        cases[f"{what}, {findings.count(what)}"] = torch.tensor([[what == found for found in findings]]).double()
    cases["findings weigh alike"] = alike(findings)
    print()
    for title, images in cases.items():
        index = Measured(one.measured.names, one.redrawn(images), true).index(weights)
        print(f"{title:22}" + LINE.format(spread(tau(index, true))) + LINE.format(spread(pairs(index, true))))
    for size in sorted({size for size in (25, 50, n // 2) if 2 * size <= n}):
        both = torch.zeros(2, 200, n, dtype=torch.float64)
        for place in range(both.shape[1]):
            drawn = torch.from_numpy(rng.permutation(n))
            both[0, place, drawn[:size]] = both[1, place, drawn[size : 2 * size]] = 1
        halves = (Measured(one.measured.names, one.redrawn(half), true).index(weights) for half in both)
        print(f"{f'{size} and {size} others':22}" + LINE.format(spread(tau(*halves))) + "  between them")


def panels(evidence: Evidence, measured: Measured, weights: Mapping[str, float]) -> None:
    """Print the share of clear pairs that is ordered rightly where a few models, drawn at random, are all there are."""
    rng, true = np.random.default_rng(0), measured.truths[0]
    all_alike = torch.ones(1, len(next(iter(evidence.acquired.values()))), dtype=torch.float64)
    print(f"\n{'panels of':34}" + "".join(f"{m:>7}" for m in PANELS))
    right: dict[str, list[list[float]]] = {title: [[] for _ in PANELS] for title in trials(weights)}
    for place, m in enumerate(PANELS):
        for _ in range(SUBSETS):
            some = rng.choice(len(true), m, replace=False)
            if np.ptp(true[some]) < CLEAR:
                continue
            names = [measured.names[i] for i in some]
            parts = {part: values[:1, some] for part, values in measured.parts.items()}
            for part, heard in (("response", answers_of), (MEANS, means_of)):
                parts[part] = np.nan_to_num(shares([heard(evidence, name, names) for name in names], all_alike))
            panel = Measured(tuple(names), parts, true[None, some])
            for title, trial in trials(weights).items():
                right[title][place].append(float(pairs(panel.index(trial), panel.truths)[0]))
    for title, found in right.items():
        print(f"{title:34}" + "".join(f"{np.mean(of_size):7.3f}" for of_size in found))


def between(sets: Mapping[str, Examined], weights: Mapping[str, float]) -> None:
    """Print how far indices on different sets of images agree, with images and with findings that weigh alike.

    Kendall's tau and Spearman's rho ask for the same order, Pearson's r for a line, Lin's concordance (Biometrics 45,
    1989) for the same numbers. All four rise with the distance between the best model and the worst; so they are also
    told of the sound models alone. Intervals: images of each set redrawn.
    """
    for one, other in combinations(sets, 2):
        a, b = sets[one], sets[other]
        sound = a.measured.truths[0] >= SOUND
        print(f"\n{one} ({len(a.findings)} images) and {other} ({len(b.findings)}), {len(sound)} models")
        print(f"{'':34}{'tau':>20}   rho     r  concordance; of {sound.sum()} sound; findings weigh alike: tau, r")
        for title, some in trials(weights).items():
            x, y = a.measured.index(some), b.measured.index(some)
            low, high = np.nanquantile(tau(x[1:], y[1:]), (0.025, 0.975))
            even = [Measured(e.measured.names, e.redrawn(alike(e.findings)), np.empty(0)).index(some) for e in (a, b)]
            print(
                f"{title:34}{float(tau(x, y)[0]):5.2f} [{low:5.2f}, {high:5.2f}] {same_numbers(x[0], y[0])};  "
                f"{float(tau(x[:1, sound], y[:1, sound])[0]):.2f} {same_numbers(x[0, sound], y[0, sound])};  "
                f"{float(tau(*even)[0]):.2f} {np.corrcoef(even[0][0], even[1][0])[0, 1]:.3f}"
            )


def same_numbers(x: Array, y: Array) -> str:
    """Return Spearman's rho, Pearson's r and Lin's concordance of two values `[M]` of every model."""
    one, other = torch.from_numpy(x), torch.from_numpy(y)
    found = (f(one, other) for f in (spearman_corrcoef, pearson_corrcoef, concordance_corrcoef))
    return " ".join(f"{float(value):.3f}" for value in found)


def change_over(families: Sequence[Measured], weights: Mapping[str, float]) -> None:
    """Print the mean over families of the change of tau without components; models are redrawn within each family."""
    print(f"\nmean change of tau over {len(families)} families")
    for title, some in trials(weights).items():
        own, drawn = [], []
        for place, one in enumerate(families):
            m = len(one.names)
            rows = np.random.default_rng(place).integers(0, m, (10 * DRAWS, m))
            true, now, then = one.truths[0], one.index(some)[0], one.index(weights)[0]
            own.append(float((tau(now[None], true[None]) - tau(then[None], true[None]))[0]))
            drawn.append(tau(now[rows], true[rows]) - tau(then[rows], true[rows]))
        low, high = np.nanquantile(np.mean(drawn, 0), (0.025, 0.975))
        print(f"{title:28}{np.mean(own):+.2f} [{low:+.3f}, {high:+.3f}]   " + "  ".join(f"{one:+.2f}" for one in own))


@cache
def members(family: str, out: Path, n: int) -> tuple[dict[str, Callable[[Tensor], Tensor]], dict[str, Effects]]:
    """Load a family and measure its truths, once for all sets of query images."""
    classifiers = load(family, out)
    return classifiers, intervene(classifiers, n, seed=4711)


def examine(family: str, images: str, out: Path, *, embedding: str, n: int, right: bool) -> Examined:
    """Measure components, in redrawn images, and truths on `n` images, or on those that all models get `right`."""
    classifiers, effects = members(family, out, n)
    evidence = gather(images, family, out, embedding, classifiers)
    names = tuple(evidence.edited)
    scores = {name: scores_of(evidence, name) for name in names}
    findings = evidence.edited[names[0]].findings
    drawn = redrawn(scores, evidence, with_estimate(bootstrap_weights(len(findings), DRAWS, 0)))
    truth_images = with_estimate(bootstrap_weights(n, DRAWS, 0, "truth"))
    if right:
        truth_images = truth_images * torch.stack([effects[name].right for name in names]).all(0)
    truths = torch.stack([effects[name].truth(truth_images) for name in names], 1).numpy()
    sizes = np.array([float(evidence.edited[name].l1.mean()) for name in names])
    return Examined(Measured(names, drawn, truths), evidence, scores, findings, sizes)


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--n", type=int, default=600, help="images of the truth")
    parser.add_argument("--right", action="store_true", help="of these only those that all explained models get right")
    parser.add_argument("--beside", nargs="*", default=[], metavar="FAMILY:SEED", help="audits of other families")
    args = parser.parse_args()
    look = partial(examine, out=args.out.resolve(), embedding=args.embedding, n=args.n, right=args.right)
    weights = RankingConfig().weights(response=True)
    sets = {images: look(args.family, images) for images in args.images}
    for images, one in sets.items():
        print(f"\n{images}, {len(one.findings)} images")
        tried(one.measured, weights, one.sizes)
        wrong_pairs(one.measured, weights)
        ceilings(one.measured.index(weights), one.measured.truths, len(one.findings))
        subsets(one, weights)
        panels(one.evidence, one.measured, weights)
    between(sets, weights)
    if args.beside:
        others = [look(*beside.split(":", 1)) for beside in args.beside]
        change_over([one.measured for one in (*others, *sets.values())], weights)


if __name__ == "__main__":
    main()
