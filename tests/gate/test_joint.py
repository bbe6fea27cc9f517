"""A candidate and its baseline in one audit, from the command line to the gate's verdict."""

import json
from pathlib import Path

import pytest
from support_candidate import AUDIT
from support_command import status_of

from audit.config import AuditConfig, parse_config, with_baseline
from audit.errors import ConfigError
from audit.results import read_results

POLICY = """
inconclusive = "pass"

[[rule]]
metric = "clean.accuracy"
max_drop = 0.01
only_if = "significant"

[[rule]]
metric = "robust.pgd.2/255"
max_drop = 0.1
allow_unchecked = true
"""


def test_a_run_with_a_baseline_is_gated_against_it(tmp_path: Path, capsys: pytest.CaptureFixture):
    (tmp_path / "audit.toml").write_text(AUDIT)
    (tmp_path / "gate.toml").write_text(POLICY)
    out = tmp_path / "report"
    asked = ("--out", out, "--no-cache", "--progress", "none", "--baseline", "shipped:trades")
    assert status_of("run", tmp_path / "audit.toml", *asked) == 0
    found = read_results(out / "results.json")
    assert [(m.name, m.role) for m in found.models] == [("candidate", None), ("baseline", "baseline")]
    for model in found.models:
        assert model.clean.misclassified is not None
        assert len(model.clean.misclassified) == round(model.clean.n * (1 - model.clean.accuracy.value))
    capsys.readouterr()
    status = status_of("gate", out / "results.json", "--policy", tmp_path / "gate.toml", "--json")
    printed = json.loads(capsys.readouterr().out)
    assert printed["exit_status"] == status
    clean, robust = printed["checks"]
    assert (clean["model"], robust["model"]) == ("candidate", "candidate")
    assert clean["baseline"] == found.models[1].clean.accuracy.value
    assert clean["interval"] is not None


def config(*classifiers: dict) -> AuditConfig:
    return parse_config(AuditConfig, {"data": {"path": "phantom"}, "classifiers": list(classifiers)}, "the test")


def test_the_baseline_is_like_the_only_classifier_but_for_its_weights(tmp_path: Path):
    given = {"name": "baseline", "architecture": "resnet18", "checkpoint": "new.pt", "classes": ["a", "b"], "mean": 0.5}
    new, old = with_baseline(config(given), tmp_path / "old.pt").classifiers
    assert (old.role, old.checkpoint, old.name) == ("baseline", str(tmp_path / "old.pt"), "baseline (baseline)")
    assert (new.role, new.name) == (None, "baseline")
    same = {"name": new.name, "role": None, "checkpoint": "new.pt"}
    assert old.model_copy(update=same) == new
    (_, script) = with_baseline(config({"name": "a", "file": "new.onnx"}), tmp_path / "old.onnx").classifiers
    assert script.file == str(tmp_path / "old.onnx")


@pytest.mark.parametrize(
    ("classifiers", "words"),
    [
        (({"name": "a", "file": "a.pt"}, {"name": "b", "file": "b.pt"}), "the configuration has a, b"),
        (({"name": "a", "factory": "models:net"},), "has none of its own"),
    ],
)
def test_a_baseline_that_is_like_nothing_is_refused(classifiers: tuple[dict, ...], words: str):
    with pytest.raises(ConfigError, match=words):
        with_baseline(config(*classifiers), "old.pt")


@pytest.mark.parametrize("number", [1, 2])
def test_one_classifier_is_the_baseline_beside_another(number: int):
    all_baselines = [{"name": f"m{i}", "file": "a.pt", "role": "baseline"} for i in range(number)]
    with pytest.raises(ConfigError, match="for one classifier"):
        config(*all_baselines)
    with pytest.raises(ConfigError, match="'role' of classifier 'judge' would have no effect"):
        parse_config(
            AuditConfig,
            {
                "data": {"path": "phantom"},
                "classifiers": [{"name": "a", "file": "a.pt"}],
                "judge_checkpoints": [{"name": "judge", "file": "a.pt", "role": "baseline"}],
            },
            "the test",
        )
