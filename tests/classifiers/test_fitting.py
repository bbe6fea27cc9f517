"""Weights are found in checkpoints as training scripts write them, and what does not fit is named by its cause."""

import argparse
import collections
import enum
import json
import pathlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from audit.classifiers.checkpoint import read_checkpoint
from audit.classifiers.fitting import fit_weights
from audit.classifiers.load import load_classifier
from audit.config import ClassifierConfig
from audit.errors import ClassifierError


class Net(nn.Module):
    """Two named layers, and one of them a block, as real networks have."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 2, 3)
        self.layer1 = nn.Sequential(nn.BatchNorm2d(2), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.fc = nn.Linear(2, 3)

    def forward(self, images: Tensor) -> Tensor:
        return self.fc(self.layer1(self.conv1(images)))


class Wrapped(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = Net()


def state(value: float, prefix: str = "") -> dict[str, Tensor]:
    """Weights that are all `value`, with names behind `prefix`."""
    return {prefix + k: torch.full_like(v, value) for k, v in Net().state_dict().items()}


def fitted(content: object, folder: Path, network: nn.Module | None = None, **settings: Any) -> tuple[float, Any]:
    """Which of the weights that `state` makes were read, and how the fit describes itself."""
    torch.save(content, folder / "it.pt")
    network = Net() if network is None else network
    fit = fit_weights(network, read_checkpoint(folder / "it.pt"), "'it.pt'", **settings)
    return float(next(network.parameters()).detach().flatten()[0]), fit


class OldMode(enum.Enum):
    """An enumeration that pickles its members as Python before 3.11.4 does."""

    FAST = 1

    def __reduce_ex__(self, _: object) -> tuple[Any, ...]:
        return getattr, (type(self), self.name)


EXTRAS = {
    "args": argparse.Namespace(lr=0.1, out=pathlib.PurePosixPath("runs/1")),
    "metric": np.float64(0.9),
    "history": collections.defaultdict(list, loss=[1.0]),
    "recent": collections.deque([1, 2]),
    "version": torch.__version__,
    "mode": OldMode.FAST,
    "optimizer": {"state": {0: {"exp_avg": torch.zeros(3)}}, "param_groups": [{"lr": 0.1}]},
    "epoch": 3,
}


@pytest.mark.parametrize(
    ("content", "taken", "entry", "others"),
    [
        ({"state_dict": state(1), "state_dict_ema": state(2), **EXTRAS}, 2, "state_dict_ema", ("state_dict.",)),
        ({"model": state(1), "model_ema": state(2, "module.")}, 2, "model_ema", ("model.",)),
        ({"params": state(1), "params_ema": state(2)}, 2, "params_ema", ("params.",)),
        ({"ema": state(2), "model": state(1)}, 2, "ema", ("model.",)),
        ({"swa_model": state(2), "state_dict": state(1)}, 2, "swa_model", ("state_dict.",)),
        (
            {"state_dict": state(1, "student.") | state(2, "teacher.")},
            2,
            "state_dict.teacher",
            ("state_dict.student.",),
        ),
        # Lightning's WeightAveraging keeps the raw weights beside, MMEngine swaps the names.
        ({"state_dict": state(2, "model."), "current_model_state": state(1, "model.")}, 2, "state_dict.model", None),
        ({"state_dict": state(2), "ema_state_dict": state(1, "module."), "message_hub": {}}, 2, "state_dict", None),
        ({"ema": state(1) | {"fc.weight": torch.zeros(5, 2)}, "model": state(2)}, 2, "model", ()),
        (state(2), 2, None, ()),
    ],
)
def test_of_several_sets_of_weights_the_one_its_writer_prefers_is_read(
    content: object, taken: float, entry: str | None, others: tuple[str, ...] | None, tmp_path: Path
) -> None:
    value, fit = fitted(content, tmp_path)
    assert value == taken
    assert fit.entry == entry
    assert others is None or fit.others == others
    # A set of other shapes is no candidate; it is listed with what else is left over.
    assert all(name.startswith("ema.") for name in fit.leftover)


def test_a_key_chooses_and_a_wrong_one_is_answered_with_what_there_is(tmp_path: Path) -> None:
    content = {"state_dict": state(1, "model."), "state_dict_ema": state(2, "model.")}
    assert fitted(content, tmp_path, weights_key="state_dict")[0] == 1
    assert fitted(content, tmp_path, weights_key="state_dict.model")[0] == 1
    assert fitted(content, tmp_path, weights_key="state_dict_ema.model")[0] == 2
    with pytest.raises(ClassifierError, match=r"'ema' names no weights .*: there are .*'state_dict\.model'"):
        fitted(content, tmp_path, weights_key="ema")


@pytest.mark.parametrize(
    "prefix", ["backbone.", "model.", "module.", "net.encoder.", "_orig_mod.module.", "anything.at.all."]
)
def test_any_prefix_is_taken_off(prefix: str, tmp_path: Path) -> None:
    value, fit = fitted({"state_dict": state(2, prefix)}, tmp_path)
    assert value == 2
    assert fit.leftover == ()


def test_a_prefix_that_the_network_has_and_the_file_lacks_is_put_on(tmp_path: Path) -> None:
    assert fitted(state(2), tmp_path, Wrapped())[0] == 2
    assert fitted({"state_dict": state(3, "module.")}, tmp_path, Wrapped())[0] == 3


def test_what_training_leaves_in_a_checkpoint_is_listed_and_passed_over(tmp_path: Path) -> None:
    criterion = {"state_dict": state(2, "model.") | {"criterion.weight": torch.ones(3)}}
    assert fitted(criterion, tmp_path)[1].leftover == ("state_dict.criterion.weight",)
    averaged = AveragedModel(Net())
    assert fitted(averaged.state_dict(), tmp_path)[1].leftover == ("n_averaged",)
    counted = state(2) | {"layer1.0.total_ops": torch.zeros(1)}
    assert fitted(counted, tmp_path)[1].leftover == ("layer1.0.total_ops",)
    assert fitted(Net(), tmp_path)[1].leftover == ()


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (state(1) | {"layer2.0.weight": torch.ones(2)}, "has 'layer2.0.weight', which the network has not"),
        (state(1) | {"layer1.3.weight": torch.ones(2)}, "has 'layer1.3.weight', which the network has not"),
        (
            {
                "state_dict": {k: v for k, v in state(1, "backbone.").items() if "fc" not in k}
                | {"head.w": torch.ones(2)}
            },
            r"lacks 'fc.weight', 'fc.bias' behind 'state_dict.backbone.' \(it has 'state_dict.head.w'",
        ),
        ({"encoder.weight": torch.ones(2)}, "no tensor of a name that the network has"),
        (
            state(1) | {"fc.weight": torch.ones(7, 2), "fc.bias": torch.ones(7)},
            "trained for 7 classes where there are 3",
        ),
        ({"epoch": 3}, "holds no state dict"),
    ],
)
def test_what_does_not_fit_is_named(content: object, sentence: str, tmp_path: Path) -> None:
    with pytest.raises(ClassifierError, match=sentence) as caught:
        fitted(content, tmp_path)
    assert "\n" not in str(caught.value)


class Hostile:
    def __reduce__(self) -> tuple[Any, ...]:
        return exec, ("raise SystemExit('executed')",)


def test_nothing_of_a_checkpoint_is_executed(tmp_path: Path) -> None:
    with pytest.raises(ClassifierError, match=r"asks to call .*exec"):
        fitted({"state_dict": state(1), "args": Hostile()}, tmp_path)


@pytest.mark.parametrize("legacy", [False, True])
def test_both_layouts_of_torch_and_tied_weights_are_read(legacy: bool, tmp_path: Path) -> None:
    network = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3), nn.Conv2d(1, 1, 3))
    network[1].weight = network[0].weight
    file = tmp_path / "it.pt"
    torch.save({"model": network.state_dict(), **EXTRAS}, file, _use_new_zipfile_serialization=not legacy)
    other = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3), nn.Conv2d(1, 1, 3)).half()
    fit_weights(other.float(), read_checkpoint(file), "'it.pt'")
    assert all(torch.equal(v, other.state_dict()[k]) for k, v in network.state_dict().items())


def load(folder: Path, **settings: Any) -> Any:
    config = ClassifierConfig(name="it", **settings)
    return load_classifier(config, (1, 28, 28), ("a", "b", "c"), folder)


NETS = "from torch import nn\ndef make():\n    return nn.Sequential(nn.Flatten(), nn.Linear(784, 3))\n"


def test_results_say_which_weights_were_read_and_which_were_not(tmp_path: Path) -> None:
    (tmp_path / "nets.py").write_text(NETS)
    made = nn.Sequential(nn.Flatten(), nn.Linear(784, 3)).state_dict()
    content = {"state_dict": made, "state_dict_ema": {k: v + 1 for k, v in made.items()}}
    torch.save(content | {"loss_weight": torch.ones(2)}, tmp_path / "it.pt")
    settings = {"factory": f"{tmp_path / 'nets.py'}:make", "checkpoint": str(tmp_path / "it.pt")}
    it = load(tmp_path, **settings, mean=0, std=1)
    assert it.input.weights == "it.pt: state_dict_ema"
    assert it.source == "nets.py:make + it.pt: state_dict_ema"
    assert it.input.origins["weights"] == "default"
    assert [(n.subject, n.kind) for n in it.notices] == [("it", "weights-chosen"), ("it", "weights-left-over")]
    assert "'state_dict_ema' was read, and not 'state_dict'; weights_key chooses" in it.notices[0].text
    chosen = load(tmp_path, **settings, mean=0, std=1, weights_key="state_dict")
    assert torch.equal(chosen.head.weight, made["1.weight"])
    assert chosen.input.weights == "it.pt: state_dict"
    assert chosen.input.origins["weights"] == "configuration"


def test_a_vision_transformer_of_another_size_is_answered_with_its_arguments(tmp_path: Path) -> None:
    settings = {"architecture": "vit_tiny_patch16_224", "checkpoint": str(tmp_path / "vit.pt")}
    for args in ({"img_size": 32}, {"img_size": 32, "patch_size": 8, "depth": 2}):
        network = timm.create_model("vit_tiny_patch16_224", num_classes=3, in_chans=1, **args)
        torch.save({"state_dict": network.state_dict()}, tmp_path / "vit.pt")
        with pytest.raises(ClassifierError, match=r"images of 32 x 32.*architecture_args = \{ img_size = 32") as caught:
            load(tmp_path, **settings)
        assert all(f"{key} = {value}" in str(caught.value) for key, value in args.items())
        assert load(tmp_path, **settings, architecture_args=args).input.size == (32, 32)


def test_guesses_that_the_data_contradict_are_told(tmp_path: Path) -> None:
    torch.save(timm.create_model("resnet18", num_classes=3).state_dict(), tmp_path / "it.pt")
    settings = {"architecture": "resnet18", "checkpoint": str(tmp_path / "it.pt")}
    (notice,) = load(tmp_path, **settings).notices
    assert notice.kind == "input-guessed"
    assert "28 x 28 are enlarged or reduced to 224 x 224" in notice.text
    assert "Set input_size and mean and std" in notice.text
    assert load(tmp_path, **settings, mean=0.5, std=0.5, input_size=32).notices == ()


def test_a_safetensors_header_is_read_within_bounds(tmp_path: Path) -> None:
    header = json.dumps({f"t{i}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for i in range(120_000)})
    (tmp_path / "many.safetensors").write_bytes(len(header).to_bytes(8, "little") + header.encode())
    with pytest.raises(ClassifierError, match=r"120000 tensors|budget"):
        read_checkpoint(tmp_path / "many.safetensors")
    save_file(state(2), str(tmp_path / "named.pt"))
    assert len(read_checkpoint(tmp_path / "named.pt").stored) == len(state(2))
