"""The commands: each reaches its room, prints where its output is, and ends with the documented status."""

import json
import re
import subprocess
import sys
import tomllib

import jsonschema
import pytest
from typer.testing import CliRunner

from audit.cli import app, main
from audit.data.demo import demo_config
from audit.results import json_schema
from audit.runtime import progress

PHANTOM = '[data]\npath = "phantom"\n[data.phantom]\ncalibration = 60\naudit = 6\n'


@pytest.fixture
def run(tmp_path):
    def call(*arguments: str, config: str = "", out: str = "out") -> tuple[int, str]:
        if config:
            (tmp_path / "c.toml").write_text(config)
            arguments = (*arguments, str(tmp_path / "c.toml"), "--out", str(tmp_path / out))
        result = CliRunner().invoke(app, list(arguments))
        return result.exit_code, result.output

    return call


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


def test_schemas_are_those_that_files_are_read_by(run):
    demo = tomllib.loads(demo_config().read_text())
    jsonschema.validate(demo, json.loads(run("schema", "config")[1]))
    with pytest.raises(jsonschema.ValidationError, match="nonsense"):
        jsonschema.validate(demo | {"nonsense": 1}, json.loads(run("schema", "config")[1]))
    assert json.loads(run("schema", "results")[1]) == json_schema()


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
            line = shown.err.splitlines()[0]
            said = json.loads(line)["done"] == 0 if form == "json" else re.fullmatch(r".+: 0 of \d+", line)
            assert said, shown.err


def test_train_generator_then_its_encoder(run, tmp_path):
    generator = (
        "kimg = 0.032\nbatch_size = 8\nz_dim = 8\nw_dim = 8\nchannel_base = 128\nchannel_max = 8\n"
        'snapshot_kimg = 0.032\nfid_embedding = "none"\n'
    )
    status, text = run("train", "generator", config=generator + PHANTOM)
    assert status == 0, text
    drawn = tmp_path / "out" / "generator.safetensors"
    assert drawn.is_file()
    assert json.loads((tmp_path / "out" / "generator.json").read_text())["kimg"] == pytest.approx(0.032)
    encoder = f'generator = "{drawn}"\nsteps = 2\nbatch_size = 4\nwidth = 16\nsnapshot_steps = 2\n'
    status, text = run("train", "encoder", config=encoder + PHANTOM, out="encoder")
    assert status == 0, text
    assert (tmp_path / "encoder" / "encoder.safetensors").is_file()


def test_train_classifier_and_factors(run, tmp_path):
    classifier = (
        'name = "tiny"\n[optimiser]\nsteps = 2\nbatch_size = 8\n[selection]\nevery = 2\nn = 8\n'
        "[evaluation]\nn = 8\nattacked = 4\nsteps = 1\n"
    )
    status, text = run("train", "classifier", config=classifier + PHANTOM)
    assert status == 0, text
    assert (tmp_path / "out" / "tiny.safetensors").is_file()
    factors = "n_evaluation = 10\n[optimiser]\nsteps = 2\nbatch_size = 8\n[selection]\nevery = 2\nn = 10\n"
    status, text = run("train", "factors", config=factors)
    assert status == 0, text
    assert (tmp_path / "out" / "phantom-factors.safetensors").is_file()


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
    monkeypatch.setattr("sys.argv", ["spruce-audit", *arguments])
    with pytest.raises(SystemExit) as stop:
        main()
    message = capsys.readouterr().err.strip()
    assert stop.value.code == 2
    assert len(message.splitlines()) == 1

    assert re.search(said, message), message
