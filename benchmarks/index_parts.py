"""Which definitions of the index's components order a family as the truth does: offline, from an audit that was run.

    python benchmarks/index_parts.py --family first --out runs/family [--embedding NAME] [--images 7 8:0:48 ...]

`benchmarks/family.py audit` has to have been run with the same family, folder and seed: its counterfactuals are read
from the audit's pictures, so no search is run again. Printed are Kendall's tau with the truth, with a bootstrap
interval over models, and the share of pairs of clearly different truth that are ordered rightly: for every definition
of a component, for the index, without each of its components, and for other weights and means. `--images 7:0:24` takes
the first 24 query images of every model in the audit with seed 7; of several such sets only the index is tried, and how
far every two of them agree is printed. Definitions are chosen on the first family alone.
"""

import argparse
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path

import numpy as np
import torch
from family import FAMILIES, VISIBLE, agreement, load, read, truth
from scipy.stats import kendalltau
from torch import Tensor

from audit.classifiers.classifier import Classifier
from audit.config import RankingConfig, load_config
from audit.counterfactual.iterates import operating_points
from audit.data.demo import demo_config
from audit.embeddings.embedding import Embedder, embed_all
from audit.embeddings.resolve import Request, resolve
from audit.generator.readers import read_generator
from audit.metrics.cmmd import unit_norm
from audit.metrics.edit import nearest_distance
from audit.metrics.kernels import KERNELS
from audit.metrics.precision_recall import covered, radii
from audit.metrics.response import Answers, answers, together
from audit.metrics.transfer import Confidences, fit_judge
from audit.pipeline.answers import confidences_of
from audit.pipeline.context import Context
from audit.pipeline.images import Images, read_images
from audit.pipeline.rank import FLOOR
from audit.pipeline.response import acquisitions
from audit.results import COMPONENTS, MAIN_REGION, AuditResult, ModelResult
from audit.runtime.environment import Stopwatch
from audit.storage.cache import Store

CPU = torch.device("cpu")
CAP = 0.9
REAL = 600
Scores = dict[str, float]


@dataclass(frozen=True)
class Edited:
    """One model's edits of its query images: pictures `[n, 1, H, W]`, which of them flip, and their embeddings."""

    findings: tuple[str, ...]
    inversions: Tensor
    images: Tensor
    region: Tensor
    flipped: Tensor
    nearest: Tensor
    embedded: Tensor
    embedded_inversions: Tensor

    @property
    def edit(self) -> Tensor:
        return (self.images - self.inversions).abs()[:, 0].double()

    @property
    def l1(self) -> Tensor:
        return self.edit.flatten(1).mean(1)


@dataclass(frozen=True)
class Said:
    """What one judge says of one model's edits, in confidences in "healthy" `[n]`, and its weight."""

    before: Tensor
    after: Tensor
    goal: float
    power: float

    @property
    def heard(self) -> Tensor:
        """Weight by image `[n]`: none where the judge calls the unedited image healthy already."""
        return self.power * (self.before < 0.5).double()

    @property
    def way(self) -> Tensor:
        return Confidences(self.before, self.after, torch.full_like(self.before, self.goal)).way()


@dataclass(frozen=True)
class Evidence:
    """All that the candidates rest on.

    By maker and judge: what is `said` by all but the maker, and what models, the maker among them, answer to the edits
    inside and outside the region. By model: what it answers to another acquisition of the image, `[n]`.
    """

    edited: dict[str, Edited]
    said: dict[str, dict[str, Said]]
    answers: dict[str, dict[str, Answers]]
    acquired: dict[str, Tensor]
    real: Tensor


def mean_of(scores: Tensor, flipped: Tensor) -> float:
    """Mean over images; an edit that does not flip earns nothing."""
    return float(torch.where(flipped, scores.double(), 0.0).nanmean())


# Localisation


def localisation(least: float) -> Callable[[Evidence, str], float]:
    """Excess over chance of the edit above `least` in the region, mean over images."""

    def score(evidence: Evidence, name: str) -> float:
        one = evidence.edited[name]
        edit = one.edit * (one.edit > least)
        area = one.region.flatten(1).double().mean(1)
        mass = (edit * one.region).sum((1, 2)) / edit.sum((1, 2))
        return mean_of(((mass - area) / (1 - area)).nan_to_num(0.0).clamp(0, 1), one.flipped)

    return score


def pooled(least: float) -> Callable[[Evidence, str], float]:
    """Share of all edits together, above `least`, that lies in the region."""

    def score(evidence: Evidence, name: str) -> float:
        one = evidence.edited[name]
        edit = one.edit * (one.edit > least)
        return float((edit * one.region).sum() / edit.sum())

    return score


# Transfer


def transfer(
    agree: Callable[[Said], Tensor], heard: Callable[[str, Said], bool] = lambda name, said: True
) -> Callable[[Evidence, str], float]:
    """Weighted mean of what the judges that are `heard` agree with, mean over images."""

    def score(evidence: Evidence, name: str) -> float:
        judges = [said for judge, said in evidence.said[name].items() if heard(judge, said)]
        total = sum((said.heard for said in judges), torch.zeros(()))
        agreed = sum((said.heard * agree(said) for said in judges), torch.zeros(()))
        return mean_of(torch.where(total > 0, agreed / total, torch.nan), evidence.edited[name].flipped)

    return score


def received(evidence: Evidence, name: str) -> float:
    """How far the edits of the other models bring this one, in log-odds."""
    ways = [evidence.said[maker][name].way[one.flipped] for maker, one in evidence.edited.items() if maker != name]
    return float(torch.cat(ways).mean())


def answers_of(evidence: Evidence, name: str, makers: Collection[str] | None = None) -> Answers:
    """What a model answers to the edits of the `makers`, or of all, and to another acquisition of the images.

    Models have to be explained on the same images.
    """
    found = together(made_for(evidence, name, makers))
    return replace(found, acquired=evidence.acquired[name])


def means_of(evidence: Evidence, name: str, makers: Collection[str] | None = None) -> Answers:
    """As `answers_of`, but means over the makers and of edits alone."""
    made = made_for(evidence, name, makers)
    inside, rest = (torch.stack(parts).mean(0) for parts in zip(*((one.inside, one.rest) for one in made), strict=True))
    return Answers(inside, rest, torch.zeros_like(inside))


def made_for(evidence: Evidence, name: str, makers: Collection[str] | None) -> list[Answers]:
    """What a model answers to the edits of each of the `makers`, or of all."""
    return [made[name] for maker, made in evidence.answers.items() if makers is None or maker in makers]


def response(heard: Callable[[Evidence, str], Answers]) -> Callable[[Evidence, str], float]:
    """Of what the model answers, the share that it answers inside the region."""

    def score(evidence: Evidence, name: str) -> float:
        found = heard(evidence, name)
        return float(found.share(torch.ones(1, len(found.inside), dtype=torch.float64)))

    return score


# Sparsity


def sparsity(evidence: Evidence, name: str) -> float:
    """Smallness beside the distance to the nearest real image of the target class."""
    one = evidence.edited[name]
    return mean_of((1 - one.l1 / one.nearest).clamp(0, 1), one.flipped)


def unchanged(evidence: Evidence, name: str) -> float:
    """Share of pixels that do not change visibly."""
    one = evidence.edited[name]
    return mean_of((one.edit <= VISIBLE).double().flatten(1).mean(1), one.flipped)


def smallest_known(agree: float) -> Callable[[Evidence, str], float]:
    """L1 of the smallest edit of any model that at least a share `agree` of its judges is convinced by, over one's own.

    All models have to be explained on the same images.
    """

    def score(evidence: Evidence, name: str) -> float:
        best = torch.full((len(evidence.edited[name].l1),), torch.inf, dtype=torch.float64)
        for maker, one in evidence.edited.items():
            judges = evidence.said[maker].values()
            total = sum((said.heard for said in judges), torch.zeros(()))
            share = sum((said.heard * (said.after >= 0.5) for said in judges), torch.zeros(())) / total
            valid = one.flipped & ~(share < agree)
            best = torch.where(valid, torch.minimum(best, one.l1), best)
        one = evidence.edited[name]
        return mean_of(torch.where(best.isfinite(), (best / one.l1).clamp(0, 1), torch.nan), one.flipped)

    return score


# Realism


def realism(kernel: str) -> Callable[[Evidence, str], float]:
    """Share of the gap to real images that the edits close, in the unbiased squared distance of a kernel."""
    matrix = KERNELS[kernel]
    known: dict[str, float] = {}

    def within(x: Tensor) -> float:
        values = matrix(x, x)
        return float((values.sum() - values.diagonal().sum()) / (len(x) * (len(x) - 1)))

    def score(evidence: Evidence, name: str) -> float:
        one = evidence.edited[name]
        if "real" not in known:
            known["real"] = within(evidence.real)

        def distance(x: Tensor) -> float:
            return within(x) + known["real"] - 2 * float(matrix(x, evidence.real).mean())

        edited = torch.where(one.flipped[:, None], one.embedded, one.embedded_inversions)
        before = distance(one.embedded_inversions)
        return min(1.0, max(0.0, (before - distance(edited)) / before))

    return score


def plausible(k: int) -> Callable[[Evidence, str], float]:
    """Precision: share of the edited images within the k-nearest-neighbour balls of the real ones."""

    def score(evidence: Evidence, name: str) -> float:
        one = evidence.edited[name]
        found = covered(one.embedded[one.flipped], evidence.real, radii(evidence.real, k))
        return found * float(one.flipped.double().mean())

    return score


def says_yes(said: Said) -> Tensor:
    return (said.after >= 0.5).double()


CANDIDATES: dict[str, Callable[[Evidence, str], float]] = {
    "validity": lambda evidence, name: float(evidence.edited[name].flipped.double().mean()),
    "realism": realism("energy"),
    "realism, CMMD's kernel": realism("cmmd"),
    "realism, precision k = 3": plausible(3),
    "realism, precision k = 10": plausible(10),
    "sparsity": sparsity,
    "sparsity, pixels unchanged": unchanged,
    "sparsity, smallest known": smallest_known(0.0),
    "sparsity, smallest agreed on": smallest_known(0.5),
    "localisation": localisation(VISIBLE),
    "localisation, whole edit": localisation(0.0),
    "localisation, visible, pooled": pooled(VISIBLE),
    "localisation, whole, pooled": pooled(0.0),
    "transfer": transfer(lambda said: said.way),
    "transfer, yes or no": transfer(says_yes),
    "transfer, at the goal": transfer(lambda said: (said.after >= said.goal).double()),
    "transfer, domain judge": transfer(lambda said: said.way, lambda judge, said: judge.startswith("logistic")),
    "transfer, domain judge, yes or no": transfer(says_yes, lambda judge, said: judge.startswith("logistic")),
    "transfer, sharp judges, yes or no": transfer(says_yes, lambda judge, said: said.goal >= 0.8),
    "transfer, received": received,
    "response": response(answers_of),
    "response, means of edits": response(means_of),
}
"""The first word is the component; alone, it is the definition in use."""


def gather(images: str, family: str, out: Path, embedding: str, classifiers: dict[str, Classifier]) -> Evidence:
    """Read the pictures `AUDIT[:FROM:TO]` of an audit and ask all judges again."""
    audited, *ends = images.split(":")
    part = slice(*(int(end) if end else None for end in ends)) if ends else slice(None)
    folder = out / f"{family}-audit-{audited}"
    result = AuditResult.model_validate_json((folder / "results.json").read_text())
    base = load_config(demo_config())
    phantom = base.data.phantom.model_copy(update={"audit": 2000})
    config = base.model_copy(update={"seed": result.seed, "data": base.data.model_copy(update={"phantom": phantom})})
    context = Context(config, out, CPU, Store(out / "cache"), Stopwatch())
    pool = read_images(context)
    assert pool.calibration is not None
    assert config.generator is not None
    network = resolve(
        embedding, Request("--embedding", CPU, is_phantom=True, loaded=read_generator(config.generator, CPU)), "vectors"
    )
    healthy = pool.calibration.images()[pool.calibration.row_labels == 0][:REAL]
    by_id = {query.id: query for query in result.queries}
    edited = {}
    for model in (m for m in result.models if m.queries):
        rows = model.queries[part]
        asked = [by_id[row.query] for row in rows]
        made = torch.stack([read(folder / str(row.counterfactual_image)) for row in rows])[:, None]
        before = torch.stack([read(folder / str(query.inversion_image)) for query in asked])[:, None]
        originals = torch.stack([read(folder / str(query.image)) for query in asked])[:, None]
        edited[model.name] = Edited(
            tuple(query.label for query in asked),
            before,
            made,
            torch.stack([read(folder / query.region_images[MAIN_REGION]) > 0.5 for query in asked]),
            torch.tensor([row.flipped for row in rows]),
            nearest_distance(originals, healthy).double(),
            unit_norm(embed_all(network, made, 256, CPU)),
            unit_norm(embed_all(network, before, 256, CPU)),
        )
    said = judged(context, result, pool, edited, classifiers, network)
    heard = {
        maker: {name: parts_heard(context, classifiers[name], one) for name in edited} for maker, one in edited.items()
    }
    acquired = {name: acquired_heard(context, classifiers[name], one) for name, one in edited.items()}
    return Evidence(edited, said, heard, acquired, unit_norm(embed_all(network, healthy, 256, CPU)))


def judged(
    context: Context,
    result: AuditResult,
    images: Images,
    edited: dict[str, Edited],
    classifiers: dict[str, Classifier],
    network: Embedder,
) -> dict[str, dict[str, Said]]:
    """By maker and judge what is said of the edits; powers are those of the audit, operating points measured again."""
    assert images.calibration is not None
    calibration, labels = images.calibration.images(), images.calibration.row_labels
    embedded = embed_all(network, calibration, 256, CPU)
    domain = fit_judge(network.name, embedded, labels)
    ask: dict[str, Callable[[Tensor], Tensor]] = {
        name: lambda pictures, one=one: confidences_of(context, one, pictures) for name, one in classifiers.items()
    }
    ask[domain.name] = lambda pictures: domain.confidences(embed_all(network, pictures, 256, CPU))
    said: dict[str, dict[str, Said]] = {name: {} for name in edited}
    for judge, answer in ask.items():
        usual = domain.confidences(embedded) if judge == domain.name else answer(calibration)
        goal = float(operating_points(usual, labels, usual.argmax(1)).clamp(max=CAP).nan_to_num(CAP)[0])
        for maker, one in edited.items():
            if maker != judge:
                power = power_of(result, maker, judge)
                said[maker][judge] = Said(answer(one.inversions)[:, 0], answer(one.images)[:, 0], goal, power)
    return said


def parts_heard(context: Context, model: Classifier, one: Edited) -> Answers:
    """What a model answers to the edits inside and outside the region."""
    part = one.region[:, None]
    inside, outside = torch.where(part, one.images, one.inversions), torch.where(part, one.inversions, one.images)
    return answers(*(confidences_of(context, model, shown)[:, 0] for shown in (one.inversions, inside, outside)))


def acquired_heard(context: Context, model: Classifier, one: Edited) -> Tensor:
    """What a model answers `[n]` to another acquisition of the inversions."""
    shown = (one.inversions, *acquisitions(one.inversions))
    before, *after = (confidences_of(context, model, images)[:, 0] for images in shown)
    return answers(before, before, before, torch.stack(after)).acquired


def power_of(result: AuditResult, maker: str, judge: str) -> float:
    """Power of a judge as the audit found it; that of the domain judge is found by its kind in any embedding."""
    model: ModelResult = next(m for m in result.models if m.name == maker)
    assert model.counterfactuals is not None
    rows = [
        row for row in model.counterfactuals.judges if row.name == judge or judge.startswith(row.name.split(" ")[0])
    ]
    return next((row.power or 0.0 for row in rows), 0.0)


def geometric(parts: Sequence[float], weights: Sequence[float]) -> float:
    logs = torch.tensor(parts, dtype=torch.float64).clamp(FLOOR, 1).log()
    return float(100 * ((logs * torch.tensor(weights)).sum() / sum(weights)).exp())


def arithmetic(parts: Sequence[float], weights: Sequence[float]) -> float:
    return 100 * sum(p * w for p, w in zip(parts, weights, strict=True)) / sum(weights)


def index(scores: dict[str, Scores], weights: dict[str, float], mean: Callable[..., float] = geometric) -> Scores:
    """Index by model from the named components."""
    return {name: mean([scores[part][name] for part in weights], list(weights.values())) for name in scores["validity"]}


def try_all(evidence: Evidence, truths: dict[str, float], weights: dict[str, float]) -> None:
    """Print how every definition, and the index made of them in several ways, agrees with the truth."""
    scores: dict[str, Scores] = {}
    for title, score in CANDIDATES.items():
        same = len({len(one.flipped) for one in evidence.edited.values()}) == 1
        if title.startswith(("sparsity, smallest", "response")) and not same:
            continue
        scores[title] = {name: score(evidence, name) for name in evidence.edited}
        print(f"{title:36}{agreement(scores[title], truths)}", flush=True)
    trials = {"index": index(scores, weights)}
    for part in COMPONENTS:
        trials[f"index without {part}"] = index(scores, {k: w for k, w in weights.items() if k != part})
    for weight in (1.0, 2.0, 3.0, 6.0):
        trials[f"index, localisation x {weight:g}"] = index(scores, weights | {"localisation": weight})
    trials["index, arithmetic mean"] = index(scores, weights, arithmetic)
    for component, others in {
        "localisation": ("localisation, whole edit",),
        "transfer": ("transfer, yes or no",),
        "sparsity": ("sparsity, smallest agreed on",),
        "realism": ("realism, precision k = 3",),
        "response": ("response, means of edits",),
    }.items():
        for other in others:
            if other in scores:
                trials[f"index with {other}"] = index(scores | {component: scores[other]}, weights)
    trials["index without response"] = index(scores, RankingConfig().weights(response=False))
    earlier = {"localisation": "localisation, whole edit", "transfer": "transfer, yes or no"}
    even = dict.fromkeys(COMPONENTS, 1.0)
    trials["index of earlier versions"] = index(scores | {k: scores[v] for k, v in earlier.items()}, even)
    for title, values in trials.items():
        print(f"{title:36}{agreement(values, truths)}", flush=True)
    print(f"{'':24}{'truth':>8}{'index':>8}" + "".join(f"{part:>14}" for part in COMPONENTS))
    for name in sorted(evidence.edited, key=lambda one: -truths[one]):
        said = "".join(f"{scores[part][name]:14.3f}" for part in COMPONENTS)
        print(f"{name:24}{truths[name]:8.3f}{trials['index'][name]:8.1f}{said}")


def parser_of(about: str | None) -> argparse.ArgumentParser:
    """Return what reads which audits of which family are asked for, and in which embedding."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--family", choices=tuple(FAMILIES), default="first")
    parser.add_argument("--out", type=Path, default=Path("runs/family"))
    parser.add_argument("--embedding", default="phantom-factors")
    parser.add_argument("--images", nargs="+", default=["7"], help="query images AUDIT[:FROM:TO] of every model")
    return parser


def main() -> None:
    args = parser_of(__doc__).parse_args()
    out = args.out.resolve()
    classifiers = load(args.family, out)
    truths = {name: row["truth"] for name, row in truth(classifiers, 600, seed=4711).items()}
    weights = RankingConfig().weights(response=True)
    if len(args.images) == 1:
        try_all(gather(args.images[0], args.family, out, args.embedding, classifiers), truths, weights)
        return
    indices = {}
    for images in args.images:
        evidence = gather(images, args.family, out, args.embedding, classifiers)
        scores = {part: {name: CANDIDATES[part](evidence, name) for name in evidence.edited} for part in COMPONENTS}
        indices[images] = index(scores, weights)
        print(f"{images:16} {agreement(indices[images], truths)}", flush=True)
    for first, second in combinations(indices, 2):
        both = [name for name in indices[first] if name in indices[second]]
        x, y = ([indices[which][name] for name in both] for which in (first, second))
        print(f"{first} and {second}: tau {kendalltau(x, y).statistic:.2f}, correlation {np.corrcoef(x, y)[0, 1]:.3f}")


if __name__ == "__main__":
    main()
