"""Weights inside the package: found by `shipped:NAME`, and by `embedded:NAME` as earlier versions call it."""

import logging

from typer.testing import CliRunner

from audit.cli import app
from audit.config import SHIPPED, AuditConfig, note_on_spelling
from audit.pipeline.runner import run_audit
from audit.storage import shipped
from audit.training.classifier.config import load_classifier_train_config


def test_the_names_that_a_configuration_may_give_are_those_of_the_files():
    assert set(SHIPPED) == {*shipped.names("classifiers"), *shipped.names("generators")}


def test_a_name_or_a_path_leads_to_a_file(tmp_path):
    file = shipped.locate("classifiers", "shipped:plain")
    assert file.is_file()
    assert shipped.locate("classifiers", "embedded:plain") == file
    assert shipped.locate("classifiers", tmp_path / "own.pt") == tmp_path / "own.pt"


def test_an_audit_notes_the_spelling_of_earlier_versions():
    values = {
        "data": {"path": "phantom", "phantom": {"audit": 6}},
        "robustness": {"attacks": ["pgd"], "eps": ["2/255"], "steps": 1, "n": 6, "trust": False},
    }
    results = {}
    for name in ("shipped:plain", "embedded:plain"):
        given = values | {"classifiers": [{"name": "plain", "checkpoint": name}]}
        results[name] = run_audit(AuditConfig.model_validate(given))
    now, before = results.values()
    assert [n for n in now.notices if n.kind == "former-spelling"] == []
    (note,) = (n for n in before.notices if n.kind == "former-spelling")
    assert note.text == note_on_spelling("embedded:plain")
    assert "write 'shipped:plain'" in note.text
    assert now.models[0].weights_sha256 == before.models[0].weights_sha256


def test_a_training_and_the_command_line_note_it_too(tmp_path, caplog):
    file = tmp_path / "training.toml"
    file.write_text(
        'name = "x"\ninitial = "embedded:plain"\n[data]\npath = "phantom"\n[optimiser]\nsteps = 1\nbatch_size = 2\n'
    )
    with caplog.at_level(logging.WARNING):
        assert load_classifier_train_config(file).initial == "embedded:plain"
    assert "write 'shipped:plain'" in caplog.text
    told = CliRunner().invoke(app, ["generator", "inspect", "embedded:phantom"])
    assert "write 'shipped:phantom'" in told.output
    assert "format: spruce-audit\n" in told.output
