"""No file brings code that runs, unless the user says so: every way in which weights are loaded."""

import io
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from audit.classifiers.checkpoint import read_checkpoint
from audit.classifiers.containers.programs import beyond_arithmetic
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


def changed_archive(file: Path, change: Callable[[str, bytes], dict[str, bytes]], out: Path) -> Path:
    """Copy a zip file; `change` says which members take a member's place."""
    with zipfile.ZipFile(file) as old, zipfile.ZipFile(out, "w") as new:
        for name in old.namelist():
            for other, data in change(name, old.read(name)).items():
                new.writestr(other, data)
    return out


def scripted(line: str, file: Path) -> Path:
    """Save a TorchScript network whose code says `line` as well, as an attacker would write it."""
    torch.jit.trace(network(), torch.rand(2, 1, 8, 8)).save(str(file.with_suffix(".plain")))

    def change(name: str, data: bytes) -> dict[str, bytes]:
        return {
            name: data.replace(b"-> Tensor:\n", b"-> Tensor:\n    " + line.encode() + b"\n") if ".py" in name else data
        }

    return changed_archive(file.with_suffix(".plain"), change, file)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("line", "what"),
    [
        ('torch.save(self.weight, "f")', "a call of 'save'"),
        ('self.weight.save("f")', "a call of 'save'"),
        ('x = torch.from_file("f", False, 1)', "a call of 'from_file'"),
        ('x = ops.image.read_file("f")', "operators of 'image'"),
        ('x = rpc_sync ("w", "f")', "a call of 'rpc_sync'"),
        ("x = __torch__.torch.classes.any.Thing", "objects of a C\\+\\+ class"),
    ],
)
def test_a_script_that_does_more_than_compute_needs_to_be_allowed(tmp_path: Path, line: str, what: str) -> None:
    config = ClassifierConfig(name="net", file=str(scripted(line, tmp_path / "it.pt")))
    for check in (
        lambda config: check_containers([config]),
        lambda config: load_classifier(config, (1, 8, 8), CLASSES),
    ):
        with pytest.raises(ConfigError, match=f"'net' comes as a program, .*: {what}. It could read, change"):
            check(config)


@pytest.mark.filterwarnings("ignore")
def test_what_is_allowed_runs(tmp_path: Path) -> None:
    module = torch.jit.script(network())
    module.define("def more(self, x: Tensor) -> Tensor:\n    torch.save(x, 'f')\n    return x\n")
    module.save(str(tmp_path / "it.pt"))
    assert beyond_arithmetic(tmp_path / "it.pt") == "a call of 'save'"
    allowed = ClassifierConfig(name="net", file=str(tmp_path / "it.pt"), allow_code=True)
    assert load_classifier(allowed, (1, 8, 8), CLASSES)(torch.rand(2, 1, 8, 8)).shape == (2, 2)


@pytest.mark.filterwarnings("ignore")
def test_an_export_that_brings_code_needs_to_be_allowed(tmp_path: Path) -> None:
    dynamic = {0: torch.export.Dim("n", min=1, max=64)}
    exported = torch.export.export(network(), (torch.rand(2, 1, 8, 8),), dynamic_shapes=(dynamic,))
    torch.export.save(exported, tmp_path / "it.pt2")
    assert beyond_arithmetic(tmp_path / "it.pt2") is None
    evil = io.BytesIO()
    torch.save(Evil(tmp_path / "mark"), evil)
    changes: dict[str, Callable[[str, bytes], dict[str, bytes]]] = {
        "a pickle that is more than tensors": lambda n, d: {n: evil.getvalue() if n.endswith(".pt") else d},
        "pickled tensors": lambda n, d: {n: d.replace(b'"use_pickle": false', b'"use_pickle": true')},
        "a call of 'torch.ops.image.read_file": lambda n, d: {n: d.replace(b"ops.aten.conv2d", b"ops.image.read_file")},
        "a call of 'os.system": lambda n, d: {n: d.replace(b"torch.ops.aten.conv2d", b"os.system")},
        "compiled code": lambda n, d: {n: d, f"{n}.so": d},
    }
    for place, (what, change) in enumerate(changes.items()):
        file = changed_archive(tmp_path / "it.pt2", change, tmp_path / f"{place}.pt2")
        with pytest.raises(ConfigError, match=what):
            load_classifier(ClassifierConfig(name="net", file=str(file)), (1, 8, 8), CLASSES)
    assert not (tmp_path / "mark").exists()


@pytest.mark.filterwarnings("ignore")
def test_two_members_of_one_name_are_read_by_nobody(tmp_path: Path) -> None:
    torch.jit.script(network()).save(str(tmp_path / "it.pt"))
    with zipfile.ZipFile(tmp_path / "it.pt", "a") as archive:
        archive.writestr(next(name for name in archive.namelist() if name.endswith(".py")), "")
    assert str(beyond_arithmetic(tmp_path / "it.pt")).startswith("two members named")


@pytest.mark.filterwarnings("ignore")
def test_what_cannot_be_read_is_no_plain_program(tmp_path: Path) -> None:
    mark, flags = b"PK\x01\x02", 8
    torch.jit.trace(network(), torch.rand(2, 1, 8, 8)).save(str(tmp_path / "it.pt"))
    data = bytearray((tmp_path / "it.pt").read_bytes())
    place = data.find(mark)
    while place >= 0:
        data[place + flags] |= 1  # encrypted
        place = data.find(mark, place + 4)
    (tmp_path / "it.pt").write_bytes(data)
    assert str(beyond_arithmetic(tmp_path / "it.pt")).startswith("what cannot be read")


@pytest.mark.filterwarnings("ignore")
def test_a_program_that_only_computes_needs_no_permission(tmp_path: Path) -> None:
    torch.jit.trace(network(), torch.rand(2, 1, 8, 8)).save(str(tmp_path / "it.pt"))
    config = ClassifierConfig(name="net", file=str(tmp_path / "it.pt"))
    check_containers([config])
    assert load_classifier(config, (1, 8, 8), CLASSES)(torch.rand(2, 1, 8, 8)).shape == (2, 2)


def test_the_key_is_for_programs_alone() -> None:
    for given in ({"checkpoint": "shipped:plain"}, {"file": "hf:folder"}):
        with pytest.raises(ValueError, match="'allow_code' of classifier 'it' would have no effect"):
            ClassifierConfig(name="it", allow_code=True, **given)


def test_the_option_stands_for_the_key_of_all(tmp_path: Path) -> None:
    scripted('torch.save(self.weight, "f")', tmp_path / "it.pt")
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
