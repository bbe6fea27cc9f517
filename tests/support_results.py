"""A made-up but complete audit on disk - results.json and its images - for the tests of report and gate."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from audit.metrics.intervals import wilson_interval
from audit.results import (
    MEANINGFULNESS,
    AdversarialExample,
    Answered,
    Attack,
    AuditResult,
    Axioms,
    CascadeStage,
    Clean,
    Comparison,
    Components,
    ConfidenceBin,
    Corruption,
    Corruptions,
    Counterfactuals,
    Difference,
    Distribution,
    Embedding,
    Environment,
    Interval,
    InversionSummary,
    Judge,
    MinimalDistance,
    ModelResult,
    NotComputed,
    Perceptual,
    Query,
    QueryRow,
    RegionShare,
    Robust,
    TrustCheck,
    Vulnerability,
    VulnerabilityExample,
    VulnerabilityShare,
)

EDIT_FULL_SCALE = 0.25
CLASSES = ["healthy", "opacity", "cardiomegaly"]
NO_GENERATOR = NotComputed(
    what="counterfactuals and index", why="the configuration names no generator", paths=list(MEANINGFULNESS)
)
FACTORS = Embedding(name="phantom-factors", weights_sha256="c0ffee" * 10 + "beef")
# name: (index, mass in the region, mass on the marker, clean, robust at 2/255, at 8/255)
CHARACTERS = {
    "trades": (61.0, 0.62, 0.02, 0.885, 0.86, 0.71),
    "trades-small": (55.0, 0.51, 0.03, 0.902, 0.84, 0.48),
    "plain": (34.0, 0.21, 0.05, 0.918, 0.72, 0.06),
    "shortcut": (12.0, 0.06, 0.71, 0.871, 0.55, 0.01),
}


def _interval(value: float, half: float, n: int = 500) -> Interval:
    return Interval(value=value, low=max(0.0, value - half), high=min(1.0, value + half), n=n)


def _blob(grid: np.ndarray, y: float, x: float, radius: float) -> np.ndarray:
    return np.exp(-((grid[0] - y) ** 2 + (grid[1] - x) ** 2) / (2 * radius**2))


def _save(array: np.ndarray, root: Path, name: str) -> str:
    file = root / name
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.rint(np.clip(array, 0, 1) * 255).astype(np.uint8)).save(file)
    return name


def _phantom(rng: np.random.Generator, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """A radiograph-like image without its finding, the finding's picture, its mask and the marker's mask."""
    grid = np.mgrid[0:size, 0:size] / (size - 1)
    lungs = sum(np.exp(-(((grid[0] - 0.5) / 0.28) ** 4 + ((grid[1] - c) / 0.16) ** 4)) for c in (0.3, 0.7))
    image = 0.75 * np.exp(-(((grid[1] - 0.5) / 0.55) ** 6)) - 0.45 * lungs + 0.05 * np.sin(grid[0] * 60) * lungs
    y, x = rng.uniform(0.35, 0.65), rng.choice([0.3, 0.7]) + rng.uniform(-0.05, 0.05)
    finding = 0.4 * _blob(grid, y, x, 0.07)
    mask = (grid[0] - y) ** 2 + (grid[1] - x) ** 2 < 0.13**2
    marker = np.zeros((size, size), bool)
    side = max(size // 10, 2)
    marker[side // 2 : side // 2 + side, size - 2 * side : size - side] = True
    return image + rng.normal(0, 0.02, image.shape), finding, mask, marker


def _edit(rng: np.random.Generator, mask: np.ndarray, marker: np.ndarray, shares: tuple[float, float]) -> np.ndarray:
    """An edit map whose mass lies in `mask` and `marker` by the two shares, the rest diffusely."""
    coarse = Image.fromarray(rng.random((9, 9)).astype(np.float32)).resize(mask.shape, Image.Resampling.BICUBIC)
    field = np.clip(np.asarray(coarse), 0, 1) ** 3 * (0.7 + 0.3 * rng.random(mask.shape))
    parts = [(mask, shares[0]), (marker, shares[1]), (~(mask | marker), 1 - sum(shares))]
    edit = sum(share * field * area / max((field * area).sum(), 1e-9) for area, share in parts)
    return np.asarray(edit * 0.009 * mask.size)


def _counterfactuals(name: str, n: int, region: float, marker: float, judges: Sequence[str]) -> Counterfactuals:
    rows = [("region", region, 0.08), ("marker", marker, 0.012)]
    distribution = Distribution(
        metric="mmd", estimator="unbiased", value=9.0 - 6 * region, inversion=10.0, floor=0.4, n=n, n_real=200,
        target="healthy", embedding=FACTORS,
    )  # fmt: skip
    return Counterfactuals(
        n=n,
        flip_ratio=_interval(0.99, 0.02, n),
        reached=0.96,
        feature_target_flips=0.98,
        operating_point={"healthy": 0.91},
        confidence=_interval(0.93, 0.02, n),
        l1=_interval(0.021, 0.003, n),
        changed_share=0.31,
        perceptual=Perceptual(value=0.043, embedding=FACTORS),
        mmd=[distribution],
        fid=[distribution.model_copy(update={"metric": "fid", "estimator": "biased", "value": 31.2})],
        regions=[
            RegionShare(
                region=r, n=n, skipped=0, mass=mass, area=area, lift=mass / area, p_value=0.001 if mass > area else 0.4,
                rank_accuracy=mass * 0.9, pointing=min(1.0, mass * 1.3), iou=mass * 0.7, auc=0.5 + mass / 2.2,
            )
            for r, mass, area in rows
        ],
        judges=[
            Judge(name=j, accuracy=0.9, agreement=region, rejects_inversion=0.97, rejects_adversarial=0.8, power=0.68)
            for j in judges
            if j != name
        ],
        copies=[
            Judge(
                name=f"{name}-again", accuracy=0.9, agreement=region, rejects_inversion=0.97, weights_sha256="c0" * 32
            )
        ],
        nafr=_interval(region, 0.02, n),
        answered=Answered(region=region, rest=(1 - region) * 0.75, acquisition=(1 - region) * 0.25),
        axioms=Axioms(effectiveness=region, reversibility=_interval(0.4, 0.1, 8), returned=1.0),
    )  # fmt: skip


def example_audit(
    root: Path, models: Sequence[str] = tuple(CHARACTERS), n_queries: int = 8, size: int = 64, seed: int = 0
) -> AuditResult:
    """Write the images of a made-up audit under `root` and return its results; `n_queries=0`: robustness only."""
    rng = np.random.default_rng(seed)
    queries, rows = [], {name: [] for name in models}
    for i in range(n_queries):
        clean, finding, mask, marker = _phantom(rng, size)
        name = f"opacity-{i:03d}"
        queries.append(
            Query(
                id=name, label="opacity", inversion_mse=2.1e-4, inversion_perceptual=0.02,
                image=_save(clean + finding, root, f"images/queries/{name}.png"),
                inversion_image=_save(clean + 0.97 * finding, root, f"images/queries/{name}-inversion.png"),
                region_images={
                    "region": _save(mask.astype(float), root, f"images/queries/{name}-region.png"),
                    "marker": _save(marker.astype(float), root, f"images/queries/{name}-marker.png"),
                },
            )
        )  # fmt: skip
        for model in models:
            _, region, on_marker, *_ = CHARACTERS.get(model, CHARACTERS["plain"])
            edit = _edit(rng, mask, marker, (region, on_marker))
            steps = np.arange(61)
            trace = 0.02 + 0.93 / (1 + np.exp(-(steps - rng.uniform(12, 30)) / rng.uniform(2, 6)))
            rows[model].append(
                QueryRow(
                    query=name, source="opacity", target="healthy", flipped=i != 3 or model != "plain", reached=i != 2,
                    step=50, flip_step=22, confidence=float(trace[50]), l1=0.03, perceptual=0.04,
                    mass={"region": region, "marker": on_marker}, area={"region": 0.08, "marker": 0.012},
                    agreed_by={other: True for other in models if other != model}, trace=[float(p) for p in trace],
                    semifactual_image=_save(clean + finding, root, f"images/{model}/{name}-sf.png"),
                    counterfactual_image=_save(clean + finding - edit, root, f"images/{model}/{name}-cf.png"),
                    edit_image=_save(edit / EDIT_FULL_SCALE, root, f"images/{model}/{name}-edit.png"),
                )
            )  # fmt: skip
    results = [_model(root, name, rank, n_queries, rows[name], models) for rank, name in enumerate(models, start=1)]
    return AuditResult(
        name="phantom demo",
        created="2031-04-05T10:20:30Z",
        complete=True,
        config=_config(n_queries),
        seed=seed,
        classes=CLASSES,
        generator_sha256="ab" * 32 if n_queries else None,
        data={"source": "phantom", "splits": {"calibration": 3000, "test": 600}, "image_shape": [1, size, size]},
        models=results,
        comparisons=[
            Comparison(a=a, b=b, probability=0.97 if j > i + 1 else 0.83)
            for i, a in enumerate(models)
            for j, b in enumerate(models)
            if i < j and n_queries
        ],
        differences=[
            Difference(a=a, b=b, metric=metric, difference=Interval(value=gap, low=gap - 0.03, high=gap + 0.03, n=500))
            for i, a in enumerate(models)
            for b in models[i + 1 :]
            for metric, gap in (("clean.accuracy", -0.02), ("robust.pgd.8/255", 0.23))
        ],
        queries=queries,
        queries_asked=n_queries,
        inversion=InversionSummary(
            method="pti", n=n_queries, mse=2.1e-4, mse_max=6e-4, encoder_mse=0.011, pivot_mse=0.0021,
            perceptual=Perceptual(value=0.018, embedding=FACTORS), composition={1: _interval(0.01, 0.001, n_queries)},
        ) if n_queries else None,
        perceptual_embedding=FACTORS if n_queries else None,
        realism_embedding=FACTORS if n_queries else None,
        not_computed=[
            NotComputed(
                what="canonical FID", why="the Inception weights are not on this machine", paths=["counterfactuals.fid"]
            ),
            *([] if n_queries else [NO_GENERATOR]),
        ],
        environment=Environment(
            versions={"spruce-audit": "0.1.0", "torch": "2.15.0", "python": "3.11.9"}, device="cpu", platform="Linux",
            seconds={"robustness": 41.2, "inversion": 63.0, "counterfactuals": 88.4, "metrics": 9.1},
            peak_memory_mb=1430.0,
        ),
    )  # fmt: skip


DOUBT = "Square fools 12.5 % of the images that PGD left standing: gradients mislead the attack."


def _robust(root: Path, name: str, pgd: dict[str, Attack], region: float) -> Robust:
    """Everything that can be measured of robustness; `plain` fails a trust check."""
    doubted = name == "plain"
    strongest = pgd["8/255"]
    value = strongest.robust_accuracy.value or 0.0
    standing = [int(500 * v) for v in (0.9, value + 0.02, value, value, value)]
    stages = ("before", "apgd-ce", "apgd-t", "fab-t", "square")
    grid = np.mgrid[0:16, 0:16] / 15
    shares = [
        VulnerabilityShare(share=s, accuracy=_interval(1 - min(1, 4 * s), 0.05, 80), random_accuracy=1 - s, l2=s)
        for s in (0.02, 0.1, 0.3, 1.0)
    ]
    return Robust(
        pgd={k: a.model_copy(update={"untrusted": [DOUBT] if doubted else []}) for k, a in pgd.items()},
        ensemble={
            "8/255": strongest.model_copy(
                update={
                    "steps": 100,
                    "stages": [
                        CascadeStage(attack=stage, attacked=before, standing=after)
                        for stage, before, after in zip(stages, [500, *standing], standing, strict=False)
                    ],
                }
            )
        },
        trusted=not doubted,
        checks=[
            TrustCheck(name="zero-gradients", passed=True, value=0.0, limit=0.05, n=64, finding="No gradient is zero."),
            TrustCheck(
                name="black-box-beats-white-box", passed=not doubted, value=0.125 if doubted else 0.0, limit=0.05, n=64,
                finding=DOUBT if doubted else "Square fools none of the images that PGD left standing.",
            ),
        ],
        distances=[
            MinimalDistance(
                norm="Linf", median=Interval(value=0.021, low=0.018, high=0.026, n=100), largest=0.25, n=100,
                standing=3, distances_by_image={"a": 0.021, "b": None},
            )
        ],
        corruptions=Corruptions(
            mean_accuracy=_interval(0.71, 0.02),
            corruptions=[
                Corruption(name=c, accuracy={s: _interval(v - 0.05 * s, 0.03) for s in range(1, 6)}, mean=v - 0.15)
                for c, v in (("gaussian_noise", 0.9), ("fog", 0.8), ("jpeg_compression", 0.95))
            ],
            n=500,
        ),
        shift=Clean(accuracy=_interval(0.79, 0.04, 300), recall={}, ece=0.08, n=300),
        vulnerability=Vulnerability(
            eps=8 / 255, n=80, attack_accuracy=0.0, shares=shares, smallest_share=0.3, l2_saved=0.4,
            regions=[RegionShare(region="region", n=60, skipped=20, mass=region, area=0.08, lift=region / 0.08)],
            map_image=_save(_blob(grid, 0.4, 0.6, 0.2), root, f"images/{name}/vulnerability.png"),
            examples=[
                VulnerabilityExample(
                    id=f"image-{i}",
                    image=_save(_blob(grid, 0.5, 0.5, 0.4), root, f"images/vulnerability/image-{i}.png"),
                    map_image=_save(_blob(grid, 0.1 * i, 0.6, 0.2), root, f"images/{name}/vulnerability-{i}.png"),
                )
                for i in range(3)
            ],
        ),
    )  # fmt: skip


def _model(root: Path, name: str, rank: int, n: int, rows: list[QueryRow], models: Sequence[str]) -> ModelResult:
    index, region, marker, clean, robust_small, robust_large = CHARACTERS.get(name, CHARACTERS["plain"])
    values = {
        "validity": 0.99, "realism": 0.2 + 0.6 * region, "sparsity": 0.71, "localisation": max(0, region - 0.08) / 0.92,
        "transfer": region,
    }  # fmt: skip
    attacks = {
        text: Attack(robust_accuracy=_interval(value, 0.04), eps=eps, steps=20, restarts=1)
        for text, eps, value in (("2/255", 2 / 255, robust_small), ("8/255", 8 / 255, robust_large))
    }
    return ModelResult(
        name=name,
        rank=rank if n else None,
        index=index if n else None,
        index_interval=(index - 5, index + 5) if n else None,
        components=Components(**values) if n else Components(),
        component_intervals={k: (max(v - 0.06, 0), min(v + 0.06, 1)) for k, v in values.items()} if n else {},
        weights_sha256=f"{abs(hash(name)) % 16**8:08x}" * 8,
        source="convnext_atto, shipped:" + name,
        clean=Clean(
            accuracy=_interval(clean, 0.027, 600),
            recall={"healthy": clean + 0.04, "opacity": clean - 0.05, "cardiomegaly": clean + 0.01},
            ece=0.031,
            n=600,
        ),
        robust=_robust(root, name, attacks, region),
        counterfactuals=_counterfactuals(name, n, region, marker, [*models, "logistic-regression"]) if n else None,
        queries=rows,
        not_computed=[
            NotComputed(what="LPIPS", why="the LPIPS weights are not on this machine", paths=["counterfactuals.lpips"])
        ],
        left_out={"opacity": 4} if n else {},
    )


def _config(n_queries: int) -> dict[str, Any]:
    return {
        "name": "phantom demo",
        "seed": 0,
        "data": {"path": "phantom", "phantom": {"calibration": 3000, "audit": 600, "marker_correlation": 0.0}},
        "queries": {"n": n_queries, "classes": ["opacity", "cardiomegaly"], "target": "healthy"},
        "robustness": {"eps": ["2/255", "8/255"], "steps": 20, "restarts": 1, "step_size": None},
        "ranking": {"validity": 1.0, "separation": 0.95, "bootstrap": 1000},
        "classifiers": [{"name": "trades", "checkpoint": "shipped:trades"}],
    }


TEN = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
# name: (clean, under the ensemble at 2/255, at 8/255)
TEN_CHARACTERS = {
    "resnet20": (0.92, 0.02, 0.0),
    "resnet56": (0.943, 0.03, 0.0),
    "mobilenetv2_x1_4": (0.939, 0.11, 0.0),
    "wong2020fast": (0.833, 0.74, 0.434),
}
CHECKS = {
    "randomised-forward": None, "softmax-output": None, "zero-gradients": 2 / 255, "saturated-loss": 2 / 255,
    "black-box-beats-white-box": 2 / 255, "large-eps": 0.5, "more-steps": 2 / 255, "bounds": None,
    "ensemble-beats-pgd": 8 / 255,
}  # fmt: skip


def _share(share: float, n: int) -> Interval:
    return wilson_interval(min(round(share * n), n), n)


def _ten_attack(value: float, untrusted: Sequence[str], radius: str) -> Attack:
    recall = {c: _share(value * (0.4 + 0.12 * k), 50) for k, c in enumerate(TEN)}
    return Attack(
        robust_accuracy=_share(value, 500), eps=int(radius.split("/")[0]) / 255, steps=20, restarts=1, recall=recall,
        untrusted=list(untrusted),
    )  # fmt: skip


def _ten_model(root: Path, name: str) -> ModelResult:
    clean, small, large = TEN_CHARACTERS[name]
    recall = {c: min(clean - 0.06 + 0.013 * k, 1.0) for k, c in enumerate(TEN)}
    confusion = [
        [round(100 * r) if i == j else round(100 * (1 - r)) if j == (i + 3) % 10 else 0 for j in range(10)]
        for i, r in enumerate(recall.values())
    ]
    grid = np.mgrid[0:32, 0:32] / 31
    examples = []
    for i in range(4):
        image = np.stack([_blob(grid, 0.2 * i + 0.2, 0.2 * c + 0.3, 0.25) for c in range(3)], -1)
        noise = np.sign(_blob(grid, 0.5, 0.5, 0.2)[..., None] - 0.2 * np.arange(1, 4)) * 2 / 255
        base = f"images/{name}/attacked-{i}"
        examples.append(
            AdversarialExample(
                id=f"test/{TEN[i]}/{1000 + i}.png", label=TEN[i], predicted=TEN[i + 3], metric="robust.pgd.2/255",
                image=_save(image, root, f"{base}.png"), scale=63.75,
                adversarial_image=_save(image + noise, root, f"{base}-adversarial.png"),
                perturbation_image=_save(noise * 63.75 + 0.5, root, f"{base}-perturbation.png"),
            )
        )  # fmt: skip
    beaten = ["At eps 8/255 the ensemble fools 60 of 500 images that PGD leaves standing."] if large else []
    ensemble = {"2/255": (small, []), "8/255": (large, [])}
    pgd = {"2/255": (min(small + 0.01, 1), []), "8/255": (large * 1.3, beaten)}
    checks = [
        TrustCheck(
            name=check, passed=not (beaten and check == "ensemble-beats-pgd"), eps=eps, finding="As the check says.",
            value=0.12 if beaten and check == "ensemble-beats-pgd" else 0.0, limit=1e-6 if check == "bounds" else 0.09,
            n=500 if check == "ensemble-beats-pgd" else 64,
        )
        for check, eps in CHECKS.items()
    ]  # fmt: skip
    corrupted = [(c, max(0.1, clean - 0.05 * k)) for k, c in enumerate(("gaussian_noise", "defocus_blur", "fog"))]
    return ModelResult(
        name=name, rank=None, index=None, index_interval=None, components=Components(), weights_sha256="ab" * 32,
        source="factory:models.py",
        clean=Clean(
            accuracy=_share(clean, 1000), recall=recall, ece=0.03, n=1000, confusion=confusion,
            confidence_bins=[
                ConfidenceBin(low=b / 15, high=(b + 1) / 15, confidence=(b + 0.6) / 15, accuracy=_share(share, n))
                for b, n, share in ((7, 40, 0.4), (9, 60, 0.5), (11, 100, 0.72), (13, 200, 0.85), (14, 600, clean))
            ],
        ),
        robust=Robust(
            pgd={r: _ten_attack(*given, r) for r, given in pgd.items()},
            ensemble={r: _ten_attack(*given, r) for r, given in ensemble.items()},
            trusted=not beaten, checks=checks, examples=examples,
            corruptions=Corruptions(
                mean_accuracy=_share(clean - 0.2, 500), n=500, clean_accuracy=_share(clean + 0.01, 500),
                constants="cifar-c",
                corruptions=[
                    Corruption(name=c, accuracy={s: _share(v - 0.02 * s, 500) for s in range(1, 6)}, mean=v - 0.06)
                    for c, v in corrupted
                ],
            ),
        ),
    )  # fmt: skip


def ten_class_audit(root: Path, models: Sequence[str] = tuple(TEN_CHARACTERS)) -> AuditResult:
    """Write the images of a made-up audit of ten classes without a generator under `root`; return its results."""
    results = [_ten_model(root, name) for name in models]
    gaps = {"clean.accuracy": 0, "robust.ensemble.2/255": 1, "robust.ensemble.8/255": 2}
    return AuditResult(
        name="Ten classes", created="2031-04-05T10:20:30Z", complete=True, seed=0, classes=TEN,
        config={"name": "Ten classes", "robustness": {"eps": ["2/255", "8/255"], "attacks": ["pgd", "ensemble"]}},
        data={"source": "cifar", "images": 1000, "audited": 1000, "shape": [3, 32, 32]},
        models=results,
        differences=[
            Difference(a=a, b=b, metric=metric, difference=Interval(value=gap, low=gap - 0.03, high=gap + 0.03, n=500))
            for i, a in enumerate(models)
            for b in models[i + 1 :]
            for metric, k in gaps.items()
            for gap in (TEN_CHARACTERS[a][k] - TEN_CHARACTERS[b][k],)
        ],
        not_computed=[NO_GENERATOR],
        environment=Environment(
            versions={"spruce-audit": "0.1.0"}, device="cpu", platform="Linux", seconds={"robust accuracy": 61.2}
        ),
    )  # fmt: skip


def write_audit(root: Path, results: AuditResult) -> Path:
    """Write `results.json` under `root` and return its path."""
    file = root / "results.json"
    file.write_text(results.model_dump_json(indent=1), encoding="utf-8")
    return file
