"""Architectures told from the names and shapes of tensors alone."""

from pathlib import Path
from typing import Any

import pytest
import timm
import torch

from audit.classifiers.checkpoint import read_checkpoint
from audit.classifiers.recognise import outputs_of, recognised


@pytest.mark.parametrize(
    ("name", "args"),
    [("resnet18", {"in_chans": 1}), ("convnext_atto", {}), ("vit_tiny_patch16_224", {"img_size": 96})],
)
def test_an_architecture_is_told_with_the_size_that_its_positions_need(
    name: str, args: dict[str, Any], tmp_path: Path
) -> None:
    state = timm.create_model(name, num_classes=5, **args).state_dict()
    torch.save({"epoch": 3, "state_dict": {f"module.{key}": value for key, value in state.items()}}, tmp_path / "w.pt")
    checkpoint = read_checkpoint(tmp_path / "w.pt")
    assert outputs_of(checkpoint) == 5
    assert recognised(checkpoint)[0] == (name, {k: v for k, v in args.items() if k == "img_size"})


def test_what_is_of_no_known_family_is_not_guessed(tmp_path: Path) -> None:
    torch.save({"layer1.0.conv1.weight": torch.zeros(3, 3, 3, 3), "fc.weight": torch.zeros(2, 9)}, tmp_path / "w.pt")
    checkpoint = read_checkpoint(tmp_path / "w.pt")
    assert (outputs_of(checkpoint), recognised(checkpoint)) == (2, [])


def test_a_name_in_the_name_of_the_file_is_believed_if_the_tensors_fit(tmp_path: Path) -> None:
    torch.save(timm.create_model("resnet10t", num_classes=2).state_dict(), tmp_path / "w.pt")
    checkpoint = read_checkpoint(tmp_path / "w.pt")
    assert recognised(checkpoint) == []
    assert recognised(checkpoint, "resnet14t-or-resnet10t_best.pt")[0] == ("resnet10t", {})
    assert recognised(checkpoint, "resnet10tx.pt") == []  # a part of a word is no name
