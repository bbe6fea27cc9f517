"""No file brings code that runs, unless the user says so: every way in which weights are loaded."""

import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from audit.classifiers.checkpoint import read_checkpoint
from audit.classifiers.containers.table import check_containers
from audit.classifiers.load import load_classifier
from audit.cli import app
from audit.config import AuditConfig, ClassifierConfig, DataConfig, allowing_code
from audit.data.load import load_data
from audit.embeddings.array_pickle import read_arrays
from audit.embeddings.domain import load_domain
from audit.errors import AuditError, ConfigError
from audit.generator.files.load import load_generator
from audit.inversion.encoder import load_encoder
from audit.storage.checkpoint import load_checkpoint

CLASSES = ("a", "b")


class Evil:
    """Unpickled in the usual way, it makes a folder."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.place),)


def network() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 2))


def test_no_reader_of_weights_runs_a_pickle(tmp_path: Path) -> None:
    mark, evil = tmp_path / "mark", {"weight": torch.ones(2), "evil": Evil(tmp_path / "mark")}
    torch.save(evil, tmp_path / "zipped.pt")
    torch.save(evil, tmp_path / "older.pt", _use_new_zipfile_serialization=False)
    (tmp_path / "plain.pkl").write_bytes(pickle.dumps({"G_ema": Evil(mark)}))
    for file in sorted(tmp_path.iterdir()):
        for read in (
            read_checkpoint,
            lambda path: load_generator(path, torch.device("cpu")),
            load_domain,
            load_encoder,
            lambda path: load_checkpoint(path, "key"),
            lambda path: read_arrays(path.read_bytes(), path.name),
        ):
            with pytest.raises(AuditError):
                read(file)
            assert not mark.exists()
    pickle.loads((tmp_path / "plain.pkl").read_bytes())
    assert mark.is_dir()  # it would have


def test_arrays_of_objects_are_refused(tmp_path: Path) -> None:
    import numpy as np

    np.savez(tmp_path / "it.npz", test_images=np.array([Evil(tmp_path / "mark")] * 2), test_labels=np.array([0, 1]))
    with pytest.raises(AuditError, match="holds objects"):
        load_data(DataConfig(path=str(tmp_path / "it.npz")), seed=0)
    assert not (tmp_path / "mark").exists()


def test_a_whole_pickled_module_is_read_as_data(tmp_path: Path) -> None:
    whole = network()
    torch.save(whole, tmp_path / "whole.pt")
    found = read_checkpoint(tmp_path / "whole.pt")
    assert torch.equal(found.stored["0.weight"].read(), whole[0].weight)


@pytest.mark.filterwarnings("ignore")
def test_programs_need_to_be_allowed(tmp_path: Path) -> None:
    torch.jit.script(network()).save(str(tmp_path / "it.pt"))
    exported = torch.export.export(network(), (torch.rand(2, 1, 8, 8),))
    torch.export.save(exported, tmp_path / "it.pt2")
    for file, kind in (("it.pt", "TorchScript"), ("it.pt2", r"torch\.export")):
        config = ClassifierConfig(name="net", file=str(tmp_path / file))
        for check in (
            lambda config: check_containers([config]),
            lambda config: load_classifier(config, (1, 8, 8), CLASSES),
        ):
            with pytest.raises(ConfigError, match=f"'net' comes as a program, the {kind} file .*can read, change"):
                check(config)
    config = ClassifierConfig(name="net", file=str(tmp_path / "it.pt"), allow_code=True)
    assert load_classifier(config, (1, 8, 8), CLASSES)(torch.rand(2, 1, 8, 8)).shape == (2, 2)


def test_the_key_is_for_programs_alone() -> None:
    for given in ({"checkpoint": "shipped:plain"}, {"file": "hf:folder"}):
        with pytest.raises(ValueError, match="'allow_code' of classifier 'it' would have no effect"):
            ClassifierConfig(name="it", allow_code=True, **given)


def test_the_option_stands_for_the_key_of_all(tmp_path: Path) -> None:
    torch.jit.script(network()).save(str(tmp_path / "it.pt"))
    tables = [{"name": "it", "file": str(tmp_path / "it.pt")}, {"name": "shipped", "checkpoint": "shipped:plain"}]
    config = AuditConfig.model_validate({"data": {"path": "phantom"}, "classifiers": tables})
    allowed = allowing_code(config)
    assert [one.allow_code for one in allowed.classifiers] == [True, False]
    check_containers(allowed.classifiers)
    file = tmp_path / "audit.toml"
    file.write_text('[data]\npath = "nowhere"\n[[classifiers]]\nname = "it"\nfile = "it.pt"\n')
    command = ["run", str(file), "--out", str(tmp_path / "out"), "--no-cache"]
    refused, ended = (CliRunner().invoke(app, [*command, *more]).exception for more in ((), ("--allow-code",)))
    assert isinstance(refused, ConfigError)  # before any data are read
    assert "--allow-code" in str(refused)
    assert "nowhere" in str(ended)
