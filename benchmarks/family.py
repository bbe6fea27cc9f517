"""A family of phantom classifiers with graded faults, and the truth about each of them by intervention.

    python benchmarks/family.py train --family first --out runs/family [--models NAME ...]
        (resumable: a finished model is kept)
    python benchmarks/family.py truth --family first --out runs/family     (--family shipped: the demonstration's)
    python benchmarks/family.py audit --family first --out runs/family --queries 48 --seed 7 [--generator FILE]
        [--models NAME ...] [--images 2000]

The index has to order models as the truth does, which it never sees: the phantom is a structural causal model, so what
a classifier decides by can be measured by changing one thing at a time. With P = P(healthy), over images with a finding

    F  mean rise of P when the finding alone is removed (the healthy twin)
    M, E, C, A, N  mean |change of P| when the marker is put on or taken off, and when exposure, contrast, anatomy or
                   detector noise alone are drawn anew
    truth = F / (F + M + E + C + A + N)

`flips` is the share of recognised findings whose removal brings the model to "healthy". The other families have other
seeds, grades and architectures: no choice was made on the second before it was audited; the third to the seventh
decide by rules that were written down before they were trained, the sixth before it was audited (benchmarks/README.md).
"""

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from scipy.stats import kendalltau
from torch import Tensor
from torch.nn.functional import fold, unfold
from torchvision.transforms.functional import gaussian_blur

from audit.classifiers.load import load_classifier
from audit.config import (
    ClassifierConfig,
    GeneratorConfig,
    RegionsConfig,
    RelianceConfig,
    RobustnessConfig,
    load_config,
    parse_config,
)
from audit.data.demo import demo_config
from audit.data.phantom import CLASS_NAMES, HEALTHY, NORMAL, draw_exogenous, marker_presence, mechanisms
from audit.data.phantom_render import SIZE, render
from audit.pipeline.runner import run_audit
from audit.results import COMPONENTS, MAIN_REGION, AuditResult, ModelResult, Query
from audit.runtime.progress import choose_style
from audit.runtime.seeds import stage_generator, stage_seed
from audit.training.classifier.config import ClassifierTrainConfig
from audit.training.classifier.train import train_classifier

TRAIN, HELD_OUT = 6000, 600
ACQUISITION = ("exposure", "contrast", "gamma", "bias_x", "bias_y", "marker_x", "marker_y")
ANATOMY = tuple(name for name in NORMAL if name not in ACQUISITION)
CHUNK = 128
VISIBLE = 4 / 255
"""A change of a pixel that counts as seen."""
CLEAR = 0.1
"""Two models whose truths differ by this much ought to be told apart."""
Exogenous = dict[str, Tensor]


def film(exogenous: Mapping[str, Tensor], labels: Tensor, marker: Tensor, noise_seed: int) -> Tensor:
    """Draw phantom images `[N, 1, 64, 64]`; the noise depends on its seed and the row only."""
    parameters, noise = mechanisms(exogenous, labels, marker), stage_generator(noise_seed, "phantom/noise")
    parts = []
    for start in range(0, len(labels), CHUNK):
        rows = slice(start, start + CHUNK)
        n = len(labels[rows])
        parts.append(render({k: v[rows] for k, v in parameters.items()}, torch.randn(n, SIZE, SIZE, generator=noise)))
    return torch.cat([part.images for part in parts])[:, None]


@dataclass(frozen=True)
class Fault:
    """What is wrong with the training images of one classifier.

    `marker`: correlation of the marker with a finding. `shift`: by how many of its standard deviations an exogenous
    variable is moved up with a finding and down without. `noise`: share of labels drawn anew. `images`: how many there
    are. `picture`: what is done to the training images, `[N, 1, H, W]` to the same.
    """

    marker: float = 0.0
    shift: Mapping[str, float] = field(default_factory=dict)
    noise: float = 0.0
    images: int = TRAIN
    picture: Callable[[Tensor, torch.Generator], Tensor] | None = None


def blurred(images: Tensor, generator: torch.Generator, sigma: float) -> Tensor:
    return gaussian_blur(images, [9, 9], [sigma, sigma])


def shuffled(images: Tensor, generator: torch.Generator, patch: int) -> Tensor:
    """Shuffle the patches of every image: texture stays, shape and place go."""
    parts = unfold(images, patch, stride=patch)
    order = torch.rand(parts.shape[0], 1, parts.shape[2], generator=generator).argsort(2)
    return fold(parts.gather(2, order.expand_as(parts)), images.shape[-2:], patch, stride=patch)


@dataclass(frozen=True)
class Member:
    """One classifier of a family: its fault, architecture and training objective."""

    name: str
    fault: Fault = field(default_factory=Fault)
    architecture: str = "small-convnext"
    trades: int = 0
    """Radius in 255ths; 0: plainly trained."""


SPREAD = {"exposure": 0.055, "contrast": 0.10, "marker_brightness": 0.058, "marker_x": 0.022}
SHIPPED = "shipped"
"""The demonstration's classifiers, of which `truth` can be asked, too."""
FAMILIES = {
    "first": (
        Member("plain"),
        Member("plain-again"),
        Member("mobilenet", architecture="mobilenetv3_small_050"),
        Member("marker-60", Fault(marker=0.6)),
        Member("marker-80", Fault(marker=0.8)),
        Member("marker-95", Fault(marker=0.95)),
        Member("marker-100", Fault(marker=1.0)),
        Member("exposure", Fault(shift={"exposure": 1.0})),
        Member("contrast", Fault(shift={"contrast": 1.0})),
        Member("noise-30", Fault(noise=0.3)),
        Member("few-200", Fault(images=200)),
        Member("blur", Fault(picture=partial(blurred, sigma=2.0))),
        Member("texture", Fault(picture=partial(shuffled, patch=16))),
        Member("trades-2", trades=2),
        Member("trades-8", trades=8),
        Member("trades-4-marker", Fault(marker=0.95), trades=4),
    ),
    "second": (
        Member("plain"),
        Member("resnet", architecture="resnet10t"),
        Member("marker-50", Fault(marker=0.5)),
        Member("marker-70", Fault(marker=0.7)),
        Member("marker-90", Fault(marker=0.9)),
        Member("marker-100-mobilenet", Fault(marker=1.0), architecture="mobilenetv3_small_050"),
        Member("brightness", Fault(marker=0.0, shift={"marker_brightness": 1.0})),
        Member("exposure", Fault(shift={"exposure": 0.5})),
        Member("contrast", Fault(shift={"contrast": 2.0})),
        Member("noise-15", Fault(noise=0.15)),
        Member("few-400", Fault(images=400)),
        Member("blur", Fault(picture=partial(blurred, sigma=1.2))),
        Member("texture", Fault(picture=partial(shuffled, patch=8))),
        Member("trades-1", trades=1),
        Member("trades-4", trades=4),
        Member("trades-2-marker", Fault(marker=0.8), trades=2),
    ),
    "third": (
        Member("plain"),
        Member("resnet", architecture="resnet10t"),
        Member("lcnet", architecture="lcnet_050"),
        Member("marker-30", Fault(marker=0.3)),
        Member("marker-65", Fault(marker=0.65)),
        Member("marker-85", Fault(marker=0.85)),
        Member("marker-97", Fault(marker=0.97)),
        Member("place", Fault(shift={"marker_x": 1.5})),
        Member("exposure", Fault(shift={"exposure": 2.0})),
        Member("contrast", Fault(shift={"contrast": 3.0})),
        Member("noise-45", Fault(noise=0.45)),
        Member("few-100", Fault(images=100)),
        Member("blur", Fault(picture=partial(blurred, sigma=3.0))),
        Member("texture", Fault(picture=partial(shuffled, patch=32))),
        Member("trades-3", trades=3),
        Member("trades-3-marker", Fault(marker=0.9), trades=3),
    ),
    "fourth": (
        Member("plain"),
        Member("resnet", architecture="resnet10t"),
        Member("mobilenet", architecture="mobilenetv3_small_050"),
        Member("marker-40", Fault(marker=0.4)),
        Member("marker-75", Fault(marker=0.75)),
        Member("marker-88", Fault(marker=0.88)),
        Member("marker-98", Fault(marker=0.98)),
        Member("place", Fault(shift={"marker_x": 1.0})),
        Member("exposure", Fault(shift={"exposure": 1.5})),
        Member("contrast", Fault(shift={"contrast": 1.5})),
        Member("noise-20", Fault(noise=0.2)),
        Member("few-300", Fault(images=300)),
        Member("blur", Fault(picture=partial(blurred, sigma=1.6))),
        Member("trades-2", trades=2),
        Member("trades-6", trades=6),
        Member("trades-2-marker", Fault(marker=0.92), trades=2),
    ),
    "fifth": (
        Member("plain"),
        Member("resnet", architecture="resnet10t"),
        Member("lcnet", architecture="lcnet_050"),
        Member("marker-55", Fault(marker=0.55)),
        Member("marker-70", Fault(marker=0.7)),
        Member("marker-90", Fault(marker=0.9)),
        Member("marker-96", Fault(marker=0.96)),
        Member("marker-dim", Fault(shift={"marker_brightness": 1.5})),
        Member("exposure", Fault(shift={"exposure": 0.7})),
        Member("contrast", Fault(shift={"contrast": 2.0})),
        Member("noise-35", Fault(noise=0.35)),
        Member("few-150", Fault(images=150)),
        Member("blur", Fault(picture=partial(blurred, sigma=1.2))),
        Member("trades-1", trades=1),
        Member("trades-4", trades=4),
        Member("trades-4-marker", Fault(marker=0.85), trades=4),
    ),
    "sixth": (
        Member("plain"),
        Member("resnet", architecture="resnet10t"),
        Member("mobilenet", architecture="mobilenetv3_small_050"),
        Member("marker-45", Fault(marker=0.45)),
        Member("marker-65", Fault(marker=0.65)),
        Member("marker-82", Fault(marker=0.82)),
        Member("marker-94", Fault(marker=0.94)),
        Member("place", Fault(shift={"marker_x": 1.3})),
        Member("exposure", Fault(shift={"exposure": 1.2})),
        Member("contrast", Fault(shift={"contrast": 1.2})),
        Member("noise-25", Fault(noise=0.25)),
        Member("few-250", Fault(images=250)),
        Member("blur", Fault(picture=partial(blurred, sigma=1.4))),
        Member("trades-2", trades=2),
        Member("trades-5", trades=5),
        Member("trades-3-marker", Fault(marker=0.88), trades=3),
    ),
    "seventh": (
        Member("plain"),
        Member("resnet", architecture="resnet10t"),
        Member("marker-50", Fault(marker=0.5)),
        Member("marker-72", Fault(marker=0.72)),
        Member("marker-92", Fault(marker=0.92)),
        Member("marker-100", Fault(marker=1.0)),
        Member("place", Fault(shift={"marker_x": 1.6})),
        Member("exposure", Fault(shift={"exposure": 0.9})),
        Member("contrast", Fault(shift={"contrast": 1.7})),
        Member("noise-40", Fault(noise=0.4)),
        Member("few-180", Fault(images=180)),
        Member("blur", Fault(picture=partial(blurred, sigma=1.8))),
        Member("texture", Fault(picture=partial(shuffled, patch=16))),
        Member("trades-1", trades=1),
        Member("trades-8", trades=8),
        Member("trades-4-marker", Fault(marker=0.9), trades=4),
    ),
}


def training_set(fault: Fault, n: int, seed: int) -> tuple[Tensor, Tensor]:
    """Images `[n, 1, 64, 64]` and labels `[n]` with the fault."""
    rng = stage_generator(seed, "family")
    labels = torch.arange(n)[torch.randperm(n, generator=rng)] % len(CLASS_NAMES)
    exogenous = draw_exogenous(n, stage_generator(seed, "phantom/exogenous"))
    sign = torch.where(labels == HEALTHY, -1.0, 1.0)
    for name, amount in fault.shift.items():
        exogenous[name] = exogenous[name] + sign * amount * SPREAD[name]
    images = film(exogenous, labels, marker_presence(exogenous, labels, fault.marker), seed)
    if fault.picture is not None:
        images = fault.picture(images, rng)
    anew = torch.rand(n, generator=rng) < fault.noise
    return images, torch.where(anew, torch.randint(len(CLASS_NAMES), (n,), generator=rng), labels)


def write_set(member: Member, seed: int, path: Path) -> None:
    """Write the images of one classifier as an archive of MedMNIST's layout."""
    arrays = {}
    for split, n in (("train", member.fault.images), ("val", HELD_OUT), ("test", HELD_OUT)):
        images, labels = training_set(member.fault, n, stage_seed(seed, split))
        arrays |= {f"{split}_images": (images[:, 0] * 255).round().byte().numpy(), f"{split}_labels": labels.numpy()}
    np.savez_compressed(path, **arrays)


def settings(member: Member, data: Path, seed: int) -> ClassifierTrainConfig:
    """Return the training's configuration: that of the shipped classifiers of the same objective, a little shorter."""
    objective: dict[str, Any] = {"kind": "plain"}
    steps = 350
    if member.trades:
        objective = {"kind": "trades", "eps": f"{member.trades}/255", "beta": 6.0, "steps": 4, "ramp": 0.3}
        steps = 300 if member.trades <= 2 else 700
    values = {
        "name": member.name,
        "seed": seed,
        "architecture": member.architecture,
        "data": {"path": str(data), "classes": list(CLASS_NAMES)},
        "objective": objective,
        "optimiser": {"lr": 2e-3, "batch_size": 64, "steps": min(steps, 6 * member.fault.images // 64 + 150)},
        "selection": {"every": 100, "n": 300},
        "evaluation": {"attacked": 100},
    }
    return parse_config(ClassifierTrainConfig, values, member.name)


def train(family: str, out: Path, only: Sequence[str] | None = None) -> None:
    """Train what is not there yet, or `only` some of it; a killed training goes on at its checkpoint."""
    for place, member in enumerate(FAMILIES[family]):
        folder = out / family / member.name
        if (folder / f"{member.name}.json").exists() or (only is not None and member.name not in only):
            continue
        folder.mkdir(parents=True, exist_ok=True)
        seed = stage_seed(tuple(FAMILIES).index(family), f"{member.name}/{place}") % 2**31
        data = folder / "data.npz"
        if not data.exists():
            write_set(member, seed, data)
        train_classifier(settings(member, data, seed), folder)
        data.unlink()
        print(member.name, flush=True)


@torch.no_grad()
def healthy(classifier: Callable[[Tensor], Tensor], images: Tensor) -> tuple[Tensor, Tensor]:
    """P(healthy) `[N]` and the decisions `[N]`."""
    logits = torch.cat([classifier(part) for part in images.split(256)])
    return logits.softmax(1)[:, HEALTHY], logits.argmax(1)


@dataclass(frozen=True)
class Effects:
    """What interventions do to one classifier, image by image.

    `changes` `[n]` of P(healthy) by what is changed: signed for the finding, else absolute. `seen` and `led`: whether
    the finding is recognised, and whether its removal leads to "healthy"; `right`: whether the decision is.
    """

    changes: dict[str, Tensor]
    seen: Tensor
    led: Tensor
    right: Tensor

    def truth(self, weights: Tensor) -> Tensor:
        """Truth `[B]` under image weights `[B, n]`, so that a bootstrap can redraw the images."""
        means = {what: weights @ change.double() for what, change in self.changes.items()}
        return means["finding"] / torch.stack(list(means.values())).sum(0)

    def summary(self) -> dict[str, float]:
        """Mean changes, truth, flips and accuracy."""
        means = {what: float(change.mean()) for what, change in self.changes.items()}
        return means | {
            "truth": means["finding"] / sum(means.values()),
            "flips": float(self.led[self.seen].float().mean()) if bool(self.seen.any()) else float("nan"),
            "accuracy": float(self.right.float().mean()),
        }


def intervene(classifiers: Mapping[str, Callable[[Tensor], Tensor]], n: int, seed: int) -> dict[str, Effects]:
    """Change one thing at a time in `n` images with a finding."""
    rng = stage_generator(seed, "truth")
    labels = 1 + torch.arange(n) % 2
    e = draw_exogenous(n, stage_generator(seed, "phantom/exogenous"))
    other = draw_exogenous(n, stage_generator(seed + 1, "phantom/exogenous"))
    marker = torch.rand(n, generator=rng) < 0.5
    factual = film(e, labels, marker, seed)
    changed = {
        "finding": film(e, torch.zeros_like(labels), marker, seed),
        "marker": film(e, labels, ~marker, seed),
        "exposure": film(e | {"exposure": other["exposure"]}, labels, marker, seed),
        "contrast": film(e | {"contrast": other["contrast"]}, labels, marker, seed),
        "anatomy": film(e | {name: other[name] for name in ANATOMY}, labels, marker, seed),
        "noise": film(e, labels, marker, seed + 1),
    }
    found = {}
    for name, classifier in classifiers.items():
        before, decided = healthy(classifier, factual)
        after = {what: healthy(classifier, images) for what, images in changed.items()}
        changes = {what: p - before if what == "finding" else (p - before).abs() for what, (p, _) in after.items()}
        found[name] = Effects(changes, decided != HEALTHY, after["finding"][1] == HEALTHY, decided == labels)
    return found


def truth(classifiers: Mapping[str, Callable[[Tensor], Tensor]], n: int, seed: int) -> dict[str, dict[str, float]]:
    """What every classifier decides by, on `n` images with a finding."""
    return {name: effects.summary() for name, effects in intervene(classifiers, n, seed).items()}


def trained(family: str, out: Path) -> tuple[ClassifierConfig, ...]:
    """Return the members of a family whose training has finished, or the classifiers of the demonstration."""
    if family == SHIPPED:
        return tuple(load_config(demo_config()).classifiers)
    return tuple(
        ClassifierConfig(
            name=m.name, architecture=m.architecture, checkpoint=str(out / family / m.name / f"{m.name}.safetensors")
        )
        for m in FAMILIES[family]
        if (out / family / m.name / f"{m.name}.json").exists()
    )


def load(family: str, out: Path) -> dict[str, Callable[[Tensor], Tensor]]:
    """Load the trained members of a family through the package's own loader."""
    return {c.name: load_classifier(c, (1, SIZE, SIZE), CLASS_NAMES, out).eval() for c in trained(family, out)}


def audit(
    classifiers: Sequence[ClassifierConfig],
    out: Path,
    folder: Path,
    *,
    queries: int,
    seed: int,
    generator: str | None,
    images: int,
) -> AuditResult:
    """Audit classifiers in one run, as the demonstration does but for its robustness; inversions are kept.

    The `queries` are chosen among `images`.
    """
    base = load_config(demo_config())
    config = base.model_copy(
        update={
            "name": folder.name,
            "seed": seed,
            "classifiers": tuple(classifiers),
            "queries": base.queries.model_copy(update={"n": queries}),
            "data": base.data.model_copy(update={"phantom": base.data.phantom.model_copy(update={"audit": images})}),
            "generator": base.generator if generator is None else GeneratorConfig(path=generator),
            "regions": RegionsConfig(),  # no veto: the index has to find the marker by itself
            "metrics": base.metrics.model_copy(update={"canonical": "off", "axioms": 0}),
            "judge_checkpoints": (),
            "reliance": RelianceConfig(n=1, interventions=(), clusters=0),  # nor has reliance
            # Robust accuracy has no part in the index, and is measured on a single image because an audit has to.
            "robustness": RobustnessConfig(n=1, eps=("2/255",), steps=1, trust=None),
        }
    )
    return run_audit(config, folder, cache=out / "cache")


def localised(model: ModelResult, folder: Path, rows: Sequence[Query]) -> float:
    """Share of the model's visible edit (above 4/255) that lies in the queries' region, over all queries together."""
    inside, whole = 0.0, 0.0
    by_id = {query.id: query for query in rows}
    for row in model.queries:  # an unpaired model has images of its own
        query = by_id[row.query]
        edit = (read(folder / str(row.counterfactual_image)) - read(folder / str(query.inversion_image))).abs()
        edit = edit * (edit > VISIBLE)
        inside += float((edit * read(folder / query.region_images[MAIN_REGION]).gt(0.5)).sum())
        whole += float(edit.sum())
    return inside / whole if whole else float("nan")


def read(path: Path) -> Tensor:
    """Read one image of an audit's folder as `[H, W]`."""
    return torch.from_numpy(np.asarray(Image.open(path).convert("L"), dtype=np.float32) / 255)


def agreement(scores: Mapping[str, float], truths: Mapping[str, float], resamples: int = 1000) -> str:
    """Kendall's tau with a bootstrap interval over models, and the share of clearly different pairs ordered rightly."""
    names = [name for name, score in scores.items() if np.isfinite(score)]
    x, y = np.array([scores[n] for n in names]), np.array([truths[n] for n in names])
    if len(names) < 3:
        return f"n = {len(names)}: too few"
    draws = np.random.default_rng(0).integers(0, len(names), (resamples, len(names)))
    taus = [kendalltau(x[rows], y[rows]).statistic for rows in draws]
    low, high = np.nanquantile(taus, (0.025, 0.975))
    pairs = [(a, b) for a, b in combinations(range(len(names)), 2) if abs(y[a] - y[b]) >= CLEAR]
    right = np.mean([(x[a] - x[b]) * (y[a] - y[b]) > 0 for a, b in pairs]) if pairs else float("nan")
    tau = kendalltau(x, y).statistic
    return f"tau {tau:5.2f} [{low:5.2f}, {high:5.2f}]   pairs {right:.2f} of {len(pairs)}   models {len(names)}"


def compare(result: AuditResult, truths: Mapping[str, Mapping[str, float]], folder: Path) -> None:
    """Print what index and components say of every model beside the truth, and how far they agree with it."""
    explained = [m for m in result.models if m.queries]
    scores: dict[str, dict[str, float]] = {"index": {m.name: _number(m.index) for m in explained}}
    for part in COMPONENTS:
        scores[part] = {m.name: _number(getattr(m.components, part)) for m in explained}
    scores["visible"] = {m.name: localised(m, folder, result.queries) for m in explained}
    print(f"{'':22}{'truth':>9}{'flips':>9}" + "".join(f"{name:>14}" for name in scores))
    for model in sorted(explained, key=lambda m: -truths[m.name]["truth"]):
        true = truths[model.name]
        said = "".join(f"{values[model.name]:14.3f}" for values in scores.values())
        print(f"{model.name:22}{true['truth']:9.3f}{true['flips']:9.3f}{said}")
    for failed in (m for m in result.models if not m.queries):
        print(f"{failed.name}: not explained ({'' if failed.failed is None else failed.failed.why})")
    for against in ("truth", "flips"):
        for name, values in scores.items():
            print(f"{name:14} against {against}: {agreement(values, {n: t[against] for n, t in truths.items()})}")


def _number(value: float | None) -> float:
    return float("nan") if value is None else value


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("train", "truth", "audit", "compare"))
    parser.add_argument("--family", choices=(*FAMILIES, SHIPPED), default="first")
    parser.add_argument("--out", type=Path, default=Path("runs/family"))
    parser.add_argument("--n", type=int, default=600, help="images of the truth")
    parser.add_argument("--queries", type=int, default=48)
    parser.add_argument("--seed", type=int, default=7, help="of the audit's images and queries")
    parser.add_argument("--images", type=int, default=2000, help="that the audit's queries are chosen among")
    parser.add_argument("--models", nargs="+", help="train or audit these only")
    parser.add_argument("--generator", help="another generator's file, its encoder beside it")
    args = parser.parse_args()
    if args.family == SHIPPED and args.what != "truth":
        parser.error(f"the classifiers of '{SHIPPED}' are trained and audited by the package's own commands")
    if args.models and args.what not in ("train", "audit"):
        parser.error(f"--models: '{args.what}' is of all models")
    if unknown := sorted(set(args.models or ()) - {m.name for m in FAMILIES.get(args.family, ())}):
        parser.error(f"--models: '{args.family}' has no {', '.join(unknown)}")
    choose_style(None)  # an audit of a family takes up to an hour
    out = args.out.resolve()
    if args.what == "train":
        train(args.family, out, args.models)
        return
    name = str(args.seed) if args.generator is None else f"{args.seed}-{Path(args.generator).resolve().parent.name}"
    folder = out / f"{args.family}-audit-{name}"
    if args.what == "audit":
        some = [c for c in trained(args.family, out) if args.models is None or c.name in args.models]
        audit(some, out, folder, queries=args.queries, seed=args.seed, generator=args.generator, images=args.images)
    rows = truth(load(args.family, out), args.n, seed=4711)
    if args.what == "truth":
        columns = list(next(iter(rows.values())))
        print(f"{'':22}" + "".join(f"{column:>10}" for column in columns))
        for name, row in sorted(rows.items(), key=lambda item: -item[1]["truth"]):
            print(f"{name:22}" + "".join(f"{row[column]:10.3f}" for column in columns))
        return
    compare(AuditResult.model_validate_json((folder / "results.json").read_text()), rows, folder)


if __name__ == "__main__":
    main()
