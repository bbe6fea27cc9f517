"""What speaks against a model as a whole reaches results, console, report and gate, whatever the settings."""

import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from typer.testing import CliRunner

from audit.cli import app
from audit.config import AuditConfig, parse_config
from audit.gate.evaluate import Policy, evaluate_gate
from audit.pipeline.runner import run_audit
from audit.results import AuditResult, read_results
from audit.robustness.trust.batch_dependence import batch_dependence

NETS = '''
import torch
from torch import nn


class Net(nn.Module):
    """Decides by brightness; `norm` stands behind the first layer."""

    def __init__(self, norm):
        super().__init__()
        self.first, self.norm, self.head = nn.Conv2d(1, 4, 3), norm, nn.Linear(4, 2)

    def features(self, images):
        return self.norm(self.first(images)).relu().mean(dim=(2, 3))

    def forward(self, images):
        return self.head(self.features(images))


class Probe(Net):
    """Cuts the way back to the image."""

    def forward(self, images):
        with torch.no_grad():
            features = self.features(images)
        return self.head(features)


def sound(): return Net(nn.Identity())
def coupled(): return Net(nn.BatchNorm2d(4, track_running_stats=False, affine=False))
def probe(): return Probe(nn.Identity())
'''


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Dark and bright images in a folder, and weights that tell them apart (or answer one class only)."""
    root = tmp_path_factory.mktemp("audited")
    rng = np.random.default_rng(0)
    for split in ("val", "test"):
        for name, level in (("bright", 170), ("dark", 60)):
            (root / "images" / split / name).mkdir(parents=True)
            for i in range(10):
                pixels = np.clip(rng.normal(level + 3 * i, 12, (12, 12)), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(root / "images" / split / name / f"{i}.png")
    (root / "nets.py").write_text(NETS)
    weight = torch.full((4, 1, 3, 3), 1 / 9)
    state = {"first.weight": weight, "first.bias": torch.zeros(4)}
    state |= {"head.weight": torch.tensor([[5.0] * 4, [-5.0] * 4]), "head.bias": torch.tensor([-9.0, 9.0])}
    torch.save(state, root / "weights.pt")
    torch.save(state | {"head.bias": torch.tensor([900.0, -900.0])}, root / "one.pt")
    return root


def audited(folder: Path, factory: str, out: Path | None = None, weights: str = "weights.pt", **robustness: Any) -> Any:
    values = {
        "data": {"path": str(folder / "images")},
        "reliance": {"n": 4},
        "robustness": {"n": 12, "eps": ["0.02"], "steps": 3, "trust": {"n": 8, "square_queries": 10}, **robustness},
        "classifiers": [
            {"name": "m", "factory": f"{folder / 'nets.py'}:{factory}", "checkpoint": str(folder / weights)}
        ],
    }
    return run_audit(parse_config(AuditConfig, values, "the test"), out)


def status(results: AuditResult, metric: str, **rule: Any) -> int:
    return evaluate_gate(results, parse_config(Policy, {"rule": [{"metric": metric, **rule}]}, "the test")).exit_status


SETTINGS: dict[str, dict] = {
    "all": {},
    "no checks": {"trust": False},
    "L2 only": {"eps": [], "l2_eps": ["0.2"], "trust": False},
    "few": {"n": 8},
}


@pytest.mark.parametrize("settings", SETTINGS)
def test_a_model_whose_answers_depend_on_the_batch_is_unreliable_as_a_whole(folder: Path, settings: str) -> None:
    results = audited(folder, "coupled", **SETTINGS[settings])
    (model,) = results.models
    assert "depends on the other images of its batch" in model.unreliable[0]
    assert [(n.subject, n.kind) for n in results.notices if n.kind == "batch-dependence"] == [("m", "batch-dependence")]
    assert model.robust.checks[0].name == "batch-dependence"
    assert model.robust.trusted is False
    attacks = [*model.robust.pgd.values(), *model.robust.pgd_l2.values()]
    assert attacks
    assert all(attack.untrusted[0] == model.unreliable[0] for attack in attacks)
    assert status(results, "clean.accuracy", min=0.0) == 2


@pytest.mark.parametrize("settings", SETTINGS)
def test_a_sound_model_is_reliable_and_its_clean_accuracy_passes(folder: Path, settings: str) -> None:
    results = audited(folder, "sound", **SETTINGS[settings])
    (model,) = results.models
    assert model.unreliable == []
    assert not {"no-gradient", "batch-dependence"} & {notice.kind for notice in results.notices}
    assert model.clean.accuracy.value == 1
    assert status(results, "clean.accuracy", min=0.9) == 0
    radius = "robust.pgd_l2.0.2" if settings == "L2 only" else "robust.pgd.0.02"
    checked = settings in ("all", "few")
    assert model.robust.trusted is (True if checked else None)
    assert status(results, radius, min=0.0) == (0 if checked else 2)
    assert status(results, radius, min=0.0, allow_unchecked=True) == 0


@pytest.mark.parametrize("settings", SETTINGS)
def test_a_blind_attack_passes_no_gate(folder: Path, settings: str) -> None:
    results = audited(folder, "probe", **SETTINGS[settings])
    radius = "robust.pgd_l2.0.2" if settings == "L2 only" else "robust.pgd.0.02"
    assert status(results, "clean.accuracy", min=0.9) == 0
    assert [notice.kind for notice in results.notices if notice.subject == "m"].count("no-gradient") == 1
    assert status(results, radius, min=0.0, allow_unchecked=True) == 2
    assert status(results, radius, min=0.0, allow_unchecked=True, allow_untrusted=True) == 0


@pytest.mark.parametrize("settings", SETTINGS)
def test_the_robust_accuracy_of_a_model_with_one_answer_passes_no_gate(folder: Path, settings: str) -> None:
    results = audited(folder, "sound", weights="one.pt", **SETTINGS[settings])
    (model,) = results.models
    assert model.clean.accuracy.value == 0.5
    assert any("answers 'bright' to all 20 images" in check.finding for check in model.robust.checks)
    radius = "robust.pgd_l2.0.2" if settings == "L2 only" else "robust.pgd.0.02"
    assert status(results, radius, min=0.0, allow_unchecked=True) == 2
    assert status(results, "clean.accuracy", min=0.5) == 0


def test_console_report_and_file_mark_what_is_doubted(folder: Path, tmp_path: Path) -> None:
    config = tmp_path / "audit.toml"
    config.write_text(
        f"""
[data]
path = "{folder / "images"}"
[reliance]
n = 4
[robustness]
n = 8
eps = []
l2_eps = ["0.2"]
steps = 3
trust = false
[[classifiers]]
name = "coupled"
factory = "{folder / "nets.py"}:coupled"
checkpoint = "{folder / "weights.pt"}"
[[classifiers]]
name = "plain"
factory = "{folder / "nets.py"}:sound"
checkpoint = "{folder / "weights.pt"}"
"""
    )
    out = tmp_path / "out"
    said = CliRunner().invoke(app, ["run", str(config), "--out", str(out), "--no-cache"], env={"COLUMNS": "40"})
    assert said.exit_code == 0, said.output
    assert re.search(r"coupled .*\n.*\(unreliable\)", said.output)
    assert re.search(r"PGD, L2 .*\n.* 0\.2 ", said.output)
    assert "(untrusted)" in said.output
    assert "(unchecked)" in said.output
    page = (out / "report.html").read_text(encoding="utf-8")
    assert ">unreliable</a>" in page
    assert ">untrusted</a>" in page
    assert ">unchecked</a>" in page
    results = read_results(out / "results.json")
    assert set(results.models[0].robust.pgd_l2["0.2"].outcomes.values()) <= {"before", "pgd", None}
    assert len(results.models[0].robust.pgd_l2["0.2"].outcomes) == 8


def test_a_model_that_fits_no_batch_of_one_is_no_error(folder: Path) -> None:
    class NeedsTwo(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return torch.stack([images.mean(dim=(1, 2, 3)), -images.mean(dim=(1, 2, 3))], dim=1).squeeze()

    assert batch_dependence(NeedsTwo(), torch.rand(4, 1, 8, 8)).passed is None


def test_a_change_is_judged_against_the_same_images_only(folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(folder, other)
    file = next((other / "images" / "test" / "dark").iterdir())
    Image.fromarray(255 - np.asarray(Image.open(file))).save(file)
    before, now, changed = audited(folder, "sound"), audited(folder, "sound"), audited(other, "sound")
    assert len(now.data["audited_sha256"]) == 64
    for metric in ("clean.accuracy", "robust.pgd.0.02"):
        rule = parse_config(Policy, {"rule": [{"metric": metric, "max_drop": 1.0}]}, "the test")
        assert evaluate_gate(now, rule, before).exit_status == 0
        outcome = evaluate_gate(now, rule, changed)
        assert outcome.exit_status == 2
        assert "other images" in outcome.checks[0].sentence
