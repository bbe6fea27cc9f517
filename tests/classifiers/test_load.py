"""From a configuration to a classifier: every kind of source, what files say, and clear errors."""

import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from audit.classifiers.architectures import SMALL_CONVNEXT_ARGS, small_convnext
from audit.classifiers.bridge import class_order
from audit.classifiers.classifier import Classifier, weights_hash
from audit.classifiers.load import load_classifier
from audit.config import AuditConfig, ClassifierConfig, resolve_paths
from audit.errors import AuditError, ClassifierError

SHARED = Path(__file__).parents[2].parent / "shared"
CLASSES = ("healthy", "opacity", "cardiomegaly")
GREY = (1, 32, 32)

FACTORY = """
import torch
from torch import nn

VALUE = 3

def make(width=4, after=None):
    layers = [nn.Conv2d(1, width, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 3)]
    return nn.Sequential(*layers, *([nn.Softmax(1)] if after else []))

def broken():
    raise KeyError("no such thing")

def number():
    return 3
"""


@pytest.fixture
def factory_file(tmp_path: Path) -> Path:
    file = tmp_path / "factory_source.py"
    file.write_text(FACTORY)
    return file


def small() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return small_convnext(3).eval()


def sequential(width: int = 4) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(1, width, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 3)
        )


def images(n: int = 2, channels: int = 1, side: int = 32) -> Tensor:
    return torch.rand(n, channels, side, side, generator=torch.Generator().manual_seed(1))


def load(data_classes: tuple[str, ...] = CLASSES, shape: tuple[int, int, int] = GREY, **settings: Any) -> Any:
    return load_classifier(ClassifierConfig(name="it", **settings), shape, data_classes)


def saved(network: nn.Module, file: Path, **metadata: Any) -> str:
    save_file(network.state_dict(), str(file), metadata={k: json.dumps(v) for k, v in metadata.items()})
    return str(file)


@pytest.mark.parametrize("wrapping", [None, "state_dict", "model", "model_state_dict", "ema"])
@pytest.mark.parametrize("prefix", ["", "module.", "module._orig_mod."])
def test_state_dicts_in_the_usual_wrappings(wrapping: str | None, prefix: str, tmp_path: Path) -> None:
    network = small()
    state: Any = {prefix + key: value for key, value in network.state_dict().items()}
    if wrapping is not None:
        state = {"epoch": 3, wrapping: state, "optimizer": {"lr": 0.1}}
    torch.save(state, tmp_path / "weights.pth")
    it = load(architecture="small-convnext", checkpoint=str(tmp_path / "weights.pth"))
    assert not it.training
    assert torch.allclose(it(images()), network(images()), atol=1e-6)
    assert it.source == "small-convnext + weights.pth"


def test_configuration_comes_before_metadata_before_the_data(tmp_path: Path) -> None:
    about = {"mean": [0.4], "std": [0.2], "classes": list(CLASSES[::-1]), "input_size": 48, "channels": 1}
    file = saved(small(), tmp_path / "w.safetensors", **about)
    args = {"architecture": "convnext_atto", "architecture_args": SMALL_CONVNEXT_ARGS, "checkpoint": file}
    it = load(**args)
    assert it.input_shape == (1, 48, 48)
    assert float(it.mean) == pytest.approx(0.4)
    assert it.class_names == CLASSES
    given = load(**args, mean=(0.5,), std=(0.25,), classes=CLASSES, input_size=40)
    assert given.input_shape == (1, 40, 40)
    assert float(given.mean) == 0.5
    assert float(given.std) == 0.25
    same_view = load(**args, classes=CLASSES)
    assert torch.allclose(it(images()), same_view(images())[:, [2, 1, 0]], atol=1e-6)
    bare = load(**{**args, "checkpoint": saved(small(), tmp_path / "bare.safetensors")})
    assert bare.input_shape == GREY
    assert (float(bare.mean), float(bare.std)) == (0, 1)


def test_timms_own_configuration_is_taken_for_its_own_architectures(tmp_path: Path) -> None:
    network = timm.create_model("resnet18", num_classes=3)
    torch.save(network.state_dict(), tmp_path / "rgb.pt")
    it = load(architecture="resnet18", checkpoint=str(tmp_path / "rgb.pt"), input_size=32)
    assert it.input_shape == (3, 32, 32)
    assert torch.allclose(it.mean.flatten(), torch.tensor([0.485, 0.456, 0.406]))
    assert load(architecture="resnet18", checkpoint=str(tmp_path / "rgb.pt")).input_shape == (3, 224, 224)
    # A grey network under the name of an RGB one: the checkpoint tells.
    torch.save(timm.create_model("resnet18", num_classes=3, in_chans=1).state_dict(), tmp_path / "grey.pt")
    grey = load(architecture="resnet18", checkpoint=str(tmp_path / "grey.pt"), input_size=32)
    assert grey.input_shape == GREY
    assert grey(images(channels=3)).shape == (2, 3)


def test_a_checkpoint_that_names_its_architecture_needs_nothing_beside_it(tmp_path: Path) -> None:
    about = {"architecture": "convnext_atto", "architecture_args": SMALL_CONVNEXT_ARGS, "classes": list(CLASSES[::-1])}
    said = {**about, "mean": [0.4], "std": [0.2], "input_size": 48, "channels": 1}
    it = load(checkpoint=saved(small(), tmp_path / "w.safetensors", **said))
    assert it.input_shape == (1, 48, 48)
    assert set(it.input.origins.values()) == {"checkpoint", "configuration"}
    bare = saved(small(), tmp_path / "bare.safetensors")
    with pytest.raises(ClassifierError, match="does not say which architecture it belongs to"):
        load(checkpoint=bare)


def test_a_configuration_against_the_checkpoints_metadata_is_told(tmp_path: Path) -> None:
    about = {"architecture": "small-convnext", "classes": list(CLASSES[::-1]), "mean": [0.4], "std": [0.2]}
    file = saved(small(), tmp_path / "w.safetensors", **about, input_size=48, channels=1)

    def told(**settings: Any) -> list[str]:
        return [n.text for n in load(checkpoint=file, **settings).notices if n.kind == "against-checkpoint"]

    assert told() == told(mean=(0.4,), classes=CLASSES[::-1], input_size=48, architecture="small-convnext") == []
    mean, classes = sorted(told(mean=(0.5,), classes=CLASSES), reverse=True)
    assert "sets mean = [0.5], which is taken, where the checkpoint's own metadata say [0.4]: remove mean" in mean
    assert f"say {json.dumps(list(CLASSES[::-1]))}" in classes
    (architecture,) = told(architecture="convnext_atto", architecture_args=SMALL_CONVNEXT_ARGS)
    assert 'say "small-convnext": remove architecture' in architecture


def test_metadata_in_other_units_are_refused_and_the_configuration_comes_before_them(tmp_path: Path) -> None:
    file = saved(small(), tmp_path / "w.safetensors", mean=[127.5], std=[127.5])
    with pytest.raises(ClassifierError, match=r"metadata .* set mean = \[0\.5\], std = \[0\.5\]"):
        load(architecture="small-convnext", checkpoint=file)
    assert float(load(architecture="small-convnext", checkpoint=file, mean=(0.5,), std=(0.5,)).mean) == 0.5


def test_every_setting_of_the_input_says_where_it_came_from(tmp_path: Path) -> None:
    file = saved(small(), tmp_path / "w.safetensors", mean=[0.4], classes=list(CLASSES[::-1]))
    known = load(architecture="small-convnext", checkpoint=file, input_size=48).input
    assert (known.size, known.channels, known.mean, known.std) == ((48, 48), 1, [0.4], [1.0])
    assert known.classes == list(CLASSES[::-1])
    assert known.weights == "w.safetensors"
    assert known.origins == {
        "size": "configuration",
        "channels": "data",
        "mean": "checkpoint",
        "std": "default",
        "classes": "checkpoint",
        "weights": "configuration",
    }
    torch.save({"model": timm.create_model("resnet18", num_classes=3, in_chans=3).state_dict()}, tmp_path / "rgb.pt")
    guessed = load(architecture="resnet18", checkpoint=str(tmp_path / "rgb.pt"), classes=CLASSES).input
    assert guessed.size == (224, 224)
    assert guessed.mean == [0.485, 0.456, 0.406]
    assert guessed.weights == "rgb.pt: model"
    assert guessed.origins == {
        "size": "timm",
        "channels": "checkpoint",
        "mean": "timm",
        "std": "timm",
        "classes": "configuration",
        "weights": "configuration",
    }


@pytest.mark.parametrize(
    ("architecture", "args"),
    [("vit_tiny_patch16_224", {"img_size": 32}), ("mobilenetv3_small_050", {}), ("convnext_atto", {})],
)
def test_other_timm_families(architecture: str, args: dict[str, Any], tmp_path: Path) -> None:
    network = timm.create_model(architecture, num_classes=3, **args)
    file = saved(network, tmp_path / "w.safetensors")
    it = load(architecture=architecture, architecture_args=args, checkpoint=file, input_size=args.get("img_size", 64))
    given = images().requires_grad_()
    x, logits = it.features_and_logits(given)
    assert torch.allclose(it.head(x), logits, atol=1e-5)
    assert float(torch.autograd.grad(x.sum() + logits.sum(), given)[0].abs().sum()) > 0


@pytest.mark.filterwarnings("ignore")
def test_script_and_export_files(tmp_path: Path) -> None:
    network = sequential().eval()
    torch.jit.script(network).save(str(tmp_path / "script.pt"))
    torch.jit.trace(network, images()).save(str(tmp_path / "trace.ts"))
    shapes = ({0: torch.export.Dim("batch", min=1, max=64)},)
    torch.export.save(torch.export.export(network, (images(),), dynamic_shapes=shapes), tmp_path / "export.pt2")
    eager = load_state(network, tmp_path)
    for name in ("script.pt", "trace.ts", "export.pt2"):
        it = load(file=str(tmp_path / name), mean=(0.5,), std=(0.5,), classes=CLASSES[::-1])
        assert it.source == name
        assert it.weights_sha256 == eager.weights_sha256
        assert torch.allclose(it(images(3)), eager(images(3)), atol=1e-6)
        assert torch.allclose(it.features(images(3)), eager.features(images(3)), atol=1e-6)
        assert torch.allclose(it.head(it.features(images(3))), it(images(3)), atol=1e-6)


def load_state(network: nn.Module, folder: Path) -> Any:
    (folder / "make_it.py").write_text(FACTORY)
    torch.save(network.state_dict(), folder / "state.pt")
    return load(
        factory=f"{folder / 'make_it.py'}:make",
        checkpoint=str(folder / "state.pt"),
        mean=(0.5,),
        std=(0.5,),
        classes=CLASSES[::-1],
    )


def test_factories(factory_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network = sequential(6).eval()
    file = saved(network, tmp_path / "w.safetensors")
    monkeypatch.syspath_prepend(tmp_path)
    for factory in (f"{factory_file}:make", "factory_source:make"):
        it = load(factory=factory, factory_args={"width": 6}, checkpoint=file)
        assert torch.allclose(it(images()), network(images()), atol=1e-6)


def test_a_factory_file_is_found_beside_the_configuration(tmp_path: Path) -> None:
    classifiers = ({"name": "a", "factory": "nets/f.py:make", "checkpoint": "a.pt"},)
    modules = ({"name": "b", "factory": "package.nets:make", "checkpoint": "a.pt"},)
    config = AuditConfig.model_validate({"data": {"path": "phantom"}, "classifiers": classifiers + modules})
    first, second = resolve_paths(config, tmp_path).classifiers
    assert first.factory == f"{(tmp_path / 'nets/f.py').resolve()}:make"
    assert second.factory == "package.nets:make"


def test_building_does_not_touch_the_global_generator(tmp_path: Path) -> None:
    file = saved(small(), tmp_path / "w.safetensors")
    before = torch.get_rng_state()
    load(architecture="small-convnext", checkpoint=file)
    assert torch.equal(torch.get_rng_state(), before)


def test_half_precision_weights_are_used_in_float32(tmp_path: Path) -> None:
    torch.save({k: v.half() for k, v in small().state_dict().items()}, tmp_path / "half.pt")
    it = load(architecture="small-convnext", checkpoint=str(tmp_path / "half.pt"))
    assert it(images()).dtype == torch.float32


@pytest.mark.parametrize(
    ("model", "sentence"),
    [
        (("healthy", "opacity", "cancer"), "not in the data: cancer; not in the model: cardiomegaly"),
        (("healthy", "opacity"), "not in the model: cardiomegaly"),
        ((*CLASSES, "healthy"), "named twice"),
    ],
)
def test_classes_that_differ_from_the_data_are_named(model: tuple[str, ...], sentence: str) -> None:
    with pytest.raises(ClassifierError, match=sentence):
        class_order(model, CLASSES, "it")


@pytest.mark.parametrize("with_layer", [True, False])
def test_classes_that_the_data_have_not_are_left_out(with_layer: bool) -> None:
    network: nn.Module = nn.Sequential(nn.Flatten(), nn.Linear(64, 5), *([] if with_layer else [nn.ReLU()])).eval()
    names = ("a", "b", "c")
    order = class_order(("c", "x", "a", "y", "b"), names, "it")
    it = Classifier(network, name="it", class_names=names, input_shape=(1, 8, 8), order=order, left_out=2)
    given = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(it(given), network(given)[:, [2, 4, 0]])
    assert it.input.classes == ["c", "a", "b"]
    features, logits = it.features_and_logits(given)
    assert torch.allclose(it.head(features), logits, atol=1e-6)


def test_a_model_of_more_classes_than_the_data_says_so(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(
        "from torch import nn\n\ndef make():\n    return nn.Sequential(nn.Flatten(), nn.Linear(64, 5))\n"
    )
    torch.save(nn.Sequential(nn.Flatten(), nn.Linear(64, 5)).state_dict(), tmp_path / "w.pt")
    given = {"name": "it", "factory": f"{tmp_path}/net.py:make", "checkpoint": f"{tmp_path}/w.pt"}
    named = ("c", "x", "a", "y", "b")
    it = load_classifier(ClassifierConfig(**given, classes=named), (1, 8, 8), ("a", "b", "c"))
    (told,) = [one.text for one in it.notices if one.kind == "classes-left-out"]
    assert "it knows 5 classes, of which the data have 3" in told
    with pytest.raises(ClassifierError, match=r"5 outputs for 3 classes .* one name for each output"):
        load_classifier(ClassifierConfig(**given), (1, 8, 8), ("a", "b", "c"))
    with pytest.raises(ClassifierError, match="5 outputs for 4 classes named by 'classes'"):
        load_classifier(ClassifierConfig(**given, classes=named[:4]), (1, 8, 8), ("a", "c"))


def with_tensor(state: dict[str, Tensor], key: str, value: Tensor | None) -> dict[str, Tensor]:
    out = dict(state)
    if value is None:
        del out[key]
    else:
        out[key] = value
    return out


def bad_checkpoints(folder: Path) -> dict[str, tuple[Path, str]]:
    state = small().state_dict()
    head = state["head.fc.weight"]
    poisoned = head.clone()
    poisoned[1, 2] = float("nan")
    infinite = head.clone()
    infinite[0, 0] = float("inf")
    contents: dict[str, tuple[Any, str]] = {
        "shape": (with_tensor(state, "head.fc.weight", head[:2]), r"'head.fc.weight' has shape \[2, 128\].*\[3, 128\]"),
        "missing": (with_tensor(state, "stem.0.bias", None), r"lacks 'stem\.0\.bias'"),
        "unexpected": (
            with_tensor(state, "stages.9.weight", head),
            r"has 'stages\.9\.weight', which the network has not",
        ),
        "nan": (with_tensor(state, "head.fc.weight", poisoned), "'head.fc.weight' .* 1 NaN or infinite"),
        "inf": (with_tensor(state, "head.fc.weight", infinite), "'head.fc.weight' .* 1 NaN or infinite"),
        "empty": ({}, "holds no state dict"),
        "list": ([1, 2], "holds no state dict"),
        "object": (nn.ReLU(), r"save model\.state_dict\(\)"),
    }
    out = {}
    for name, (content, sentence) in contents.items():
        torch.save(content, folder / f"{name}.pt")
        out[name] = (folder / f"{name}.pt", sentence)
    (folder / "text.pt").write_text("this is no checkpoint")
    (folder / "zero.pt").write_bytes(b"")
    (folder / "short.pt").write_bytes((folder / "missing.pt").read_bytes()[:5000])
    (folder / "text.safetensors").write_text("this is no checkpoint")
    script = torch.jit.script(sequential())
    script.save(str(folder / "script.pt"))
    save_file(state, str(folder / "about.safetensors"), metadata={"mean": "0.5", "classes": "[1"})
    return {
        **out,
        "text": (folder / "text.pt", "corrupt"),
        "zero": (folder / "zero.pt", "corrupt"),
        "short": (folder / "short.pt", "corrupt"),
        "text.safetensors": (folder / "text.safetensors", "not a readable safetensors file"),
        "script": (folder / "script.pt", "give it as 'file'"),
        "about": (folder / "about.safetensors", "metadata of .* cannot be read"),
        "gone": (folder / "gone.pt", "does not exist"),
    }


@pytest.mark.filterwarnings("ignore")
def test_bad_checkpoints_end_in_one_sentence(tmp_path: Path) -> None:
    for name, (file, sentence) in bad_checkpoints(tmp_path).items():
        with pytest.raises(ClassifierError, match=sentence) as caught:
            load(architecture="small-convnext", checkpoint=str(file))
        assert str(file) in str(caught.value), name
        assert "\n" not in str(caught.value), name


def test_bad_factories_end_in_one_sentence(factory_file: Path, tmp_path: Path) -> None:
    file = saved(sequential(), tmp_path / "w.safetensors")
    syntax = tmp_path / "syntax.py"
    syntax.write_text("def make(:")
    cases = {
        "no_such_package.module:make": "cannot be imported",
        "no_colon": "is not of the form",
        f"{tmp_path / 'gone.py'}:make": "does not exist",
        f"{syntax}:make": "cannot be imported",
        f"{factory_file}:gone": "has no function or class 'gone'",
        f"{factory_file}:VALUE": "has no function or class 'VALUE'",
        f"{factory_file}:broken": "no such thing",
        f"{factory_file}:number": "returns a int",
    }
    for factory, sentence in cases.items():
        with pytest.raises(ClassifierError, match=sentence) as caught:
            load(factory=factory, checkpoint=file)
        assert "\n" not in str(caught.value)
    with pytest.raises(ClassifierError, match="give the arguments it takes"):
        load(factory=f"{factory_file}:make", factory_args={"depth": 3}, checkpoint=file)
    with pytest.raises(ClassifierError, match="3 outputs for 2 classes"):
        load(("a", "b"), factory=f"{factory_file}:make", checkpoint=file)


@pytest.mark.filterwarnings("ignore")
def test_bad_files_end_in_one_sentence(tmp_path: Path) -> None:
    torch.save(sequential().state_dict(), tmp_path / "state.pt")
    (tmp_path / "text.pt2").write_text("nothing")
    poisoned = sequential()
    with torch.no_grad():
        poisoned[0].weight[0, 0, 0, 0] = float("nan")
    torch.jit.script(poisoned).save(str(tmp_path / "nan.pt"))
    torch.jit.script(sequential()).save(str(tmp_path / "whole.pt"))
    cases = {
        "gone.pt": "does not exist",
        "state.pt": "neither a TorchScript nor a torch.export file",
        "text.pt2": "neither a TorchScript nor a torch.export file",
        "nan.pt": r"'0\.weight' of .* 1 NaN",
    }
    for name, sentence in cases.items():
        with pytest.raises(ClassifierError, match=sentence):
            load(file=str(tmp_path / name))
    with pytest.raises(ClassifierError, match="set its input_size and channels"):
        load(file=str(tmp_path / "whole.pt"), channels=3)


def test_unknown_shipped_weights_are_named() -> None:
    with pytest.raises(AuditError, match="No shipped classifiers are called 'phantom'"):
        load(checkpoint="shipped:phantom")


@pytest.mark.parametrize("name", ["plain", "trades", "trades-small", "shortcut"])
def test_shipped_classifiers(name: str) -> None:
    it = load(shape=(1, 64, 64), checkpoint=f"shipped:{name}")
    assert it.head.in_features == 128
    assert it(images(side=64)).shape == (2, 3)


@pytest.mark.parametrize("name", ["plain", "robust"])
def test_mnist_networks_that_nobody_here_trained(name: str) -> None:
    models, data = SHARED / "models", SHARED / "data" / "mnist_test.npz"
    if not models.is_dir() or not data.is_file():
        pytest.skip("the shared MNIST classifiers are not on this machine")
    import numpy as np

    it = load_classifier(
        ClassifierConfig(
            name=name,
            factory=f"{models / 'lenet5.py'}:LeNet5",
            checkpoint=str(models / f"mnist_lenet5_{name}.safetensors"),
        ),
        (1, 28, 28),
        tuple(str(digit) for digit in range(10)),
    )
    assert it.head is it.network.network.linear2
    assert it.head.in_features == 200
    archive = np.load(data)
    digits = torch.from_numpy(archive["test_images"][:500, None]).float() / 255
    accuracy = (it(digits).argmax(dim=1).numpy() == archive["test_labels"][:500]).mean()
    assert accuracy > 0.97


def test_convolutions_run_channels_last_with_the_same_weights_and_hash(tmp_path: Path) -> None:
    network = small()
    it = load(architecture="small-convnext", checkpoint=saved(network, tmp_path / "it.safetensors"))
    kernels = [p for p in it.parameters() if p.ndim == 4 and 1 not in p.shape[1:]]
    assert kernels
    assert all(kernel.is_contiguous(memory_format=torch.channels_last) for kernel in kernels)
    assert it.weights_sha256 == weights_hash(network.state_dict())
    torch.testing.assert_close(it(images()), network(images()), atol=1e-5, rtol=1e-5)
