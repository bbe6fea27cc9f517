"""A whole audit of networks that are given their images wrongly: console, results and report say so."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn
from typer.testing import CliRunner

import audit
from audit.cli import app
from audit.results import AuditResult, read_results

FACTORY = """
from torch import nn


def build():
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1, 2))
"""
RULES = """
name = "a look"
[data]
path = "images"
[reliance]
n = 4
[robustness]
n = 8
steps = 1
eps = ["1/255"]
"""


def write_images(folder: Path, names: tuple[str, str]) -> None:
    """Twenty-odd grey images a class, the first class darker than 0.3 on average and the second lighter."""
    rng = np.random.default_rng(0)
    for name, level in zip(names, (0.27, 0.33), strict=True):
        (folder / "images/test" / name).mkdir(parents=True)
        for i in range(24):
            pixels = rng.uniform(-0.1, 0.1, (8, 8))
            grey = (pixels - pixels.mean() + level) * 255
            Image.fromarray(grey.round().astype(np.uint8)).save(folder / "images/test" / name / f"{i}.png")


def write_network(file: Path, threshold: float, slope: float) -> None:
    """The factory's network: its second output is the larger where the mean that it receives is above threshold."""
    network = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1, 2))
    with torch.no_grad():
        network[2].weight.copy_(torch.tensor([[-slope], [slope]]))
        network[2].bias.copy_(torch.tensor([slope * threshold, -slope * threshold]))
    save_file(network.state_dict(), file)


def model(name: str, checkpoint: str, extra: str = "") -> str:
    lines = [
        "[[classifiers]]",
        f'name = "{name}"',
        'factory = "net.py:build"',
        f'checkpoint = "{checkpoint}.safetensors"',
    ]
    return "\n".join([*lines, extra, ""])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("look")
    write_images(root, ("normal", "Pneumonia"))
    (root / "net.py").write_text(FACTORY)
    write_network(root / "plain.safetensors", 0.3, 100)
    write_network(root / "turned.safetensors", 0.3, -100)
    write_network(root / "scaled.safetensors", (0.3 - 0.449) / 0.226, 20)
    known = 'mean = [0]\nstd = [1]\nclasses = ["normal", "Pneumonia"]'
    text = RULES + model("known", "plain", known) + model("unsaid", "plain")
    text += model("turned", "turned", "mean = [0]\nstd = [1]")
    text += model("scaled", "scaled", 'classes = ["normal", "Pneumonia"]')
    (root / "audit.toml").write_text(text)
    return root


@pytest.fixture(scope="module")
def printed(folder: Path) -> str:
    done = CliRunner().invoke(app, ["run", str(folder / "audit.toml"), "--out", str(folder / "out"), "--no-cache"])
    assert done.exit_code == 0, done.output
    return done.output


@pytest.fixture(scope="module")
def result(folder: Path, printed: str) -> AuditResult:
    return read_results(folder / "out/results.json")


def kinds(result: AuditResult, name: str) -> set[str]:
    return {notice.kind for notice in result.notices if notice.subject == name}


def test_a_model_given_rightly_and_in_full_has_no_notice(result: AuditResult) -> None:
    assert kinds(result, "known") == set()


def test_what_nobody_said_is_one_short_notice_each(result: AuditResult) -> None:
    assert kinds(result, "unsaid") == {"no-normalisation-given", "class-order"}


def test_turned_classes_are_told_and_so_is_accuracy_below_chance(result: AuditResult) -> None:
    assert kinds(result, "turned") == {"other-reading-better", "below-chance"}
    told = next(n.text for n in result.notices if n.subject == "turned" and n.kind == "other-reading-better")
    assert '`classes = ["Pneumonia", "normal"]`' in told


def test_a_model_of_one_class_by_its_normalisation_is_told_with_the_remedy(result: AuditResult) -> None:
    assert kinds(result, "scaled") == {"other-reading-better", "one-class"}
    told = next(n.text for n in result.notices if n.subject == "scaled" and n.kind == "other-reading-better")
    assert "`mean = [0.449]`, `std = [0.226]`" in told


def test_results_hold_every_reading_and_the_assumed_first(result: AuditResult) -> None:
    for row in result.models:
        assert row.sanity[0].assumed
        assert row.sanity[0].accuracy.n == 48
        assert len(row.sanity) > 5
    scaled = next(row for row in result.models if row.name == "scaled")
    assert any(one.better and one.accuracy.value == 1 for one in scaled.sanity)


def test_the_console_says_every_models_input(printed: str) -> None:
    lines = " ".join(printed.split())
    assert "Input of known: 8 x 8 (as the data); 1 channel (as the data); mean 0, std 1 (configuration);" in lines
    assert "Input of unsaid: 8 x 8 (as the data); 1 channel (as the data); mean 0, std 1 (nobody gave any);" in lines
    assert "Note on scaled: " in lines


def test_the_report_shows_it(folder: Path, result: AuditResult) -> None:
    page = (folder / "out/report.html").read_text()
    assert "How each model was given the images" in page
    assert "Would another reading of the input be better?" in page


def test_the_look_changes_no_other_number(folder: Path, result: AuditResult, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("audit.robustness.sanity.measure.MOST_IMAGES", 4)
    fewer = audit.run_audit(folder / "audit.toml")
    for row, other in zip(result.models, fewer.models, strict=True):
        assert len(row.sanity) == len(other.sanity)
        assert other.sanity[0].accuracy.n == 4
        assert row.clean == other.clean
        assert row.robust.pgd == other.robust.pgd
