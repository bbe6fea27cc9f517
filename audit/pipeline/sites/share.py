"""Results that may leave a site: without images, ids, paths or a row for a single image.

What stays is listed, field by field, so that one that the results get later does not leave unseen.
"""

from pathlib import Path
from typing import Any

from audit.results import (
    Attack,
    AuditResult,
    CascadeStage,
    Clean,
    Comparison,
    Components,
    ConfidenceBin,
    Corruption,
    Corruptions,
    Counterfactuals,
    Difference,
    Environment,
    Failure,
    Interval,
    LabelCounts,
    MinimalDistance,
    ModelInput,
    ModelResult,
    NotComputed,
    Robust,
    Row,
    TrustCheck,
    read_results,
)
from audit.storage.own_files import check_own, write_own

_CLASSES = "confusion precision f1 macro_f1"
_KEPT: dict[type[Row], str] = {
    Interval: "value low high level n",
    ConfidenceBin: "low high confidence accuracy",
    Clean: f"accuracy recall ece n confidence_bins {_CLASSES}",
    CascadeStage: "attack attacked standing",
    Attack: "robust_accuracy eps norm steps restarts stages recall untrusted unchecked without_gradient source extent "
    + _CLASSES,
    TrustCheck: "name passed value limit n eps norm finding attacks",
    MinimalDistance: "norm median largest attack n standing untrusted unchecked",
    Corruption: "name accuracy mean",
    Corruptions: "mean_accuracy corruptions n clean_accuracy constants",
    Robust: "pgd pgd_l2 ensemble ensemble_l2 attacks trusted checks distances corruptions",
    Components: "validity realism sparsity localisation transfer",
    Counterfactuals: "n flip_ratio reached feature_target_flips operating_point converged confidence l1 changed_share",
    ModelInput: "size channels mean std classes origins answer features",
    Failure: "stage",
    ModelResult: "name role rank index index_interval components component_intervals weights_sha256 input failed "
    "unpaired clean robust counterfactuals",
    Comparison: "a b probability images_needed paired",
    Difference: "a b metric difference",
    LabelCounts: "n positives unknown together",
    AuditResult: "schema_version name created complete seed classes generator_sha256 encoder_sha256 label_counts "
    "models comparisons differences queries_asked component_definitions index_weights realism_kernel",
}
_INSTEAD: dict[type[Row], dict[str, Any]] = {
    MinimalDistance: {"distances_by_image": {}},
    ModelInput: {"weights": ""},
    Failure: {"why": "the site's own results say why."},
    ModelResult: {"source": ""},
}
"""What stands for fields that may not be missing."""
_SETTINGS: dict[str, tuple[str, ...]] = {
    "robustness": (),
    "queries": (),
    "counterfactual": (),
    "inversion": ("encoder", "max_memory"),
    "ranking": (),
}
"""Tables of the configuration that stay, each without these keys."""
_DATA = ("images", "audited", "shape", "audited_sha256", "calibration_sha256")
_LEFT_OUT = NotComputed(what="what concerns single images", why="these results were shared without it")


def write_minimal(results: Path, target: Path) -> None:
    """Write what may leave a site of the file `results` to `target`; raises ConfigError if that is a user's file."""
    check_own(target, '"shared": "minimal"')
    write_own(target, minimal(read_results(results)).model_dump_json(indent=1) + "\n")


def minimal(result: AuditResult) -> AuditResult:
    """Return the numbers of `result` that are of many images each, and what tells whether they may be joined."""
    return AuditResult(
        **_fields(result),
        shared="minimal",
        config=shared_settings(result),
        data={key: result.data[key] for key in _DATA if key in result.data},
        not_computed=[_LEFT_OUT],
        environment=Environment(versions=result.environment.versions, device="", platform=""),
    )


def shared_settings(result: AuditResult) -> dict[str, Any]:
    """Return the settings that the numbers rest on, without a path."""
    return {
        name: {key: value for key, value in table.items() if key not in without}
        for name, without in _SETTINGS.items()
        if isinstance(table := result.config.get(name), dict)
    }


def _fields(row: Row) -> dict[str, Any]:
    return {name: _kept(getattr(row, name)) for name in _KEPT[type(row)].split()} | _INSTEAD.get(type(row), {})


def _kept(value: Any) -> Any:
    if isinstance(value, Row):
        return type(value)(**_fields(value))
    if isinstance(value, dict):
        return {key: _kept(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_kept(one) for one in value]
    return value
