"""`spruce-audit export` writes new files only, and says what is missing in a sentence."""

from pathlib import Path

import pytest
from support_results import example_audit, write_audit
from typer.testing import CliRunner

from audit.cli import app
from audit.errors import ConfigError

pytest.importorskip("pandas", reason="pandas (extra 'export') is not installed")


@pytest.fixture
def results(tmp_path: Path) -> Path:
    return write_audit(tmp_path / "audit", example_audit(tmp_path / "audit"))


@pytest.mark.parametrize(("to", "file"), [("csv", "models.csv"), ("model-card", "plain.md")])
def test_files_are_written_and_never_over_others(tmp_path: Path, results: Path, to: str, file: str):
    out = tmp_path / "out"
    done = CliRunner().invoke(app, ["export", str(results), "--to", to, "--out", str(out)])
    assert done.exit_code == 0, done.output
    assert str(out / file) in done.output.replace("\n", "")
    (out / file).write_text("mine")
    again = CliRunner().invoke(app, ["export", str(results), "--to", to, "--out", str(out)])
    assert isinstance(again.exception, ConfigError)
    assert (out / file).read_text() == "mine"


def test_files_need_a_folder(results: Path):
    done = CliRunner().invoke(app, ["export", str(results), "--to", "csv"])
    assert isinstance(done.exception, ConfigError)
    assert "--out" in str(done.exception)
