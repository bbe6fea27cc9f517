"""Does the index reproduce the true order? The demonstration's audit on fresh phantoms, checked against the true twins.

    python benchmarks/index_validation.py [--seeds 3] [--queries 48] [--embedding auto]

`--embedding` is metrics.embedding: phantom-factors, discriminator, or the file of a domain embedding. Run with each, it
tells which embedding orders the models rightly (the perceptual term of inversion and edit rests on it as well).

For every seed (other images, other queries) it prints each model's index, rank, realism, transfer and pairwise
probabilities, and what only the phantom knows: how far each edit is from the *true* one, which leads to the query's
healthy twin (1: as far as no edit at all). The shortcut model has to be last. No order is asked of the three others: by
intervention (`family.py`) the adversarially trained ones do not decide more by the finding than the plain one. The
demonstration names the marker as a confounder; here no veto helps.
"""

import argparse
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from PIL import Image

from audit.config import (
    AuditConfig,
    MetricsConfig,
    RegionsConfig,
    RobustnessConfig,
    embedding_path,
    load_config,
    parse_config,
)
from audit.data.demo import demo_config
from audit.data.load import load_data
from audit.data.phantom import twins
from audit.pipeline.runner import run_audit
from audit.results import AuditResult
from audit.runtime.seeds import stage_seed

EXPECTED = (("plain", "shortcut"), ("trades", "shortcut"), ("trades-small", "shortcut"))


def read(path: Path) -> torch.Tensor:
    return torch.from_numpy(np.asarray(Image.open(path), dtype=np.float32) / 255)


def distance_to_truth(result: AuditResult, folder: Path, config: AuditConfig) -> dict[str, float]:
    """Per model the median over queries of |edit - true edit| / |true edit|, sums over pixels; 1 for no edit."""
    phantom = config.data.phantom
    labels = load_data(config.data, config.seed).split("test").row_labels
    with_finding = torch.where(labels == 0, 1, labels)  # healthy images have no twin and are never queries here
    seed = stage_seed(config.seed, "phantom/test")
    factual, healthy = twins(phantom.audit, seed, phantom.marker_correlation, with_finding)
    ratios: dict[str, list[float]] = {model.name: [] for model in result.models}
    for i, query in enumerate(result.queries):
        row = int(query.id.removeprefix("test-"))
        assert torch.allclose(factual.images[row, 0], read(folder / query.image), atol=1e-6)
        true_edit = (healthy.images - factual.images)[row, 0]
        inversion = read(folder / query.inversion_image)
        for model in result.models:
            edit = read(folder / str(model.queries[i].counterfactual_image)) - inversion
            ratios[model.name].append(float((edit - true_edit).abs().sum() / true_edit.abs().sum()))
    return {name: float(np.median(values)) for name, values in ratios.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--queries", type=int, default=48)
    parser.add_argument("--embedding", default="auto")
    args = parser.parse_args()
    base = load_config(demo_config())
    args.embedding = embedding_path(args.embedding, Path.cwd())
    # Robust accuracy has no part in the index, and is measured on a single image only because an audit has to.
    base = base.model_copy(
        update={
            "regions": RegionsConfig(),
            "metrics": parse_config(
                MetricsConfig, {"embedding": args.embedding, "canonical": "off", "axioms": 0}, "--embedding"
            ),
            "robustness": RobustnessConfig(n=1, eps=("2/255",), steps=1, trust=None),
        }
    )
    for seed in range(100, 100 + args.seeds):
        queries = base.queries.model_copy(update={"n": args.queries})
        config = base.model_copy(update={"seed": seed, "queries": queries})
        with TemporaryDirectory() as temporary:
            folder = Path(temporary) / "out"
            result = run_audit(config, folder)
            truth = distance_to_truth(result, folder, config)
        assert result.realism_embedding is not None
        print(f"seed {seed}, n = {len(result.queries)}, realism in {result.realism_embedding.name}")
        for model in sorted(result.models, key=lambda m: m.rank or 0):
            low, high = model.index_interval or (float("nan"),) * 2
            parts = {k: getattr(model.components, k) for k in ("realism", "transfer")}
            said = "   ".join(f"{k} {'-' if v is None else format(v, '.2f')}" for k, v in parts.items())
            print(
                f"  {model.rank} {model.name:14} index {model.index or 0:5.1f} [{low:.1f}, {high:.1f}]   {said}   "
                f"distance to the true edit {truth[model.name]:.2f}",
                flush=True,
            )
        above = {(c.a, c.b): c.probability for c in result.comparisons}
        above |= {(b, a): 1 - p for (a, b), p in above.items()}
        print("  " + ", ".join(f"P({a} > {b}) = {above[a, b]:.3f}" for a, b in EXPECTED))


if __name__ == "__main__":
    main()
