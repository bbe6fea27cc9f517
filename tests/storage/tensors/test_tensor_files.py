"""Files that claim more than their budget are refused before a library unpacks them; others are read as before."""

import json
import struct
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from audit.classifiers.checkpoint import read_checkpoint
from audit.embeddings.domain import KIND, load_domain
from audit.errors import ClassifierError, GeneratorError, MetricError
from audit.inversion.encoder import load_encoder
from audit.storage.tensors.tensor_files import MAX_HEADER, OverBudget, check_torch, checked_safetensors, fill_weights


def empty_tensors(file: Path, count: int) -> Path:
    """Write a safetensors file of nothing but a header of `count` empty tensors."""
    header = json.dumps(
        {f"t{i}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for i in range(count)}
    ).encode()
    file.write_bytes(struct.pack("<Q", len(header)) + header)
    return file


def test_headers_within_the_budget_open_and_others_are_refused(tmp_path: Path) -> None:
    save_file({"a": torch.ones(2)}, tmp_path / "a.safetensors")
    with safe_open(checked_safetensors(tmp_path / "a.safetensors"), framework="pt") as file:
        assert file.get_tensor("a").tolist() == [1, 1]
    large = empty_tensors(tmp_path / "large.safetensors", 150_000)
    assert large.stat().st_size > MAX_HEADER
    for content in (b"", b"abc", struct.pack("<Q", 2**40) + b"{}", struct.pack("<Q", 0)):
        (tmp_path / "cut.safetensors").write_bytes(content)
        with pytest.raises(SafetensorError, match="cut short"):
            checked_safetensors(tmp_path / "cut.safetensors")
    with pytest.raises(SafetensorError, match="budget of a header is 8 MiB"):
        checked_safetensors(large)
    for read, error in ((load_encoder, GeneratorError), (load_domain, MetricError), (read_checkpoint, ClassifierError)):
        with pytest.raises(error, match="budget of a header"):
            read(large)


def test_checkpoints_that_unfold_are_refused(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(3)}, tmp_path / "a.pt")
    check_torch(tmp_path / "a.pt")
    checkpoint = read_checkpoint(tmp_path / "a.pt")
    assert checkpoint.stored["a"].read().tolist() == [1, 1, 1]
    torch.save({"a": torch.ones(3)}, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    check_torch(tmp_path / "old.pt")
    checkpoint = read_checkpoint(tmp_path / "old.pt")
    assert checkpoint.stored["a"].read().tolist() == [1, 1, 1]
    with zipfile.ZipFile(tmp_path / "bomb.pt", "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("a/data.pkl", bytes(10**7))
    with zipfile.ZipFile(tmp_path / "members.pt", "w") as file:
        for i in range(90_000):
            file.writestr(f"{i:060}", b"")
    for name, said in (("bomb.pt", "unfold"), ("members.pt", "zip directory")):
        with pytest.raises(OverBudget, match=said):
            check_torch(tmp_path / name)
        with pytest.raises(ClassifierError, match=said):
            read_checkpoint(tmp_path / name)


def test_what_a_file_says_of_its_architecture_allocates_nothing(tmp_path: Path) -> None:
    sizes = {"resolution": 1024, "channels": 3, "num_ws": 18, "w_dim": 2**15, "width": 2**15, "generator_sha256": ""}
    save_file({"mean": torch.ones(1)}, tmp_path / "e.safetensors", {"encoder": json.dumps(sizes)})
    with pytest.raises(GeneratorError, match="cannot be read"):  # a network of 300 GB
        load_encoder(tmp_path / "e.safetensors")
    for wrong in (json.dumps(sizes | {"width": 2**40}), "[" * 10**5, "[]", json.dumps(sizes | {"w_dim": "x"})):
        save_file({"mean": torch.ones(1)}, tmp_path / "e.safetensors", {"encoder": wrong})
        with pytest.raises(GeneratorError, match="cannot be read"):
            load_encoder(tmp_path / "e.safetensors")
    said = {"kind": KIND, "name": "x", "image_shape": "[1, 16, 16]", "features": "4096"}
    said["widths"] = json.dumps([4096] * 8)
    save_file({"mean": torch.ones(1)}, tmp_path / "d.safetensors", said)
    with pytest.raises(MetricError, match=r"does not hold a domain embedding \(Error\(s\) in loading"):  # of 10 GB
        load_domain(tmp_path / "d.safetensors")


def test_weights_take_the_networks_types_and_are_copies() -> None:
    given = {"weight": torch.ones(1, 2, dtype=torch.float16), "bias": torch.zeros(1)}
    with torch.device("meta"):
        network = nn.Linear(2, 1)
    fill_weights(network, given)
    assert (network.weight.dtype, network.bias.tolist()) == (torch.float32, [0])
    given["bias"].fill_(5)
    assert network.bias.tolist() == [0]
    with pytest.raises(RuntimeError, match="size mismatch"):
        fill_weights(network, given | {"bias": torch.zeros(2)})
