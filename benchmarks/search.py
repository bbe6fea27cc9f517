"""How near is the search to the smallest change known to exist? The demonstration's models on the phantom.

    python benchmarks/search.py [--n 16] [--seed 7] [--models plain …] [--cap 0.9] [--whole] [--steps 110]
        [--sheets FOLDER] [--cache FOLDER]

The phantom knows by intervention what the search is not told: the healthy twin (the finding taken away), and the film
without its marker, which is all that the shortcut model reads. For the first query images that all models classify
correctly it prints, per model, what these two change and whether that flips the model; and then, after alignment alone
and after both phases of the search, the mean absolute change against the inversion (L1), the share of it on the region,
the lesion (of the images that have one), the marker and within 3 pixels of it, the confidence, the share that reached
the operating point, and the median of |edit - known edit| / |known edit| (1: as far as no edit at all), where the known
edit is the twin's, for the shortcut model that without the marker; and the share of the edits that each other model and
each independently trained copy takes for healthy, too.

`--sheets` writes what is to be looked at: inversion, aligned, shrunk and known images, and the three edits eight times
as strong around grey.
"""

import argparse
import dataclasses
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from audit.classifiers.classifier import Classifier
from audit.classifiers.load import load_classifier
from audit.config import AuditConfig, load_config
from audit.counterfactual.iterates import log_odds
from audit.counterfactual.methods import choose_method
from audit.data.audit_set import AuditSet
from audit.data.demo import demo_config
from audit.data.load import load_data
from audit.data.phantom import HEALTHY, sample, twins
from audit.pipeline.calibrate import calibrate
from audit.pipeline.context import Context
from audit.pipeline.explain import Subject, explain_model
from audit.pipeline.networks import Networks, load_networks
from audit.pipeline.queries import Queries, choose_queries, invert_queries, stable_groups
from audit.results import Clean
from audit.robustness.accuracy import clean_of_logits
from audit.runtime.environment import Stopwatch
from audit.runtime.seeds import stage_seed
from audit.storage.cache import Store
from audit.storage.pictures import save_image

NEAR = 3
"""Pixels around the marker that still count as its own."""


def share(edit: Tensor, mask: Tensor) -> Tensor:
    """Share of the edits' mass `[N, H, W]` in the masks; NaN where there is no mask."""
    inside = (edit * mask).sum((1, 2)) / edit.sum((1, 2)).clamp_min(1e-9)
    return torch.where(mask.any(2).any(1), inside, torch.nan)


def line(edits: Tensor, known: Tensor, masks: dict[str, Tensor]) -> str:
    size = edits.abs()
    parts = [f"{name} {share(size, mask).nanmean():.2f}" for name, mask in masks.items()]
    apart = (edits - known).abs().sum((1, 2)) / known.abs().sum((1, 2))
    return f"L1 {size.mean():.4f}   {'  '.join(parts)}   distance to the known edit {apart.median():.2f}"


def sheet(rows: list[Tensor], path: Path) -> None:
    """Write images `[N, H, W]` as rows of one picture."""
    save_image(torch.cat([torch.cat(list(row), 1) for row in rows]).clamp(0, 1)[None], path)


@dataclass(frozen=True)
class Work:
    """What the search starts from: the demonstration's networks, and the first images that all models get right.

    `copies` are trained alike from other seeds. `healthy` and `unmarked` are the images without their finding and
    without their marker, `masks` their regions.
    """

    context: Context
    networks: Networks
    models: dict[str, Classifier]
    copies: dict[str, Classifier]
    calibration: AuditSet
    subjects: dict[str, tuple[Tensor, Clean]]
    queried: Queries
    healthy: Tensor
    unmarked: Tensor
    masks: dict[str, Tensor]

    def known(self, name: str) -> Tensor:
        """Return the known edits `[N, C, H, W]` of the model `name`."""
        return (self.unmarked if name == "shortcut" else self.healthy) - self.queried.images

    def subject(self, name: str) -> Subject:
        """Calibrate the model `name`."""
        return Subject(calibrate(self.context, self.models[name], self.calibration), *self.subjects[name])


def prepare(n: int, seed: int, cap: float | None = None, cache: Path | None = None) -> Work:
    """Choose and invert `n` images of the phantom."""
    config = load_config(demo_config())
    config = config.model_copy(update={"seed": seed, "queries": config.queries.model_copy(update={"n": n})})
    if cap is not None:
        changed = config.counterfactual.model_copy(update={"operating_point_cap": cap})
        config = config.model_copy(update={"counterfactual": changed})
    context = Context(config, Path.cwd(), torch.device("cpu"), None if cache is None else Store(cache), Stopwatch())
    data = load_data(config.data, config.seed)
    audited, calibration = data.split("test"), data.split("calibration")
    networks = load_networks(config, data, context.device)
    models, copies = (
        {c.name: load_classifier(c, data.image_shape, data.class_names, Path.cwd()) for c in some}
        for some in (config.classifiers, config.judge_checkpoints)
    )
    for model in (*models.values(), *copies.values()):
        model.eval().requires_grad_(False)
    images, labels = audited.images(), audited.row_labels
    answers = {name: torch.cat([model(part) for part in images.split(100)]) for name, model in models.items()}
    decided = {name: logits.argmax(1) for name, logits in answers.items()}
    selection = choose_queries(context, audited, decided)
    inverted = invert_queries(context, networks, audited, selection.indices)
    same = {name: model(inverted.inversion.images).argmax(1) == inverted.labels for name, model in models.items()}
    (common,) = stable_groups(inverted, selection.groups, same, n).groups
    queried = inverted.select(common.places)
    healthy, unmarked = (one[queried.positions] for one in interventions(config, labels))
    masks = {name: audited.select(queried.positions).region(name) for name in ("region", "lesion", "marker")}
    around = functional.max_pool2d(masks["marker"][:, None].float(), 2 * NEAR + 1, 1, NEAR)[:, 0] > 0
    masks[f"within {NEAR} px of it"] = around
    subjects = {name: (logits, clean_of_logits(logits, labels, data.class_names)) for name, logits in answers.items()}
    return Work(context, networks, models, copies, calibration, subjects, queried, healthy, unmarked, masks)


def agreed(work: Work, name: str, images: Tensor) -> str:
    """Say of the edits `images` of the model `name` which share the others take for healthy, and copies of its own."""
    shares = {
        other: (judge(images).argmax(1) == HEALTHY).float().mean()
        for other, judge in work.models.items() | work.copies.items()
        if other != name and (other not in work.copies or other.startswith(name))
    }
    return ", ".join(f"{other} {share:.2f}" for other, share in sorted(shares.items()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=16)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--models", nargs="*")
    parser.add_argument("--cap", type=float)
    parser.add_argument("--whole", action="store_true", help="counterfactual.shrink_local = false")
    parser.add_argument("--steps", type=int, help="counterfactual.shrink_steps")
    parser.add_argument("--sheets", type=Path)
    parser.add_argument("--cache", type=Path)
    args = parser.parse_args()
    work = prepare(args.n, args.seed, args.cap, args.cache)
    context, config, networks, masks = work.context, work.context.config, work.networks, work.masks
    queried, queries, inversion = work.queried, work.queried.images, work.queried.inversion
    for name in args.models or work.models:
        model, known = work.models[name], work.known(name)
        print(name, flush=True)
        for what, changed in (("healthy twin", work.healthy), ("marker off", work.unmarked)):
            logits = model(changed)
            odds, flips = log_odds(logits, torch.full((len(queries),), HEALTHY)), logits.argmax(1) == HEALTHY
            print(
                f"  {what:15} L1 {(changed - queries).abs().mean():.4f}   flips {int(flips.sum())} of {len(queries)}   "
                f"median confidence {odds.sigmoid().median():.4f}, log-odds {odds.mean():.1f}"
            )
        subject = work.subject(name)
        ends, seconds = {}, {}
        for phase, shrink in (("alignment alone", False), ("shrunk", True)):
            switches = {"shrink": shrink, "shrink_local": not args.whole}
            switches |= {} if args.steps is None else {"shrink_steps": args.steps}
            settings = config.counterfactual.model_copy(update=switches)
            its = dataclasses.replace(context, config=config.model_copy(update={"counterfactual": settings}))
            begun = time.monotonic()
            explained = explain_model(its, choose_method(settings, config.seed), networks, queried, subject)
            ends[phase], seconds[phase] = explained.counterfactuals, (time.monotonic() - begun) / len(queries)
        asked = float(subject.calibrated.operating_point[HEALTHY])
        for phase, one in ends.items():
            edits = (one.images - inversion.images)[:, 0]
            print(
                f"  {phase:15} {line(edits, known[:, 0], masks)}   confidence {one.confidence.mean():.3f} "
                f"(asked {asked:.3f}, reached {one.reached.float().mean():.2f})   {seconds[phase]:.2f} s, "
                f"{one.trace.shape[1] if one.steps is None else float(one.steps.float().mean()):.0f} steps per image"
                + ("" if one.converged is None else f"   converged {one.converged.float().mean():.2f}")
                + f"   agreed by {agreed(work, name, one.images)}",
                flush=True,
            )
        if args.sheets is not None:
            changes = [(one.images - inversion.images)[:, 0] for one in ends.values()]
            pictures = [inversion.images, *(one.images for one in ends.values()), queries + known]
            sheet(
                [*(p[:, 0] for p in pictures), *(0.5 + 8 * change for change in (*changes, known[:, 0]))],
                args.sheets / f"{name}.png",
            )


def interventions(config: AuditConfig, labels: Tensor) -> tuple[Tensor, Tensor]:
    """All audited images without their finding, and without their marker; rows of healthy ones mean nothing."""
    phantom, seed = config.data.phantom, stage_seed(config.seed, "phantom/test")
    findings = torch.where(labels == HEALTHY, 1, labels)
    _, healthy = twins(phantom.audit, seed, phantom.marker_correlation, findings)
    # No finding carries a marker at a correlation of -1, whatever the chance that was drawn.
    return healthy.images, sample(phantom.audit, seed, -1.0, findings).images


if __name__ == "__main__":
    main()
