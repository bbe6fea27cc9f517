"""Reliance against the truth: do tokens and gains that know nothing of the phantom order its classifiers rightly?

    python benchmarks/reliance.py --family first --out runs/family

Needs the classifiers of `benchmarks/family.py train`, and takes the truth from there: the mean |change of P(healthy)|
when the phantom's own marker is put on or taken off, and when exposure or contrast alone are drawn anew, on images with
a finding. Beside it stands what `[reliance]` measures on other images: of the drawn side marker, of exposure and of
contrast, the mean shift of the probabilities and the mean fall where most decisions change.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from family import FAMILIES, load, truth
from scipy.stats import kendalltau, spearmanr

from audit.config import RelianceConfig
from audit.data.phantom import phantom_set
from audit.reliance.interventions import choose_interventions
from audit.reliance.run import Shown, reactions
from audit.results import Reaction

PAIRS = {"marker": "side-marker", "exposure": "exposure", "contrast": "contrast"}
"""Which intervention stands for which cause of the phantom."""


def worst(rows: dict[str, list[Reaction]], name: str) -> Reaction:
    """The strongest reaction, by the mean shift of the probabilities."""
    return max(rows[name], key=lambda one: one.shift.value or 0.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--family", choices=tuple(FAMILIES), default="first")
    parser.add_argument("--out", type=Path, default=Path("runs/family"))
    parser.add_argument("--n", type=int, default=200, help="images that are changed")
    parser.add_argument("--truth-n", type=int, default=600, help="images of the truth")
    parser.add_argument("--seed", type=int, default=7, help="of the images that are changed")
    args = parser.parse_args()
    classifiers = load(args.family, args.out.resolve())
    names = list(classifiers)
    images = phantom_set(calibration=30, audit=args.n, seed=args.seed).split("test")
    chosen = choose_interventions(RelianceConfig(interventions=(*PAIRS.values(), "text", "ruler", "border")))
    shown = Shown(images, 100, torch.device("cpu"), args.seed)
    found = {}
    for name, answers in zip(names, reactions(list(classifiers.values()), shown, chosen), strict=True):
        if isinstance(answers, Exception):
            raise answers
        found[name] = {row.name: row.reactions for row in answers.rows}
    true = truth(classifiers, args.truth_n, seed=4711)
    columns = [f"do({cause})" for cause in PAIRS] + [f"{name} {what}" for name in chosen for what in ("shift", "fall")]
    print(f"{'':18}" + "".join(f"{column:>19}" for column in columns))
    for name in names:
        values = [true[name][cause] for cause in PAIRS]
        for intervention in chosen:
            one = worst(found[name], intervention)
            values += [one.shift.value or 0.0, one.class_fall.value or 0.0]
        print(f"{name:18}" + "".join(f"{value:19.3f}" for value in values))
    for cause, intervention in PAIRS.items():
        x = np.array([true[name][cause] for name in names])
        for what in ("shift", "class_fall"):
            y = np.array([getattr(worst(found[name], intervention), what).value for name in names])
            draws = np.random.default_rng(0).integers(0, len(names), (1000, len(names)))
            low, high = np.nanquantile([spearmanr(x[rows], y[rows]).statistic for rows in draws], (0.025, 0.975))
            print(
                f"do({cause}) against {intervention} ({what}): Spearman {spearmanr(x, y).statistic:.2f} "
                f"[{low:.2f}, {high:.2f}], Kendall {kendalltau(x, y).statistic:.2f}, n = {len(names)}"
            )
    path = args.out / f"{args.family}-reliance-{args.seed}.json"
    told = {name: {k: [one.model_dump() for one in v] for k, v in rows.items()} for name, rows in found.items()}
    path.write_text(json.dumps({"truth": true, "reliance": told}, indent=1))


if __name__ == "__main__":
    main()
