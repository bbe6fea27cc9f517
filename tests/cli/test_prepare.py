"""`init` and `doctor`: a first configuration that `run` accepts, and what stands in an audit's way."""

import re
import shutil
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from support_command import status_of

from audit.config import load_config
from audit.errors import ConfigError
from audit.gate.policy import load_policy, metrics_of
from audit.pipeline.draft import draft
from audit.results import read_results
from audit.storage import shipped


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Grey images of several sizes in splits of their own names, masks beside them, and checkpoints."""
    root, rng = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    for number in range(8):
        split, label = ("train", "val")[number % 2], ("healthy", "opacity")[number // 2 % 2]
        for place, values in (("xray", 255), ("masks", 1)):
            file = root / place / split / label / f"{number}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            shape = (70 + number, 80)
            Image.fromarray(rng.integers(0, values, shape, dtype=np.uint8, endpoint=True)).save(file)
    network = timm.create_model("resnet18", num_classes=2, in_chans=1)
    torch.save(network.state_dict(), root / "resnet.pt")
    torch.save({"a.weight": torch.zeros(3, 4)}, root / "odd.pt")
    shutil.copy(shipped.path("classifiers", "plain"), root / "own.safetensors")
    return root


def test_init_writes_what_run_accepts_and_says_what_it_saw(folder: Path, run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    status, text = run("init", "xray", "resnet.pt", "own.safetensors", "--out", "audits/a.toml")
    assert (status, "To fill in" in text) == (0, False), text
    written = (folder / "audits/a.toml").read_text()
    config = load_config("audits/a.toml")
    assert Path(config.data.path) == folder / "xray"
    assert config.data.masks is not None
    assert Path(config.data.masks) == folder / "masks"
    assert (config.data.image_size, config.data.audit_split, config.data.calibration_split) == (64, "val", None)
    assert "healthy 4, opacity 4" in written
    assert load_policy("audits/gate.toml").rule[0].metric == "clean.accuracy"
    resnet, own = config.classifiers
    assert (resnet.architecture, own.architecture, own.mean) == ("resnet18", None, None)
    assert 'mean [0.3712], std [0.278], input_size 64, channels 1, architecture "small-convnext"' in written
    assert status_of("init", "xray", "--out", "audits/a.toml") == 2
    assert (folder / "audits/a.toml").read_text() == written


def test_init_leaves_to_the_user_what_it_cannot_tell(folder: Path, run, tmp_path: Path) -> None:
    out = tmp_path / "a.toml"
    status, text = run("init", str(folder / "xray"), str(folder / "odd.pt"), "--out", str(out))
    assert status == 0
    assert 'To fill in: classifier "odd": its architecture could not be told' in text.replace("\n", " ")
    assert "It gives 3 outputs for 2 classes." in out.read_text()
    # The lines to fill in are TOML as they stand.
    lines = r"# ((architecture|mean|std|input_size|classes) = )"
    named = re.sub(r"# architecture = .*", '# architecture = "resnet18"', out.read_text())
    out.write_text(re.sub(lines, r"\1", named))
    (odd,) = load_config(out).classifiers
    assert (odd.mean, odd.std, odd.input_size) == ((0.5,), (0.5,), 224)
    assert 'To check: classifier "odd": mean, std and input_size' in text.replace("\n", " ")
    with pytest.raises(ConfigError, match="give images first"):
        draft(str(folder / "odd.pt"), [str(folder / "xray")], tmp_path)
    program = torch.jit.trace(torch.nn.Flatten(), torch.zeros(1, 1, 8, 8))
    program.save(str(tmp_path / "program.pt"))
    assert (
        "is a program" not in run("init", "phantom", str(tmp_path / "program.pt"), "--out", str(tmp_path / "c.toml"))[1]
    )
    program.define("def more(self, x: Tensor) -> Tensor:\n    torch.save(x, 'f')\n    return x\n")
    program.save(str(tmp_path / "writes.pt"))
    text = run("init", "phantom", str(tmp_path / "writes.pt"), "--out", str(tmp_path / "d.toml"))[1]
    assert "To fill in: classifier 'writes.pt' is a program with a call of 'save'" in text.replace("\n", " ")
    assert run("init", "phantom", "shipped:plain", "--out", str(tmp_path / "p.toml"))[0] == 0
    config = load_config(tmp_path / "p.toml")
    assert config.generator is not None
    assert text.count("Left as it is: ") == 1
    assert run("init", "--out", str(tmp_path / "none.toml"))[1].count("To fill in") == 2


def test_the_gate_measures_all_that_the_policy_of_init_asks_for(
    run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run("init", "phantom", "shipped:plain")[0] == 0
    config = (tmp_path / "audit.toml").read_text()
    small = "[data.phantom]\ncalibration = 60\naudit = 12\n\n[robustness]\nn = 12\nsteps = 1\n"
    (tmp_path / "small.toml").write_text(
        re.sub(r"\[generator\]\n.*\n", "", config).replace("[robustness]\n", small) + "\n[reliance]\nn = 12\n"
    )
    status, text = run("run", "small.toml", "--no-cache")
    assert (status, "rank" in text, "Report:  report/report.html" in text) == (0, False, True), text
    (model,) = read_results("report/results.json").models
    assert {rule.metric for rule in load_policy("gate.toml").rule} <= metrics_of(model).keys()
    status, text = run("gate")
    assert (status, "not measured" in text) == (1, False), text
    (tmp_path / "gate.toml").rename("used.toml")
    assert status_of("gate") == 2
    assert "Policy 'gate.toml' does not exist" in capsys.readouterr().err
    (tmp_path / "gate.toml").write_text('[[rule]]\nmetric = "clean.accuracy"\nmin = 0\n')
    assert run("init", "--out", "other.toml")[0] == 0
    assert run("gate")[0] == 0


def test_doctor_looks_at_the_machine_and_at_every_model(folder: Path, run) -> None:
    models = "".join(
        f'[[classifiers]]\nname = "{name}"\ncheckpoint = "{name}.pt"\narchitecture = "resnet18"\n'
        for name in ("resnet", "odd")
    )
    (folder / "d.toml").write_text(f'[data]\npath = "xray"\nimage_size = 64\naudit_split = "val"\n{models}')
    status, text = run("doctor", str(folder / "d.toml"), "--cache", str(folder / "cache"))
    lines = re.findall(r"^(ok|note|mend) +([^:]+):", text, re.MULTILINE)
    found = {subject: state for state, subject in reversed(lines)}  # the first line of each
    assert status == 2, text
    assert {subject for subject, state in found.items() if state == "mend"} == {"model 'odd'"}, text
    for subject in ("torch and torchvision", "configuration", "device", "shipped weights", "model 'resnet'"):
        assert found[subject] == "ok", text
    answers = r"(healthy|opacity) \d(, opacity \d)?"
    said = (
        rf"model 'resnet': resnet18 \+ resnet.pt; \d+ ms an image; right on \d of 4 images \(\d+ %\); answers {answers}"
    )
    assert re.search(said, text), text
    assert "note  model 'resnet': nobody says how this network wants its images" in text
    assert len(re.findall(r"^note +weights:", text, re.MULTILINE)) <= 1
    assert "reduced to 64 x 64 before" not in text
    sized = (folder / "d.toml").read_text().replace("image_size = 64", "image_size = 32") + "input_size = 64\n"
    (folder / "d.toml").write_text(
        sized.replace('name = "odd"\ncheckpoint = "odd.pt"', 'name = "b"\ncheckpoint = "resnet.pt"')
    )
    status, text = run("doctor", str(folder / "d.toml"), "--cache", str(folder / "cache"))
    assert (status, text.count("are reduced to 32 x 32 before")) == (0, 1), text
    assert "note  model 'b': it takes images of 64 x 64 and most files have sides of 73 and more" in text
    assert not (folder / "cache").exists()


def test_doctor_finds_a_shipped_file_that_was_changed(run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    shutil.copytree(str(files("audit") / "assets"), tmp_path / "assets")
    with (tmp_path / "assets/classifiers/plain.safetensors").open("ab") as file:
        file.write(b"x")
    monkeypatch.setattr(shipped, "_folder", lambda kind: tmp_path / "assets" / kind)
    status, text = run("doctor", "--cache", str(tmp_path))
    assert status == 2
    assert re.search(r"mend +shipped weights: .*plain.safetensors' is not the file of its card: run `python", text)


def test_estimate_says_how_long_each_stage_takes_at_most(run, tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text(
        '[data]\npath = "phantom"\n[data.phantom]\ncalibration = 60\naudit = 6\n[robustness]\nn = 4\nsteps = 1\n'
        '[reliance]\nn = 4\n[[classifiers]]\nname = "plain"\ncheckpoint = "shipped:plain"\n'
    )
    status, text = run("estimate", str(tmp_path / "a.toml"), "--quick")
    assert status == 0, text
    assert re.search(r"robust accuracy .* \d+ s", text)
    assert re.search(r"At most (\d+ min )?\d+ s \(.*\) and about \d\.\d GB of memory", text.replace("\n", " "))
    assert not list(tmp_path.glob("*/"))
    assert run("estimate", str(tmp_path / "a.toml"), "--quick", "--thorough")[0] == 2
