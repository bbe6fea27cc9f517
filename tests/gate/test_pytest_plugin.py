"""The pytest plugin in a pytest of its own: one test a check, the fixture, and nothing where nobody asks for it."""

import subprocess
import sys
import tomllib
from pathlib import Path
from types import ModuleType

import pytest
from support_pages import blocks

pytest_plugins = "pytester"
PLUGIN = ("-p", "audit.gate.pytest_plugin")
ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "gate.md"
POLICY = """
[[rule]]
metric = "index"
min = 30

[[rule]]
metric = "counterfactuals.lpips"
models = ["trades"]
max = 1

[[rule]]
metric = "index"
models = ["trades"]
min = 60
only_if = "significant"
"""


@pytest.fixture
def project(pytester: pytest.Pytester, support_results: ModuleType, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")  # an installed package would bring the plugin twice
    results = support_results.example_audit(pytester.path, n_queries=2, size=16)
    (pytester.path / "results.json").write_text(results.model_dump_json())
    (pytester.path / "gate.toml").write_text(POLICY)
    return pytester


GATE = ("--spruce-policy", "gate.toml", "--spruce-results", "results.json")


def test_every_check_is_a_test_that_fails_with_its_sentence(project: pytest.Pytester):
    project.makepyfile("def test_of_ones_own(): pass")
    found = project.runpytest(*PLUGIN, *GATE)
    found.assert_outcomes(passed=4, failed=3)
    found.stdout.fnmatch_lines(
        [
            "*index of shortcut is 12; at least 30 is asked.*",
            "*counterfactuals.lpips of trades was not measured: the LPIPS weights are not on this machine.*",
            "*These images do not suffice to decide it, about * more would if it stays as it is.*",
        ]
    )
    assert "Traceback" not in found.stdout.str()


@pytest.mark.parametrize(("unmeasured", "counted"), [("skip", "skipped"), ("xfail", "xfailed")])
def test_what_was_not_measured_is_skipped_only_when_asked_for(project: pytest.Pytester, unmeasured: str, counted: str):
    project.runpytest(*PLUGIN, *GATE, "--spruce-unmeasured", unmeasured).assert_outcomes(
        passed=3, failed=1, **{counted: 2}
    )


def test_the_policy_decides_what_is_inconclusive(project: pytest.Pytester):
    (project.path / "gate.toml").write_text('inconclusive = "pass"\n' + POLICY)
    project.runpytest(*PLUGIN, *GATE).assert_outcomes(passed=4, failed=2)


def test_checks_are_chosen_as_other_tests_and_their_numbers_are_properties(project: pytest.Pytester):
    project.makepyfile("def test_of_ones_own(): pass")
    found = project.runpytest(*PLUGIN, *GATE, "-k", "gate.toml and shortcut", "--junitxml", "out.xml")
    found.assert_outcomes(failed=1, deselected=6)
    assert '<property name="shortcut.index" value="12.0" />' in (project.path / "out.xml").read_text()


def test_the_fixture_asks_for_rules(project: pytest.Pytester):
    project.makepyfile(
        """
        def test_holds(spruce_audit):
            spruce_audit.require(metric="clean.accuracy", min=0.5)
            assert spruce_audit.results.models[0].name == "trades"

        def test_broken(spruce_audit):
            spruce_audit.require(metric="index", min=30)

        def test_change(spruce_audit):
            spruce_audit.require(metric="index", max_drop=1)

        def test_not_measured(spruce_audit):
            spruce_audit.require(metric="counterfactuals.lpips", max=1)

        def test_typing_error(spruce_audit):
            spruce_audit.require(metric="index", mim=1)
        """
    )
    given = (*PLUGIN, "--spruce-results", "results.json", "--spruce-baseline", "results.json")
    found = project.runpytest(*given, "--spruce-unmeasured", "skip")
    found.assert_outcomes(passed=2, failed=2, skipped=1)
    found.stdout.fnmatch_lines(["*index of shortcut is 12; at least 30 is asked.*", "*did you mean 'min'*"])
    project.runpytest(*PLUGIN).assert_outcomes(skipped=5)


def test_the_test_of_the_documentation_runs(project: pytest.Pytester):
    (example,) = [text for info, text in blocks(PAGE.read_text()) if info == "python test_checkpoint.py"]
    project.makepyfile(example)
    stored = (project.path / "results.json").read_text().replace('"name":"trades"', '"name":"candidate"')
    (project.path / "results.json").write_text(stored)
    project.runpytest(*PLUGIN, "--spruce-results", "results.json").assert_outcomes(passed=1)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--spruce-policy", "gate.toml"), "needs --spruce-results"),
        (("--spruce-policy", "none.toml", "--spruce-results", "results.json"), "none.toml' does not exist"),
        (("--spruce-policy", "gate.toml", "--spruce-results", "none.json"), "none.json' does not exist"),
    ],
)
def test_a_missing_file_is_one_sentence(project: pytest.Pytester, options: tuple[str, ...], said: str):
    found = project.runpytest(*PLUGIN, *options)
    assert found.ret == pytest.ExitCode.USAGE_ERROR
    assert said in found.stderr.str().replace(str(project.path) + "/", "")
    assert "Traceback" not in found.stderr.str()


def test_where_nobody_asks_nothing_is_imported(project: pytest.Pytester):
    project.makepyfile(
        """
        import sys

        def test_light():
            assert not {"pydantic", "torch", "scipy", "audit.results", "audit.gate.evaluate"} & set(sys.modules)
        """
    )
    command = [sys.executable, "-m", "pytest", *PLUGIN, str(project.path)]
    ran = subprocess.run(command, capture_output=True, text=True, check=False, cwd=project.path)
    assert "1 passed" in ran.stdout, ran.stdout


def test_pytest_finds_it_by_the_package():
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]["pytest11"]
    assert declared == {"spruce-audit": PLUGIN[1]}
