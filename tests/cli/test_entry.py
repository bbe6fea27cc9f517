"""The command line as a whole: help, version, and how a command ends."""

import re
import subprocess
import sys

import pytest
from support_command import status_of


def test_help_and_version(run):
    assert run("--version")[1].startswith("spruce-audit ")
    loaded = (
        "import sys\n"
        "from audit.cli import app\n"
        "app(['--version'], standalone_mode=False)\n"
        "print('torch' in sys.modules)"
    )
    printed = subprocess.run([sys.executable, "-c", loaded], capture_output=True, text=True, check=True).stdout
    assert printed.splitlines()[1:] == ["False"]
    status, text = run("--help")
    assert status == 0
    for command in ("run", "demo", "report", "gate", "train", "generator"):
        assert command in text


def test_an_audit_starts_without_what_only_several_labels_need():
    loaded = "import sys, audit.pipeline.runner; print('torchmetrics' in sys.modules)"
    printed = subprocess.run([sys.executable, "-c", loaded], capture_output=True, text=True, check=True).stdout
    assert printed.strip() == "False"


def test_the_shell_completes_commands_and_ends_with_0(monkeypatch, capsys):
    monkeypatch.setenv("_SPRUCE_AUDIT_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", "spruce-audit ge")
    monkeypatch.setenv("COMP_CWORD", "1")
    status, shown = status_of(), capsys.readouterr()
    assert (status, shown.out.split(), shown.err) == (0, ["generator"], "")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("run", "none.toml"), "none.toml.*does not exist"),
        (("report", "none.json"), "none.json.*does not exist"),
        (("gate", "none.json", "--policy", "none.toml"), "does not exist"),
        (("train", "generator", "none.toml"), "does not exist"),
        (("generator", "inspect", "none.pkl"), "none.pkl.*does not exist"),
        (("generator", "convert", "none.pt", "--out", "x.safetensors"), "none.pt.*does not exist"),
        (("generator", "sample", "shipped:none", "--out", "x.png"), "none.*phantom"),
    ],
)
def test_a_missing_file_is_one_sentence_and_status_2(arguments, said, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert status_of(*arguments) == 2
    message = capsys.readouterr().err.strip()
    assert len(message.splitlines()) == 1

    assert re.search(said, message), message
