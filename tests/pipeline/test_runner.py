"""The main job end to end on a small set: every stage real, two classes, a 16x16 generator, two classifiers."""

import json
import re
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path

import jsonschema
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from support_command import status_of
from torch import nn
from typer.testing import CliRunner

import audit
from audit.classifiers.classifier import Classifier
from audit.classifiers.identity import ASKED
from audit.classifiers.slices import PROBED
from audit.cli import app
from audit.config import load_config
from audit.counterfactual.spruce import Spruce
from audit.errors import AuditError, GeneratorError
from audit.generator.files.load import load_generator, save_generator
from audit.generator.stylegan2.discriminator import Discriminator
from audit.generator.stylegan2.networks import Generator
from audit.results import json_schema, read_results
from audit.runtime import progress
from audit.training.generator.config import GeneratorTrainConfig
from audit.training.generator.train import run_generator_training

FACTORY = """
import torch
from torch import nn


def build():
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, stride=2, padding=1), nn.GELU(), nn.Conv2d(8, 8, 3, stride=2, padding=1), nn.GELU(),
        nn.Flatten(), nn.Linear(128, 12), nn.GELU(), nn.Linear(12, 2),
    )
"""


def draw(n, seed):
    """Grey 16x16 images with a soft bright spot on the left (class 0) or the right (class 1)."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, n)
    y, x = np.mgrid[:16, :16]
    cx = np.where(labels == 0, 4.5, 11.5) + rng.normal(0, 0.7, n)
    cy = 8 + rng.normal(0, 1, n)
    spot = np.exp(-((x - cx[:, None, None]) ** 2 + (y - cy[:, None, None]) ** 2) / 8)
    images = 0.2 + 0.6 * spot + rng.normal(0, 0.01, (n, 16, 16))
    return (images.clip(0, 1) * 255).round().astype(np.uint8), labels.astype(np.uint8)[:, None]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A data archive, a small generator trained on it, and two classifiers that are one function."""
    root = tmp_path_factory.mktemp("audit")
    arrays = {}
    for seed, (split, n) in enumerate({"train": 400, "val": 200, "test": 120}.items()):
        arrays[f"{split}_images"], arrays[f"{split}_labels"] = draw(n, seed)
    np.savez(root / "data.npz", **arrays)
    (root / "networks.py").write_text(FACTORY)
    scope: dict = {}
    exec(FACTORY, scope)  # the very factory that the audit imports
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = scope["build"]()
        images = torch.from_numpy(arrays["train_images"])[:, None].float() / 255
        labels = torch.from_numpy(arrays["train_labels"][:, 0]).long()
        optimiser = torch.optim.AdamW(network.parameters(), lr=1e-2)
        for _ in range(60):
            loss = nn.functional.cross_entropy(network(images), labels)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    save_file(network.state_dict(), root / "a.safetensors")
    config = GeneratorTrainConfig(
        data={"path": str(root / "data.npz"), "calibration_split": "train"}, kimg=6, batch_size=16, z_dim=16, w_dim=16,
        channel_base=128, channel_max=8, snapshot_kimg=6, fid_embedding="none", path_length_weight=0,
    )  # fmt: skip
    run_generator_training(config, root / "generator")
    trained = load_generator(root / "generator" / "generator.safetensors")
    origin = {"converted_from": {"notes": ["noted of its origin"]}}
    save_generator(root / "generator" / "generator.safetensors", trained.generator, trained.discriminator, origin)
    write_config(root, "audit.toml")
    return root


def write_config(
    root: Path, name: str, *, classifiers=("a", "b"), extra="", data="data.npz", generator=True, **changes
) -> Path:
    """An audit of the named classifiers; `changes` replace lines `key = value` of the shipped text."""
    text = f"""
name = "spots"
seed = 3
[data]
path = "{data}"
classes = ["left", "right"]
[queries]
n = 20
target = "right"
[generator]
path = "generator/generator.safetensors"
[inversion]
pivot_steps = 40
tuning_steps = 40
[counterfactual]
steps = 30
[reliance]
n = 4
[robustness]
n = 30
steps = 3
eps = ["8/255"]
[metrics]
canonical = "off"
[ranking]
bootstrap = 100
{extra}
"""
    if not generator:
        text = text.replace('[generator]\npath = "generator/generator.safetensors"\n', "")
    for key, value in changes.items():
        lines = [f"{key} = {value}" if line.startswith(f"{key} =") else line for line in text.splitlines()]
        text = "\n".join(lines)
    for one in classifiers:
        text += f'[[classifiers]]\nname = "{one}"\nfactory = "networks.py:build"\ncheckpoint = "a.safetensors"\n'
    file = root / name
    file.write_text(text)
    return file


@pytest.fixture(scope="module")
def outcome(folder):
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(progress, "_shown", progress._Shown("plain"))  # as in a log of CI, with an estimate
        result = audit.run_audit(folder / "audit.toml", folder / "out", cache=folder / "cache")
    return result, folder / "out"


def test_a_list_of_methods_compares_them_and_changes_nothing_else(folder, outcome):
    file = write_config(folder, "methods.toml")
    file.write_text(file.read_text().replace("[counterfactual]", '[counterfactual]\nmethod = ["spruce", "pixel"]'))
    again = audit.run_audit(file, folder / "compared", cache=folder / "cache")
    for one, other in zip(again.models, outcome[0].models, strict=True):
        assert one.model_copy(update={"methods": {}}) == other
        pixel = one.methods["pixel"]
        assert pixel.failed is None
        assert pixel.counterfactuals.flip_ratio.value == 1
        assert pixel.counterfactuals.l1.value < one.counterfactuals.l1.value
        assert all((folder / "compared" / row.counterfactual_image).is_file() for row in pixel.queries)
    assert again.environment.seconds["counterfactuals"] < again.environment.seconds["counterfactuals by pixel"]
    assert "Methods compared" in (folder / "compared" / "report.html").read_text()


def test_results_are_complete_and_valid(outcome):
    result, out = outcome
    assert ("generator", "Noted of its origin.") in [(notice.subject, notice.text) for notice in result.notices]
    values = json.loads((out / "results.json").read_text())
    jsonschema.validate(values, json_schema())
    assert read_results(out / "results.json") == result
    assert result.complete
    assert [m.name for m in result.models] == ["a", "b"]
    for model in result.models:
        assert model.clean.accuracy.value > 0.9
        assert "8/255" in model.robust.pgd
        assert model.counterfactuals.n == len(model.queries) == len(result.queries) == 20
        assert model.counterfactuals.operating_point_cap == 0.9
        assert max(model.counterfactuals.operating_point.values()) <= 0.9
        rows = model.queries
        assert all(len(row.trace) == row.steps + 1 for row in rows)
        assert all(row.aligned.steps <= 30 and row.l1 <= row.aligned.l1 + 1e-6 for row in rows if row.reached)
        assert model.counterfactuals.converged == pytest.approx(sum(row.converged for row in rows) / len(rows))
        assert {d.embedding.name for d in model.counterfactuals.fid + model.counterfactuals.mmd} == {"discriminator"}
        for one in ("validity", "sparsity", "transfer"):
            assert 0 <= getattr(model.components, one) <= 1
        assert model.components.localisation is None
    assert "localisation" in " ".join(n.what for n in result.not_computed + result.models[0].not_computed)
    assert set(result.environment.seconds) >= {"data", "inversion", "counterfactuals", "metrics"}


def test_no_path_of_the_machine_is_recorded(outcome, folder):
    assert str(folder) not in (outcome[1] / "results.json").read_text()


def test_pictures_and_report_are_there(outcome):
    result, out = outcome
    for query in result.queries:
        assert (out / query.image).is_file()
        assert (out / query.inversion_image).is_file()
    for row in result.models[1].queries:
        for name in (row.counterfactual_image, row.semifactual_image, row.edit_image):
            assert (out / name).is_file()
    page = (out / "report.html").read_text()
    assert "spots" in page
    assert "<script src" not in page


def test_one_function_under_two_names_gets_one_rank(outcome):
    a, b = outcome[0].models
    assert a.index == b.index
    assert a.rank == b.rank == 1
    assert outcome[0].comparisons[0].probability == 0.5


def test_rescaled_features_change_nothing(folder):
    """Features times 10 and head divided by 10 is the same function, so it must be the same audit."""
    state = load_file(folder / "a.safetensors")
    scaled = FACTORY.replace("nn.GELU(), nn.Linear(12, 2)", "nn.GELU(), Ten(), nn.Linear(12, 2)").replace(
        "def build", "class Ten(nn.Module):\n    def forward(self, x):\n        return 10 * x\n\n\ndef build"
    )
    (folder / "scaled.py").write_text(scaled)
    state["8.weight"], state["8.bias"] = state.pop("7.weight") / 10, state.pop("7.bias")
    save_file(state, folder / "scaled.safetensors")
    file = write_config(folder, "scaled.toml", classifiers=("a",))
    file.write_text(
        file.read_text() + '[[classifiers]]\nname = "scaled"\nfactory = "scaled.py:build"\n'
        'checkpoint = "scaled.safetensors"\n'
    )
    result = audit.run_audit(file, cache=folder / "cache")
    a, b = result.models
    assert b.index == pytest.approx(a.index, rel=1e-2)
    assert b.counterfactuals.flip_ratio.value == a.counterfactuals.flip_ratio.value
    for one, other in zip(a.queries, b.queries, strict=True):
        assert other.l1 == pytest.approx(one.l1, abs=2e-3)
        assert other.confidence == pytest.approx(one.confidence, abs=2e-2)


@dataclass
class Passes:
    """Images that each classifier was asked about, how many of them with a gradient, and what was searched for."""

    asked: dict[str, list[int]] = field(default_factory=lambda: defaultdict(list))
    graded: Counter[str] = field(default_factory=Counter)
    searched: list[str] = field(default_factory=list)


@pytest.fixture
def passes(monkeypatch):
    """Count what is asked of the classifiers; the pass of two images that measures the memory is none of it."""
    seen, call, explain = Passes(), Classifier._call, Spruce.explain

    def counted(self, function, images):
        if len(images) != PROBED:
            seen.asked[self.name].append(len(images))
            seen.graded[self.name] += len(images) if images.requires_grad else 0
        return call(self, function, images)

    def searching(self, subject, *given):
        seen.searched.append(subject.classifier.name)
        return explain(self, subject, *given)

    monkeypatch.setattr(Classifier, "_call", counted)
    monkeypatch.setattr(Spruce, "explain", searching)
    return seen


def never(*_, **__):
    raise AssertionError("something was computed that is in the store")


def test_a_second_run_does_no_models_work_and_agrees(outcome, folder, passes, monkeypatch):
    for work in (
        "audit.pipeline.estimate._measured",
        "audit.pipeline.estimate._inversion_step",
        "audit.counterfactual.exceptional.fit_mixture",
        "audit.reliance.groups.KMeans",
        "audit.metrics.transfer.LogisticRegression",
    ):
        monkeypatch.setattr(work, never)
    monkeypatch.setattr(Generator, "draw", never)
    progress.choose_style("plain")
    first, again = outcome[0], audit.run_audit(folder / "audit.toml", cache=folder / "cache")
    assert "estimate" in again.environment.seconds
    assert again.models == first.models
    assert again.comparisons == first.comparisons
    # Random images only, by which each of the two is known.
    assert passes.asked == {"a": [ASKED], "b": [ASKED]}
    assert again.environment.seconds["inversion"] < first.environment.seconds["inversion"]


def test_another_weight_of_the_search_computes_nothing_before_it(outcome, folder, passes, monkeypatch):
    monkeypatch.setattr("audit.pipeline.queries.invert", never)
    monkeypatch.setattr("audit.robustness.batch.pgd_attack", never)
    file = write_config(folder, "weight.toml")
    file.write_text(file.read_text().replace("[counterfactual]", "[counterfactual]\nimage_weight = 60"))
    again = audit.run_audit(file, cache=folder / "cache")
    assert set(passes.searched) == {"a"}  # b is the same function
    assert [one.robust for one in again.models] == [one.robust for one in outcome[0].models]
    assert [one.queries for one in again.models] != [one.queries for one in outcome[0].models]


def test_another_model_computes_nothing_of_the_others_but_what_they_say_of_its_edits(outcome, folder, passes):
    weights = load_file(folder / "a.safetensors")
    save_file({name: 1.01 * value for name, value in weights.items()}, folder / "c.safetensors")
    file = write_config(folder, "added.toml", classifiers=("a",))
    added = '[[classifiers]]\nname = "c"\nfactory = "networks.py:build"\ncheckpoint = "c.safetensors"\n'
    file.write_text(file.read_text() + added)
    before, after = outcome[0].models[0], audit.run_audit(file, cache=folder / "cache").models[0]
    assert set(passes.searched) == {"c"}
    assert passes.graded["c"] > 0 == passes.graded["a"]
    assert (after.clean, after.robust, after.reliance) == (before.clean, before.robust, before.reliance)
    assert [one.trace for one in after.queries] == [one.trace for one in before.queries]


def test_another_batch_size_finds_every_inversion_and_counterfactual(outcome, folder, monkeypatch):
    monkeypatch.setattr("audit.pipeline.queries.invert", never)
    monkeypatch.setattr(Spruce, "explain", never)
    file = write_config(folder, "batches.toml")
    text = file.read_text()
    for table in ("inversion", "counterfactual"):
        text = text.replace(f"[{table}]", f"[{table}]\nbatch_size = 3")
    file.write_text(text)
    again = audit.run_audit(file, cache=folder / "cache")
    assert [one.queries for one in again.models] == [one.queries for one in outcome[0].models]


def test_judges_that_are_not_audited_are_told_with_their_weights(outcome, folder):
    judge = 'factory = "networks.py:build"\ncheckpoint = "a.safetensors"\n'
    tables = [f'[[judge_checkpoints]]\nname = "again"\ncopy_of = "a"\n{judge}']
    tables.append(f'[[judge_checkpoints]]\nname = "panel"\n{judge}')
    file = write_config(folder, "judges.toml", extra="\n".join(tables))
    first, second = audit.run_audit(file, cache=folder / "cache").models
    alone = outcome[0].models[0]
    # All are one function: the copy shares every flip that it can be asked about.
    assert first.counterfactuals.nafr.value == 1
    assert second.counterfactuals.nafr is None
    assert [(one.name, one.weights_sha256) for one in first.counterfactuals.copies] == [("again", alone.weights_sha256)]
    assert [one.name for one in first.counterfactuals.judges] == ["b", "panel", "logistic on discriminator"]
    assert first.counterfactuals.axioms.reversibility.n == 5
    assert first.counterfactuals.axioms.reversibility == alone.counterfactuals.axioms.reversibility
    with pytest.raises(AuditError, match="does not exist"):
        audit.run_audit(write_config(folder, "judges.toml", extra=tables[0].replace("a.safe", "b.safe")))


def test_without_a_generator_only_robustness_is_measured(folder):
    file = write_config(folder, "robust.toml", classifiers=("a",), generator=False)
    result = audit.run_audit(file, folder / "robust")
    assert result.models[0].index is None
    assert result.models[0].counterfactuals is None
    assert any("generator" in n.why for n in result.not_computed)
    assert (folder / "robust" / "report.html").is_file()
    assert result.models[0].robust.examples
    for example in result.models[0].robust.examples:
        for name in (example.image, example.adversarial_image, example.perturbation_image):
            assert (folder / "robust" / name).is_file()


ROBUSTNESS = """
attacks = ["pgd", "ensemble"]
l2_eps = ["0.5"]
trust = { n = 16, square_queries = 50 }
distance = { norms = ["Linf", "L2"], n = 12 }
corruptions = { names = ["gaussian_noise", "contrast"], severities = [1, 5], n = 30 }
vulnerability = { eps = "64/255", steps = 5, batch_size = 16, n = 60 }
[robustness.ensemble]
apgd_steps = 5
fab_steps = 5
square_queries = 20
"""


def test_a_bound_on_the_memory_is_kept_and_said_and_moves_no_number(folder):
    free = audit.run_audit(write_config(folder, "free.toml", generator=False))
    tight = write_config(folder, "tight.toml", generator=False, seed='3\nmax_memory = "200KB"')
    bound = audit.run_audit(tight)
    assert [n for n in free.notices if n.kind == "memory"] == []
    said = [n for n in bound.notices if n.kind == "memory"]
    assert [n.subject for n in said] == ["a", "b"]
    assert re.search(r"max_memory = 200KB.* with a gradient \d+ of 30 images", said[0].text)
    for one, other in zip(free.models, bound.models, strict=True):
        assert other.robust.pgd["8/255"].robust_accuracy == one.robust.pgd["8/255"].robust_accuracy
        assert other.clean == one.clean


@pytest.fixture(scope="module")
def robust_outcome(folder):
    """Every stage of robustness, without a generator, with a second source of the same images."""
    (folder / "shifted.npz").write_bytes((folder / "data.npz").read_bytes())
    file = write_config(
        folder,
        "robust-all.toml",
        generator=False,
        data='data.npz"\nshift = "shifted.npz',
        eps='["8/255", "16/255"]' + ROBUSTNESS,
    )
    return audit.run_audit(file, folder / "robust-all"), folder / "robust-all"


def test_every_kind_of_robustness_is_measured_on_the_same_images(robust_outcome):
    result, out = robust_outcome
    for model in result.models:
        robust = model.robust
        for attacks, radii in ((robust.pgd, 2), (robust.ensemble, 2), (robust.pgd_l2, 1), (robust.ensemble_l2, 1)):
            assert [a.robust_accuracy.n for a in attacks.values()] == [30] * radii
        for table in (robust.pgd, robust.ensemble):
            assert table["16/255"].robust_accuracy.value <= table["8/255"].robust_accuracy.value
        stages = robust.ensemble["16/255"].stages
        assert [s.attack for s in stages] == ["before", "apgd-ce", "apgd-t", "fab-t", "square"]
        assert stages[0].attacked == 30
        assert [s.attacked for s in stages[1:]] == [s.standing for s in stages[:-1]]
        assert robust.trusted is not None
        assert [d.norm for d in robust.distances] == ["Linf", "L2"]
        assert len(robust.distances[0].distances_by_image) == 12
        assert [c.name for c in robust.corruptions.corruptions] == ["gaussian_noise", "contrast"]
        assert robust.shift.accuracy == model.clean.accuracy
        assert robust.vulnerability.n > 0
        assert (out / robust.vulnerability.map_image).is_file()
        assert all((out / e.image).is_file() and (out / e.map_image).is_file() for e in robust.vulnerability.examples)


def test_one_function_under_two_names_does_not_differ(robust_outcome):
    result, _ = robust_outcome
    metrics = {row.metric for row in result.differences}
    assert {"clean.accuracy", "robust.pgd.8/255", "robust.ensemble_l2.0.5", "robust.corruptions"} <= metrics
    assert all(row.difference.value == 0 for row in result.differences)


def test_a_model_that_is_hardly_fooled_has_no_map_and_the_audit_goes_on(folder):
    file = write_config(
        folder, "robust-few.toml", eps='["1/255"]\nvulnerability = { eps = "1/2550", n = 20, steps = 2 }'
    )
    file.write_text(file.read_text().replace('[generator]\npath = "generator/generator.safetensors"\n', ""))
    result = audit.run_audit(file)
    assert result.models[0].robust.vulnerability is None
    assert any("raise robustness.vulnerability.eps" in note.why for note in result.models[0].not_computed)


def test_a_second_source_of_other_classes_is_refused(folder, tmp_path):
    folder_of_images(tmp_path / "other", "")
    (tmp_path / "other" / "test" / "left").rename(tmp_path / "other" / "test" / "upper")
    (tmp_path / "other" / "train" / "left").rename(tmp_path / "other" / "train" / "upper")
    file = write_config(folder, "robust-shift.toml", generator=False, data=f'data.npz"\nshift = "{tmp_path / "other"}')
    with pytest.raises(AuditError, match="class"):
        audit.run_audit(file)


def audit_status(file: Path, out: Path) -> int:
    """Exit status of `spruce-audit run FILE --out OUT --no-cache`."""
    return status_of("run", file, "--out", out, "--no-cache")


def folder_of_images(root: Path, broken: str) -> None:
    """A folder per class with one defect, and weights with another: what users really hand in."""
    images, labels = draw(240, seed=9)
    for i, (image, label) in enumerate(zip(images, labels[:, 0], strict=True)):
        place = root / ("train" if i % 2 else "test") / ("left", "right")[label]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(place / f"{i}.png")
    if broken == "corrupt image":
        victim = next((root / "test" / "left").glob("*.png"))
        victim.write_bytes(victim.read_bytes()[:60])


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"data": "none.npz"}, r"none\.npz.*does not exist"),
        ({"target": '"rihgt"'}, "queries.target"),
        ({"path": '"data.npz"'}, "Generator file|neither"),
        ({"extra": "bootstrapp = 100"}, "Unknown key 'ranking.bootstrapp'.*'bootstrap'"),
        ({"extra": '[[classifiers]]\nname = "c"\nfile = "none.pt"'}, r"none\.pt"),
        ({"extra": '[[classifiers]]\nname = "a"\nfile = "none.pt"'}, "names must differ"),
        ({"eps": '["9"]'}, r"not in \(0, 1\]"),
        ({"classes": '["left", "middle", "right"]'}, "class"),
        ({"classes": '["left"]'}, "class"),
        ({"seed": "3\n[data2]"}, "Unknown key 'data2'.*'data'"),
    ],
)
def test_bad_configuration_is_one_sentence_status_2_and_nothing_written(folder, changes, said, capsys):
    file, out = write_config(folder, "bad.toml", **changes), folder / "bad-out"
    assert_one_sentence(audit_status(file, out), said, capsys, folder)


def assert_one_sentence(status: int, said: str, capsys, folder: Path) -> None:
    message = capsys.readouterr().err.strip()
    assert status == 2, message
    assert message.startswith("spruce-audit: ")
    assert len(message.splitlines()) == 1
    assert re.search(said, message), message
    assert not (folder / "bad-out").exists()
    assert not list(folder.glob(".bad-out*"))


def test_corrupt_image(folder, tmp_path, capsys):
    folder_of_images(tmp_path / "images", "corrupt image")
    file = write_config(folder, "bad.toml", data=str(tmp_path / "images"))
    assert_one_sentence(audit_status(file, folder / "bad-out"), r"left.*\.png", capsys, folder)


def test_label_outside_the_class_list(folder, tmp_path, capsys):
    folder_of_images(tmp_path, "")
    rows = "".join(f"{p},{'lefft' if i == 3 else 'left'}\n" for i, p in enumerate(sorted(tmp_path.rglob("*.png"))))
    (tmp_path / "m.csv").write_text("image,label\n" + rows)
    file = write_config(folder, "bad.toml", data=str(tmp_path / "m.csv"))
    assert_one_sentence(audit_status(file, folder / "bad-out"), "lefft", capsys, folder)


def test_empty_split(folder, capsys):
    file = write_config(folder, "bad.toml")
    file.write_text(file.read_text().replace("[queries]", 'audit_split = "holdout"\n[queries]'))
    assert_one_sentence(audit_status(file, folder / "bad-out"), "holdout", capsys, folder)


def test_a_model_that_cannot_be_explained_leaves_the_others_as_they_are(outcome, folder):
    """It answers one class only; the others are explained on the same images, and to the same numbers."""
    state = load_file(folder / "a.safetensors")
    state["7.weight"], state["7.bias"] = 0 * state["7.weight"], torch.tensor([1.0, 0.0])
    save_file(state, folder / "constant.safetensors")
    file = write_config(folder, "three.toml")
    file.write_text(
        file.read_text() + '[[classifiers]]\nname = "constant"\nfactory = "networks.py:build"\n'
        'checkpoint = "constant.safetensors"\n'
    )
    result = audit.run_audit(file, folder / "three", cache=folder / "cache")
    assert not result.complete
    failed = result.models[2]
    assert (failed.failed.stage, failed.index, failed.queries) == ("calibration", None, [])
    assert "8/255" in failed.robust.pgd
    assert result.models[:2] == outcome[0].models
    assert result.queries == outcome[0].queries
    assert "could not be audited to the end" in (folder / "three" / "report.html").read_text()


def test_models_that_cannot_be_explained_keep_their_robustness(folder, tmp_path, capsys):
    file = write_config(folder, "bad.toml")
    file.write_text(file.read_text().replace("steps = 30\n", "steps = 30\nmin_calibration = 1000\n"))
    assert audit_status(file, tmp_path / "out") == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert [re.search("model '(.)' failed in calibration: .*'left'.*1000", line)[1] for line in lines] == ["a", "b"]
    result = read_results(tmp_path / "out" / "results.json")
    assert not result.complete
    assert all(m.index is None and "8/255" in m.robust.pgd and m.clean.accuracy.value > 0.9 for m in result.models)
    page = (tmp_path / "out" / "report.html").read_text()
    assert "did not finish" in page


@pytest.mark.parametrize(("defect", "said"), [("nan", "NaN"), ("shape", r"7\.weight"), ("missing", r"7\.bias")])
def test_defective_weights(folder, defect, said, capsys):
    state = load_file(folder / "a.safetensors")
    if defect == "nan":
        state["7.weight"][0, 0] = torch.nan
    elif defect == "shape":
        state["7.weight"] = torch.zeros(2, 13)
    else:
        del state["7.bias"]
    save_file(state, folder / "bad.safetensors")
    file = write_config(folder, "bad.toml")
    file.write_text(file.read_text().replace("a.safetensors", "bad.safetensors"))
    assert_one_sentence(audit_status(file, folder / "bad-out"), said, capsys, folder)


def test_a_generator_of_another_size_is_refused(folder, tmp_path):
    save_generator(tmp_path / "g.safetensors", Generator(8, 8, 32, 1, 64, 8), Discriminator(32, 1, 64, 8), {})
    config = load_config(folder / "audit.toml")
    config = config.model_copy(
        update={"generator": config.generator.model_copy(update={"path": str(tmp_path / "g.safetensors")})}
    )
    with pytest.raises(GeneratorError, match=r"data\.image_size = 32"):
        audit.run_audit(config)


def test_report_and_gate_commands(outcome, tmp_path):
    _, out = outcome
    runner = CliRunner()
    shown = runner.invoke(app, ["report", str(out / "results.json"), "--out", str(tmp_path / "r.html")])
    assert shown.exit_code == 0
    assert (tmp_path / "r.html").is_file()
    policy = tmp_path / "gate.toml"
    policy.write_text('[[rule]]\nmetric = "clean.accuracy"\nmin = 0.5\n')
    arguments = ["gate", str(out / "results.json"), "--policy", str(policy), "--junit", str(tmp_path / "j.xml")]
    assert runner.invoke(app, arguments).exit_code == 0
    assert (tmp_path / "j.xml").is_file()
    policy.write_text('[[rule]]\nmetric = "clean.accuracy"\nmin = 1.1\n')
    assert runner.invoke(app, arguments).exit_code == 1
    policy.write_text('[[rule]]\nmetric = "components.localisation"\nmin = 0.1\n')
    assert runner.invoke(app, arguments).exit_code == 2
