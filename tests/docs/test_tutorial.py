"""The tutorial's own commands, in their order, on the images that it names."""

import os
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from support_pages import ROOT, blocks, sections

from audit.results import read_results

DATA = ROOT.parent / "shared" / "data" / "pneumoniamnist.npz"
STEPS = slice(0, 5)
"""The sections that are run: the later ones need a second checkpoint, and a night."""
REPORTED = ("Written: audit.toml", "ok    model 'resnet10t'", "Report:  report/report.html", "reliance.worst.token")


@pytest.mark.slow
def test_the_tutorial_can_be_followed(tmp_path: Path):
    if not DATA.is_file():
        pytest.skip("the images of PneumoniaMNIST are not beside the source")
    shutil.copy(DATA, tmp_path)
    said, statuses = "", []
    page = (ROOT / "docs" / "tutorial.md").read_text(encoding="utf-8")
    for section in list(sections(page).values())[STEPS]:
        for info, content in blocks(section):
            if info:
                kind, name = info.split()
                if (tmp_path / name).exists():  # what a command wrote, filled in
                    assert kind == "toml"
                    agree(tomllib.loads((tmp_path / name).read_text(encoding="utf-8")), tomllib.loads(content))
                (tmp_path / name).write_text(content, encoding="utf-8")
                continue
            for line in content.splitlines():
                status, output = run(shlex.split(line), tmp_path)
                statuses.append(status)
                said += output
    assert statuses[:-1] == [0] * (len(statuses) - 1), said
    assert statuses[-1] in (0, 1), said  # a verdict: all that the policy asks for was measured
    assert [words for words in REPORTED if words not in said] == []
    (model,) = read_results(tmp_path / "report" / "results.json").models
    assert model.clean.accuracy.value is not None
    assert model.clean.accuracy.value > 0.7  # the input of step 2 is that of the training of step 1


def agree(written: dict, filled_in: dict) -> None:
    """What a command wrote stands in the page as well; the page may only add to it."""
    for key, value in written.items():
        if isinstance(value, dict):
            agree(value, filled_in[key])
        elif isinstance(value, list) and value and isinstance(value[0], dict):
            for one, other in zip(value, filled_in[key], strict=True):
                agree(one, other)
        else:
            assert filled_in[key] == value, key


def run(words: list[str], folder: Path) -> tuple[int, str]:
    program = {"python": [sys.executable], "spruce-audit": [sys.executable, "-m", "audit.cli"]}[words[0]]
    # As on a machine of its own: nothing of other runs is found, and the width of the terminal cuts nothing off.
    environment = {**os.environ, "XDG_CACHE_HOME": str(folder / "cache"), "COLUMNS": "200"}
    done = subprocess.run(
        [*program, *words[1:]], cwd=folder, env=environment, capture_output=True, text=True, timeout=900, check=False
    )
    return done.returncode, done.stdout + done.stderr
