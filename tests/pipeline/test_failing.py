"""A model, a stage, the pictures or the report fails: the rest is measured, stored and told, and the status is 2."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from support_command import status_of

import audit
from audit.errors import ClassifierError, ConfigError, DataError, Terminated
from audit.pipeline import robustness as measuring
from audit.pipeline import writing
from audit.pipeline.writing import ReportError
from audit.results import AuditResult, Failure, read_results
from audit.runtime.faults import reason, tried
from audit.storage.output import MANIFEST

NETWORKS = """
import sys
import time
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self, fault="none"):
        super().__init__()
        self.fault = fault
        self.body = nn.Sequential(nn.Conv2d(1, 4, 3, stride=2, padding=1), nn.GELU(), nn.Flatten())
        self.head = nn.Linear(256, 2)

    def forward(self, x):
        attacked = x.requires_grad and len(x) > 4  # a probe has fewer images
        if attacked and self.fault == "assert":
            assert x.shape[-1] == 17, "a foreign assertion"
        if attacked and self.fault == "exit":
            sys.exit(0)
        if attacked and self.fault == "slow":
            print("attacking", flush=True)
            time.sleep(60)
        features = self.body(x)
        if self.fault == "nan":
            features = torch.where((x[:, 0, 0, 0] == 1.0)[:, None], torch.nan, features)
        return self.head(features)


def build(fault="none"):
    return Net(fault)
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 255, (24, 16, 16), dtype=np.uint8)
    images[:, 0, 0] = 7
    images[5, 0, 0] = 255
    labels = np.arange(24)[:, None] % 2
    arrays = {f"{split}_images": images for split in ("train", "test")}
    np.savez(tmp_path / "data.npz", **arrays, train_labels=labels, test_labels=labels)
    (tmp_path / "nets.py").write_text(NETWORKS)
    torch.manual_seed(0)
    state = {"body.0.weight": torch.randn(4, 1, 3, 3), "body.0.bias": torch.zeros(4)}
    state |= {"head.weight": torch.randn(2, 256) / 16, "head.bias": torch.zeros(2)}
    save_file(state, tmp_path / "w.safetensors")
    return tmp_path


def config(folder: Path, *faults: str, extra: str = "") -> Path:
    text = 'name = "run [/] 3"\n[data]\npath = "data.npz"\n[reliance]\nn = 4\n'
    text += '[robustness]\nn = 24\nsteps = 2\neps = ["8/255"]\n'
    text += f"trust = false\n{extra}\n"
    for fault in faults:
        checkpoint = (
            "none.safetensors" if fault == "missing" else "bad.safetensors" if fault == "bad" else "w.safetensors"
        )
        text += f'[[classifiers]]\nname = "{fault}[seed=1]"\nfactory = "nets.py:build"\ncheckpoint = "{checkpoint}"\n'
        text += f'factory_args = {{ fault = "{fault}" }}\n'
    (folder / "a.toml").write_text(text)
    (folder / "bad.safetensors").write_bytes(b"no weights")
    return folder / "a.toml"


@pytest.mark.parametrize(
    ("fault", "stage", "said"),
    [
        ("nan", "clean accuracy", r"NaN or infinite logits on image '\S*5'"),
        ("assert", "robust accuracy", "a foreign"),
        ("exit", "robust accuracy", "fails on a batch"),
        ("bad", "loading", "bad.safetensors"),
    ],
)
def test_one_model_fails_and_the_others_are_as_without_it(
    folder: Path, fault: str, stage: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    alone = audit.run_audit(config(folder, "none"))
    file = config(folder, fault, "none")
    assert status_of("run", str(file), "--out", str(folder / "out"), "--no-cache") == 2
    shown = capsys.readouterr()
    line = f"spruce-audit: model '{fault}[seed=1]' failed in {stage}: "
    assert [one for one in shown.err.splitlines() if one.startswith(line)], shown.err
    assert "Traceback" not in shown.err
    assert f"{fault}[seed=1]" in shown.out
    assert "run [/] 3" in shown.out
    result = read_results(folder / "out" / "results.json")
    failed, other = result.models
    assert failed.failed is not None
    assert failed.failed.stage == stage
    assert re.search(said, failed.failed.why), failed.failed.why
    assert (failed.clean.accuracy.value is None) == (stage in ("clean accuracy", "loading"))
    assert not failed.robust.pgd
    for model in (other, alone.models[0]):  # pictures lie in folders that are numbered by the models' order
        assert model.reliance is not None
        for row in model.reliance.interventions:
            row.example = None
    assert other == alone.models[0]
    assert not result.complete
    page = (folder / "out" / "report.html").read_text()
    assert "could not be audited to the end" in page
    policy = folder / "gate.toml"
    policy.write_text('[[rule]]\nmetric = "clean.accuracy"\nmin = 0.0\nmodels = ["none[seed=1]"]\n')
    assert status_of("gate", str(folder / "out/results.json"), "--policy", str(policy)) == 2


def test_corruptions_of_a_failing_model_cost_the_others_nothing(folder: Path) -> None:
    extra = 'corruptions = { names = ["contrast", "brightness"], severities = [5], n = 24 }'
    alone = audit.run_audit(config(folder, "none", extra=extra))
    result = audit.run_audit(config(folder, "none", "nan", extra=extra))
    assert result.models[0] == alone.models[0]


def test_a_file_that_is_not_there_and_no_model_at_all_are_refused(folder: Path) -> None:
    with pytest.raises(ClassifierError, match=r"none.safetensors' does not exist"):
        audit.run_audit(config(folder, "none", "missing"), folder / "out")
    with pytest.raises(ClassifierError, match=r"bad.safetensors"):
        audit.run_audit(config(folder, "bad"), folder / "out")
    with pytest.raises(ClassifierError, match=r"bad.safetensors.*The other classifier could not be audited either"):
        audit.run_audit(config(folder, "nan", "bad"), folder / "out")
    assert not (folder / "out").exists()


def test_a_stage_that_fails_as_a_whole_keeps_what_was_measured(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise DataError("Image 'x.png' cannot be read.")

    monkeypatch.setattr(measuring, "corruption_accuracies", broken)
    result = audit.run_audit(config(folder, "none", extra="corruptions = true"), folder / "out")
    assert not result.complete
    assert result.models[0].robust.pgd
    assert [n.why for n in result.not_computed if n.what == "corruptions"] == ["Image 'x.png' cannot be read."]
    assert any("x.png" in notice.text for notice in result.notices)
    assert read_results(folder / "out" / "results.json") == result


def _no_report(*_: object) -> Path:
    raise TypeError("a defect of the template")


def _full_disk(*_: object) -> None:
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize(
    ("place", "fault", "said"),
    [
        ("render_report", _no_report, "report could not be rendered .TypeError: a defect of the template"),
        ("render_report", _full_disk, "report could not be rendered .No space left"),
        ("atomic_write_text", _full_disk, "pictures could not be written .No space left"),
    ],
)
def test_results_stay_when_pictures_or_report_fail(
    folder: Path, place: str, fault: Callable[..., object], said: str, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    file, out = config(folder, "none"), folder / "out"
    with monkeypatch.context() as patch:
        patch.setattr(writing, place, fault)
        with pytest.raises(ReportError, match=said) as caught:
            audit.run_audit(file, out)
        assert isinstance(caught.value.result, AuditResult)
        assert status_of("run", str(file), "--out", str(out), "--no-cache") == 2
    shown = capsys.readouterr()
    assert len(shown.err.strip().splitlines()) == 1
    assert f"spruce-audit report {out / 'results.json'}" in shown.err
    assert "none[seed=1]" in shown.out
    assert read_results(out / "results.json").models[0].robust.pgd
    assert not [p for p in out.rglob("*") if p.suffix in (".partial", ".tmp", ".part")]
    assert status_of("report", str(out / "results.json")) == 0
    assert (out / "report.html").is_file()
    assert status_of("run", str(file), "--out", str(out), "--no-cache") == 0


def test_results_are_replaced_by_the_same_configuration_alone_unless_told_otherwise(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, out = config(folder, "none"), folder / "out"
    audit.run_audit(file, out)
    file.write_text('device = "cpu"\nmax_memory = "1GB"\n' + file.read_text())  # where it runs is not what it measures
    audit.run_audit(file, out)
    before = (out / "results.json").read_bytes()
    with pytest.raises(ConfigError, match=r"another configuration \(its effort is another\).*--overwrite"):
        audit.run_audit(file, out, effort="quick")
    file.write_text(file.read_text().replace("steps = 2", "steps = 3"))
    assert status_of("run", str(file), "--out", str(out), "--no-cache") == 2
    assert "holds the results of another configuration (its robustness.steps is another)" in capsys.readouterr().err
    assert (out / "results.json").read_bytes() == before
    assert status_of("run", str(file), "--out", str(out), "--no-cache", "--overwrite") == 0
    assert (out / "results.json").read_bytes() != before


def test_numbers_that_are_not_finite_do_not_keep_results_from_being_written(folder: Path) -> None:
    result = audit.run_audit(config(folder, "none"))
    result.models[0].clean.ece = float("nan")
    stored = json.loads(writing.results_text(result))
    assert stored["models"][0]["clean"]["ece"] is None
    assert "models.0.clean.ece" in stored["not_computed"][-1]["why"]
    assert stored["not_computed"][-1]["paths"] == ["clean.ece"]


def test_the_output_is_refused_before_anything_is_loaded(folder: Path) -> None:
    (folder / "data.npz").write_bytes(b"no archive")
    file = config(folder, "none")
    for out in (folder, folder / "w.safetensors", folder.parent):
        with pytest.raises(ConfigError, match=r"Output"):
            audit.run_audit(file, out)
    assert (folder / "nets.py").is_file()


def default_signals() -> None:
    """Undo what the tests were started with: a shell's background jobs ignore SIGINT, and nohup's SIGHUP."""
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129), (signal.SIGINT, 130)])
def test_a_signal_leaves_nothing_half_written(folder: Path, number: signal.Signals, status: int) -> None:
    file = config(folder, "none", "slow")
    command = [sys.executable, "-m", "audit.cli", "run", str(file), "--out", str(folder / "out"), "--no-cache"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=default_signals
    ) as audited:
        assert audited.stdout is not None
        assert audited.stdout.readline() == "attacking\n"
        assert (folder / "out").is_dir()
        audited.send_signal(number)
        time.sleep(0.05)
        audited.send_signal(number)
        _, errors = audited.communicate(timeout=60)
    assert audited.returncode == status, errors
    assert "Traceback" not in errors
    assert not (folder / "out").exists()
    assert not list(folder.glob(".out*"))


def test_a_hangup_that_was_to_be_ignored_is() -> None:
    code = (
        "import signal, sys; signal.signal(signal.SIGHUP, signal.SIG_IGN); sys.argv = ['x', '--version']\n"
        "from audit.cli import main\n"
        "try: main()\nexcept SystemExit: pass\n"
        "print(signal.getsignal(signal.SIGHUP) == signal.SIG_IGN)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "True"


def raising(error: BaseException) -> Callable[[], None]:
    def compute() -> None:
        raise error

    return compute


def test_only_what_is_the_models_own_is_kept_apart() -> None:
    assert tried("stage", lambda: 3) == 3
    for error in (AssertionError("one\ntwo"), torch.OutOfMemoryError("x"), SystemExit(0), ClassifierError("Mend it.")):
        assert tried("stage", raising(error)) == Failure(stage="stage", why=reason(error))
    assert reason(AssertionError("one\ntwo")) == "AssertionError: one."
    assert reason(AssertionError()) == "AssertionError."
    assert "robust" in reason(torch.OutOfMemoryError("CUDA"))
    for passing in (KeyboardInterrupt(), Terminated(143), DataError("d"), OSError(28, "full")):
        with pytest.raises(type(passing)):
            tried("stage", raising(passing))


def test_a_terminal_that_is_gone_changes_no_status(folder: Path) -> None:
    audit.run_audit(config(folder, "none"), folder / "out")
    (folder / "gate.toml").write_text('[[rule]]\nmetric = "clean.accuracy"\nmin = 0.0\n')
    arguments = ["gate", str(folder / "out/results.json"), "--policy", str(folder / "gate.toml")]
    command = [sys.executable, "-m", "audit.cli", *arguments]
    reading, writing_end = os.pipe()
    os.close(reading)
    with os.fdopen(writing_end, "w") as gone:
        assert subprocess.run(command, stdout=gone, stderr=subprocess.PIPE).returncode == 0
    for encoding in ("ascii", "latin-1", "cp1252", "utf-8"):
        environment = {**os.environ, "PYTHONIOENCODING": encoding}
        done = subprocess.run(command, capture_output=True, env=environment)
        assert done.returncode == 0, done.stderr
        assert (">= 0" if encoding != "utf-8" else "≥ 0") in done.stdout.decode(encoding)


def test_a_report_is_ours_and_nothing_else_is_written_over(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = folder / "out"
    audit.run_audit(config(folder, "none"), out)
    before = (out / "results.json").read_bytes()
    results = str(out / "results.json")
    (folder / "gate.toml").write_text('[[rule]]\nmetric = "clean.accuracy"\nmin = 0.0\n')
    policy = str(folder / "gate.toml")
    for arguments in (
        ["report", results, "--out", results],
        ["gate", results, "--policy", policy, "--junit", results],
        ["gate", results, "--policy", policy, "--markdown", policy],
    ):
        assert status_of(*arguments) == 2
    assert (out / "results.json").read_bytes() == before
    assert "rule" in (folder / "gate.toml").read_text()
    own = ["gate", results, "--policy", policy, "--junit", str(out / "j.xml"), "--markdown", str(out / "s.md")]
    assert status_of(*own) == status_of(*own) == status_of("report", results) == 0
    assert status_of("run", str(folder / "a.toml"), "--out", str(out), "--no-cache") == 0
    assert {p.name for p in out.iterdir()} >= {"j.xml", "s.md", "report.html", "results.json", MANIFEST}


def test_a_defect_is_told_from_a_failed_gate(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for error in (RuntimeError("ours"), EOFError(), SystemExit(1)):

        def broken(_: object, error: BaseException = error) -> AuditResult:
            raise error

        monkeypatch.setattr("audit.results.read_results", broken)
        assert status_of("gate", "r.json", "--policy", "p.toml") == 70
        assert "defect" in capsys.readouterr().err


def test_lack_of_memory_is_no_defect(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for error in (MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to ...")):

        def broken(_: object, error: BaseException = error) -> AuditResult:
            raise error

        monkeypatch.setattr("audit.results.read_results", broken)
        assert status_of("gate", "r.json", "--policy", "p.toml") == 2
        assert "lower the batch size" in capsys.readouterr().err
