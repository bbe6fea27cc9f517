"""`run`: progress, and what it prints."""

import json
import re

import pytest

from audit.cli import main
from audit.runtime import progress

PHANTOM = '[data]\npath = "phantom"\n[data.phantom]\ncalibration = 60\naudit = 6\n'


def test_progress_of_a_log_goes_to_standard_error(tmp_path, monkeypatch, capsys):
    (tmp_path / "audit.toml").write_text(
        '[[classifiers]]\nname = "plain"\ncheckpoint = "shipped:plain"\narchitecture = "small-convnext"\n'
        '[robustness]\nn = 4\neps = ["2/255"]\nsteps = 1\n' + PHANTOM
    )
    monkeypatch.setattr(progress, "LINE_SECONDS", 0.0)
    for asked, form in (("--progress=none", None), ("--progress=plain", "text"), ("--log-json", "json")):
        out = tmp_path / "out"
        monkeypatch.setattr(
            "sys.argv", ["spruce-audit", "run", str(tmp_path / "audit.toml"), "--no-cache", "--out", str(out), asked]
        )
        with pytest.raises(SystemExit):
            main()
        shown = capsys.readouterr()
        assert "Report:" in shown.out
        if form is None:
            assert shown.err == ""
        else:
            line, *_ = (one for one in shown.err.splitlines() if "Estimate" not in one)
            said = json.loads(line)["done"] == 0 if form == "json" else re.fullmatch(r".+: 0 of \d+", line)
            assert re.search(r"Estimate: At most .* and about", shown.err)
            assert said, shown.err
