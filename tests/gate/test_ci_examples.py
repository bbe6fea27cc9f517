"""The examples of examples/ci: valid for who reads them, and their commands run; the JUnit file in a real reader."""

import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from support_candidate import AUDIT

from audit.config import parse_config
from audit.gate.evaluate import Policy, evaluate_gate
from audit.gate.render import to_junit_xml

yaml = pytest.importorskip("yaml", reason="PyYAML is not installed")
EXAMPLES = Path(__file__).parents[2] / "examples" / "ci"
POLICY = """
[[rule]]
metric = "clean.accuracy"
min = 0.5
"""
ON_CHANGE = """
[[rule]]
metric = "clean.accuracy"
max_drop = 0.5
"""


def read(name: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((EXAMPLES / name).read_text())
    return found


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "audit.toml").write_text(AUDIT)
    (tmp_path / "gate.toml").write_text(POLICY)
    command = tmp_path / "bin" / "spruce-audit"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m audit.cli "$@"\n')
    command.chmod(0o755)
    return tmp_path


def run(script: str, folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a script as the build systems do: by bash, which stops at the first error."""
    path = f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}"
    return subprocess.run(
        ["bash", "--noprofile", "--norc", "-e", "-o", "pipefail", "-c", script],
        cwd=folder,
        env={**os.environ, "PATH": path, "PYTHONPATH": os.pathsep.join(sys.path), **variables},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(
    ("schema", "name"),
    [
        ("vendor.github-actions", "github/action.yml"),
        ("vendor.github-workflows", "github/workflow.yml"),
        ("vendor.gitlab-ci", "gitlab-ci.yml"),
    ],
)
def test_the_build_systems_own_schemas_take_the_examples(schema: str, name: str):
    pytest.importorskip("check_jsonschema", reason="check-jsonschema is not installed")
    checked = subprocess.run(
        [sys.executable, "-m", "check_jsonschema", "--builtin-schema", schema, str(EXAMPLES / name)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert checked.returncode == 0, checked.stdout


def test_the_composite_action_audits_beside_the_baseline_and_writes_the_summary(project: Path):
    (project / "gate.toml").write_text(POLICY + ON_CHANGE)
    action = read("github/action.yml")
    used = read("github/workflow.yml")["jobs"]["gate"]["steps"][-1]["with"]
    assert set(used) <= set(action["inputs"])
    given = {key: value["default"] for key, value in action["inputs"].items()} | {"baseline": "shipped:trades"}
    steps = {step["name"]: step for step in action["runs"]["steps"] if "run" in step}
    assert steps["Install"]["run"] == 'pip install "$PACKAGE"'
    summary = project / "summary.md"
    summary.touch()
    for name in ("Audit", "Gate"):
        env = {
            key: re.sub(r"\$\{\{ inputs\.(\S+) \}\}", lambda found: given[found[1]], value)
            for key, value in steps[name]["env"].items()
        }
        ran = run(steps[name]["run"], project, GITHUB_STEP_SUMMARY=str(summary), **env)
        assert ran.returncode == 0, ran.stderr
    assert summary.read_text().startswith("## Gate passed: audit")
    assert "drop ≤ 0.5" in summary.read_text()
    assert (project / given["out"] / "report.html").is_file()
    assert (project / "gate.xml").is_file()


def test_the_gitlab_job_and_the_hook_run_on_the_same_report(project: Path):
    job = read("gitlab-ci.yml")["spruce-audit"]
    ran = run("\n".join(job["script"]), project)
    assert ran.returncode == 0, ran.stderr
    for artifact in (*job["artifacts"]["paths"], job["artifacts"]["reports"]["junit"]):
        assert (project / artifact).exists()
    (hook,) = read("pre-commit-config.yaml")["repos"][0]["hooks"]
    assert all(re.search(hook["files"], name) for name in ("report/results.json", "gate.toml"))
    assert run(hook["entry"], project).returncode == 0
    (project / "gate.toml").write_text(POLICY.replace("min = 0.5", "min = 1"))
    assert run(hook["entry"], project).returncode == 1


def test_a_junit_reader_finds_every_verdict_and_number(support_results: ModuleType, tmp_path: Path):
    junitparser = pytest.importorskip("junitparser", reason="junitparser is not installed")
    results = support_results.example_audit(tmp_path, n_queries=2, size=16)
    rules = [
        {"metric": "index", "min": 30},
        {"metric": "counterfactuals.lpips", "models": ["trades"], "max": 1},
        {"metric": "index", "models": ["trades"], "min": 60, "only_if": "significant"},
        {"metric": "clean.accuracy", "models": ["trades"], "max_drop": 0.1},
    ]
    policy = parse_config(Policy, {"rule": rules, "inconclusive": "pass"}, "the test")
    text = to_junit_xml(evaluate_gate(results, policy, results))
    (tmp_path / "gate.xml").write_text(text)
    read_back = junitparser.JUnitXml.fromfile(str(tmp_path / "gate.xml"))
    (suite,) = read_back
    assert (suite.tests, suite.failures, suite.errors, suite.skipped) == (7, 1, 1, 1)
    counted = [(suite.tests, suite.failures, suite.errors, suite.skipped)]
    suite.update_statistics()
    assert counted == [(suite.tests, suite.failures, suite.errors, suite.skipped)]
    numbers = {one.name: float(one.value) for one in suite.properties()}
    assert numbers["shortcut.index"] == 12
    assert numbers["trades.clean.accuracy of the baseline"] == numbers["trades.clean.accuracy"] == 0.885
    (broken,) = [case for case in suite if any(isinstance(one, junitparser.Failure) for one in case.result)]
    assert (broken.classname, broken.name) == ("shortcut", "index ≥ 30")
    assert broken.result[0].message == "index of shortcut is 12; at least 30 is asked."
    verified = subprocess.run([sys.executable, "-m", "junitparser", "verify", str(tmp_path / "gate.xml")], check=False)
    assert verified.returncode == 1
