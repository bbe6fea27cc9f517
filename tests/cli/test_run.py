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


def test_what_may_leave_a_site_is_written_beside_the_results(tmp_path, monkeypatch):
    def command(*words: object) -> None:
        monkeypatch.setattr("sys.argv", ["spruce-audit", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            main()
        assert not ended.value.code

    def run(seed: int, site: str, *options: str) -> None:
        (tmp_path / f"{site}.toml").write_text(
            f'seed = {seed}\nreliance = false\n[[classifiers]]\nname = "plain"\ncheckpoint = "shipped:plain"\n'
            '[robustness]\nn = 4\neps = ["2/255"]\nsteps = 1\n' + PHANTOM
        )
        out = tmp_path / site
        command("run", tmp_path / f"{site}.toml", "--no-cache", "--progress=none", "--out", out, *options)

    run(0, "north", "--share", "minimal")
    run(1, "south", "--share", "minimal")
    whole, part = (tmp_path / "north" / name for name in ("results.json", "results-minimal.json"))
    shared = part.read_text()
    assert "test-0" in whole.read_text()
    assert not any(text in shared for text in ("test-0", "images/", str(tmp_path), "shipped"))
    command("share", whole)
    assert part.read_text() == shared
    command("merge", part, tmp_path / "south" / part.name, "--out", tmp_path / "joined")
    assert len(json.loads((tmp_path / "joined" / "results.json").read_text())["sites"]["sites"]) == 2
    run(0, "north")
    assert whole.is_file()
    assert not part.exists()
    part.write_text("mine")
    with pytest.raises(AssertionError):
        run(0, "north", "--share", "minimal")
    assert part.read_text() == "mine"
