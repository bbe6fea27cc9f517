"""`run`: progress, and what it prints."""

import json
import re

from support_command import status_of

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
        assert status_of("run", tmp_path / "audit.toml", "--no-cache", "--out", out, asked) == 0
        shown = capsys.readouterr()
        assert "Report:" in shown.out
        if form is None:
            assert shown.err == ""
        else:
            line, *_ = (one for one in shown.err.splitlines() if "Estimate" not in one)
            said = json.loads(line)["done"] == 0 if form == "json" else re.fullmatch(r".+: 0 of \d+", line)
            assert re.search(r"Estimate: At most .* and about", shown.err)
            assert said, shown.err


def test_what_may_leave_a_site_is_written_beside_the_results(tmp_path):
    def run(seed: int, site: str, *options: str) -> int:
        (tmp_path / f"{site}.toml").write_text(
            f'seed = {seed}\nreliance = false\n[[classifiers]]\nname = "plain"\ncheckpoint = "shipped:plain"\n'
            '[robustness]\nn = 4\neps = ["2/255"]\nsteps = 1\n' + PHANTOM
        )
        out = tmp_path / site
        return status_of("run", tmp_path / f"{site}.toml", "--no-cache", "--progress=none", "--out", out, *options)

    assert run(0, "north", "--share", "minimal") == 0
    assert run(1, "south", "--share", "minimal") == 0
    whole, part = (tmp_path / "north" / name for name in ("results.json", "results-minimal.json"))
    shared = part.read_text()
    assert "test-0" in whole.read_text()
    assert not any(text in shared for text in ("test-0", "images/", str(tmp_path), "shipped"))
    assert status_of("share", whole) == 0
    assert part.read_text() == shared
    assert status_of("merge", part, tmp_path / "south" / part.name, "--out", tmp_path / "joined") == 0
    assert len(json.loads((tmp_path / "joined" / "results.json").read_text())["sites"]["sites"]) == 2
    assert run(0, "north") == 0
    assert whole.is_file()
    assert not part.exists()
    part.write_text("mine")
    assert run(0, "north", "--share", "minimal") != 0
    assert part.read_text() == "mine"
