"""Damaged files that once ended in a traceback: each is an error of the user now, in one line."""

import io
import json
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from audit.classifiers.checkpoint import read_checkpoint
from audit.classifiers.containers.hugging_face import read_json, settings_of_processor, understood
from audit.classifiers.containers.monai_bundle import settings_of_metadata
from audit.classifiers.input_settings import settings_of_metadata as of_checkpoint
from audit.config import DataConfig, load_config
from audit.data.load import load_data
from audit.embeddings.array_pickle import read_arrays
from audit.errors import AuditError, ClassifierError, ConfigError, DataError, MetricError, ResultsError
from audit.results import read_results
from audit.storage.checkpoint import load_checkpoint, save_checkpoint
from audit.training.classifier.config import load_classifier_train_config


def rezipped(file: Path, change: Callable[[str, bytes], tuple[str, bytes, int]]) -> None:
    """Write the archive anew with `change` of every member, so that its checksums hold."""
    with zipfile.ZipFile(io.BytesIO(file.read_bytes())) as archive:
        members = [(name, archive.read(name)) for name in archive.namelist()]
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in members:
            called, held, kind = change(name, content)
            info = zipfile.ZipInfo(called)
            info.compress_type = kind
            archive.writestr(info, held)


@pytest.fixture
def npz(tmp_path: Path) -> Path:
    images, labels = np.zeros((4, 8, 8), np.uint8), np.array([0, 1, 0, 1])
    np.savez(tmp_path / "it.npz", test_images=images, test_labels=labels)
    return tmp_path / "it.npz"


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    held = io.BytesIO()
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(held, "PNG")
    with zipfile.ZipFile(tmp_path / "it.zip", "w") as file:
        for name in ("a", "b"):
            for number in range(2):
                file.writestr(f"test/{name}/{number}.png", held.getvalue())
    return tmp_path / "it.zip"


def read(path: Path) -> None:
    load_data(DataConfig(path=str(path)), seed=0).images([0])


def test_npz_members_that_are_no_arrays(npz: Path) -> None:
    whole = npz.read_bytes()
    for change in (
        lambda name, content: (name, b"text" if "images" in name else content, zipfile.ZIP_STORED),
        lambda name, content: (name, content.replace(b"{'descr", b"{'de\xbdscr"), zipfile.ZIP_STORED),
        lambda name, content: (name, content.replace(b"}", b"("), zipfile.ZIP_STORED),
    ):
        npz.write_bytes(whole)
        rezipped(npz, change)
        with pytest.raises(DataError, match=r"it\.npz"):
            read(npz)


@pytest.mark.parametrize("how", ["npz", "archive"])
def test_members_packed_in_ways_that_fail_by_errors_of_their_own(how: str, request: pytest.FixtureRequest) -> None:
    file: Path = request.getfixturevalue(how)
    rezipped(file, lambda name, content: (name, content, zipfile.ZIP_LZMA))
    data = bytearray(file.read_bytes())
    at = data.index(b"PK\x03\x04")
    body = at + 30 + struct.unpack("<H", data[at + 26 : at + 28])[0]
    data[body + 9 : body + 60] = b"\xff" * 51
    file.write_bytes(data)
    with pytest.raises(DataError, match=r"damaged|cannot be"):
        read(file)


@pytest.mark.parametrize("how", ["npz", "archive"])
def test_files_that_are_cut(how: str, request: pytest.FixtureRequest) -> None:
    file: Path = request.getfixturevalue(how)
    whole = file.read_bytes()
    for length in (0, 1, len(whole) // 3, len(whole) // 2, len(whole) - 30, len(whole) - 1):
        file.write_bytes(whole[:length])
        with pytest.raises(DataError, match=r"it\.(npz|zip)"):
            read(file)


def test_an_archive_with_a_member_without_a_name_is_read(archive: Path) -> None:
    with zipfile.ZipFile(archive, "a") as file:
        file.writestr(zipfile.ZipInfo("nameless"), b"")
    archive.write_bytes(archive.read_bytes().replace(b"nameless", b"\0ameless"))
    read(archive)


def test_a_header_that_names_another_member_is_told_in_one_line(archive: Path) -> None:
    data = archive.read_bytes()
    archive.write_bytes(data.replace(b"test/a/0.png", b"test/\x1b[2J\n.png", 1))
    with pytest.raises(DataError) as caught:
        read(archive)
    assert str(caught.value).isprintable()


def test_arrays_that_unfold_to_more_than_there_is(npz: Path) -> None:
    rezipped(npz, lambda name, content: (name, content, zipfile.ZIP_DEFLATED))
    data = bytearray(npz.read_bytes())
    extra, at = [], 0
    while (at := data.find(b"PK\x01\x02", at)) >= 0:  # what the directory claims of each member
        name_size = struct.unpack("<H", data[at + 28 : at + 30])[0]
        if b"images" in data[at + 46 : at + 46 + name_size]:
            data[at + 24 : at + 28] = b"\xff\xff\xff\xff"
            data[at + 30 : at + 32] = struct.pack("<H", 12)
            extra.append(at + 46 + name_size)
        at += 4
    for place in reversed(extra):  # ZIP64: ten million gigabytes
        data[place:place] = struct.pack("<HHQ", 1, 8, 10**16)
    end = data.rindex(b"PK\x05\x06")
    size = struct.unpack("<I", data[end + 12 : end + 16])[0]
    data[end + 12 : end + 16] = struct.pack("<I", size + 12 * len(extra))
    npz.write_bytes(data)
    with pytest.raises(DataError, match=r"unfold to 9313225\.7 GiB"):
        read(npz)


def test_names_in_a_zipped_checkpoint_that_are_no_text(tmp_path: Path) -> None:
    torch.save({"weight": torch.ones(2)}, tmp_path / "it.pt")
    data = bytearray((tmp_path / "it.pt").read_bytes())
    at = data.rindex(b"PK\x01\x02")
    data[at + 8 : at + 10] = struct.pack("<H", 0x800)  # the name is said to be UTF-8
    data[at + 46] = 0xCC
    (tmp_path / "it.pt").write_bytes(data)
    with pytest.raises(ClassifierError, match="corrupt or no file of weights"):
        read_checkpoint(tmp_path / "it.pt")


def test_a_pickle_of_arrays_that_asks_for_a_huge_memo() -> None:
    # Python's own unpickler allocates a table for the largest index: tens of GiB for these ten bytes.
    with pytest.raises(MetricError, match="cannot be read"):
        read_arrays(b"\x80\x03]r\xff\xff\xff\xff.", "it")
    with pytest.raises(MetricError) as caught:
        read_arrays(b"\x80\x03Pa\nb\n.", "it")
    assert str(caught.value).isprintable()


def test_training_checkpoints_with_operands_missing(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "it.pt", "key", {"step": 1, "weight": torch.ones(3)})
    for content in (b"\x80\x02h\x05.", b"\x80\x02a.", b"\x80\x02}.", b"\x80\x02"):

        def replaced(name: str, held: bytes, content: bytes = content) -> tuple[str, bytes, int]:
            return name, content if name.endswith("data.pkl") else held, zipfile.ZIP_STORED

        rezipped(tmp_path / "it.pt", replaced)
        with pytest.raises(ConfigError, match=r"cannot be read as a checkpoint|another configuration"):
            load_checkpoint(tmp_path / "it.pt", "key")


@pytest.mark.parametrize("text", ["[" * 100_000, "9" * 5000, '{"schema_version": 9' + "9" * 5000 + "}"])
def test_numbers_and_nesting_that_no_parser_takes(text: str, tmp_path: Path) -> None:
    file = tmp_path / "it"
    file.write_text(text)
    with pytest.raises(ResultsError, match="not valid JSON"):
        read_results(file)
    with pytest.raises(ClassifierError, match="JSON"):
        read_json(file)
    file.write_text(f"seed = {text}")
    with pytest.raises(ConfigError, match="not valid TOML"):
        load_config(file)


def test_json_that_nests_deeper_than_its_readers(tmp_path: Path) -> None:
    (tmp_path / "it.json").write_text('{"a": ' + "[" * 300 + "]" * 300 + "}")
    with pytest.raises(ClassifierError, match="deeper than 100"):
        read_json(tmp_path / "it.json")


def test_settings_of_another_form(tmp_path: Path) -> None:
    image = {"network_data_format": {"inputs": {"image": {"value_range": [[], {}]}}}}
    volume = {"network_data_format": {"inputs": {"image": {"spatial_shape": [8, 8, 8]}}}}
    for settings_of, said in (
        (settings_of_processor, {"rescale_factor": {}}),
        (settings_of_processor, {"image_mean": ["x"], "image_std": [1]}),
        (settings_of_processor, {"size": 10**9}),
        (settings_of_metadata, image),
        (settings_of_metadata, volume),
    ):
        with pytest.raises(ClassifierError, match="cannot be understood"):
            understood(settings_of, said, tmp_path)


@pytest.mark.parametrize("said", [{"channels": 10**9}, {"input_size": 10**9}, {"input_size": float("inf")}])
def test_sizes_that_a_file_claims_are_bounded_before_anything_is_built(said: dict[str, float]) -> None:
    with pytest.raises(ClassifierError, match="cannot be read"):
        of_checkpoint(said, "it")


def test_an_error_is_one_printable_line_of_a_bounded_length() -> None:
    text = str(AuditError("a\x1b[31mb\nc\u202ed\ud800e" + "x" * 10**6))
    assert text.isprintable()
    assert text.startswith(r"a\x1b[31mb\x0ac\u202ed\ud800e")
    assert len(text) < 4000
    assert json.dumps(text)
    assert pickle.loads(pickle.dumps(AuditError("it"))).args == ("it",)


@pytest.mark.parametrize("place", ["a\\u0000b", "~nobody-here/images"])
def test_what_can_be_no_path(place: str, tmp_path: Path) -> None:
    file = tmp_path / "audit.toml"
    file.write_text(f'[data]\npath = "{place}"\n[[classifiers]]\nname = "it"\ncheckpoint = "shipped:plain"\n')
    with pytest.raises(ConfigError, match="cannot be a path"):
        load_config(file)


def test_absolute_names_in_an_archive_are_names_in_it(archive: Path) -> None:
    rezipped(archive, lambda name, content: (f"/{name}", content, zipfile.ZIP_STORED))
    assert load_data(DataConfig(path=str(archive)), seed=0).ids[0] == "test/a/0.png"


@pytest.mark.parametrize("eps", ["9" * 400, "1e999999999", "1/1e-999999999"])
def test_a_radius_of_no_size(eps: str, tmp_path: Path) -> None:
    file = tmp_path / "classifier.toml"
    file.write_text(f'name = "it"\neps = "{eps}"\n[optimiser]\nsteps = 1\n[data]\npath = "phantom"\n')
    with pytest.raises(ConfigError, match="eps"):
        load_classifier_train_config(file)
