"""Classifiers in the containers of other libraries: each is written by that library and read back without a network."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from audit.classifiers.black_box import is_black_box
from audit.classifiers.classifier import Classifier
from audit.classifiers.containers.hugging_face import settings_of_processor
from audit.classifiers.containers.table import check_containers
from audit.classifiers.load import load_classifier
from audit.config import AuditConfig, ClassifierConfig, recorded, resolve_paths
from audit.errors import ClassifierError, ConfigError

CLASSES = ("cat", "dog", "owl")
RGB = (3, 32, 32)


def load(shape: tuple[int, int, int] = RGB, classes: tuple[str, ...] = CLASSES, **settings: Any) -> Classifier:
    return load_classifier(ClassifierConfig(name="it", **settings), shape, classes)


def images(n: int = 2, shape: tuple[int, int, int] = RGB) -> Tensor:
    return torch.rand(n, *shape, generator=torch.Generator().manual_seed(1))


def seeded(make: Any) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return make()


def leads_back(it: Classifier, given: Tensor) -> bool:
    leaf = given.clone().requires_grad_()
    return bool(torch.autograd.grad(it(leaf)[:, 0].sum(), leaf)[0].abs().sum() > 0)


# Hugging Face


def hf_folder(folder: Path, kind: str = "vit", **config: Any) -> tuple[Path, Any]:
    transformers = pytest.importorskip("transformers", reason="the extra 'hf' is not installed")
    labels = {"id2label": dict(enumerate(CLASSES[::-1])), "label2id": {c: i for i, c in enumerate(CLASSES[::-1])}}
    if kind == "vit":
        made = transformers.ViTConfig(
            hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, image_size=32,
            patch_size=8, **{**labels, **config},
        )  # fmt: skip
        model = seeded(lambda: transformers.ViTForImageClassification(made)).eval()
        processor = transformers.ViTImageProcessor(
            size={"height": 32, "width": 32}, image_mean=[0.4] * 3, image_std=[0.2] * 3
        )
    else:
        made = transformers.ResNetConfig(
            embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", **{**labels, **config}
        )
        model = seeded(lambda: transformers.ResNetForImageClassification(made)).eval()
        processor = None
    model.save_pretrained(folder)
    if processor is not None:
        processor.save_pretrained(folder)
    return folder, model


def test_a_vision_transformer_of_hugging_face(tmp_path: Path) -> None:
    folder, model = hf_folder(tmp_path / "vit")
    it = load(shape=(1, 28, 28), file=f"hf:{folder}")
    assert it.input_shape == (3, 32, 32)
    assert it.input.mean == [0.4] * 3
    assert it.input.classes == list(CLASSES[::-1])
    assert {it.input.origins[key] for key in ("size", "channels", "mean", "std", "classes")} == {"container"}
    with torch.no_grad():
        expected = model(pixel_values=(images() - 0.4) / 0.2).logits
    torch.testing.assert_close(it(images()), expected.flip(1), atol=1e-5, rtol=1e-4)
    x, logits = it.features_and_logits(images())
    torch.testing.assert_close(it.head(x), logits, atol=1e-5, rtol=1e-4)
    assert leads_back(it, images())


def test_the_configuration_comes_before_the_processor(tmp_path: Path) -> None:
    folder, _ = hf_folder(tmp_path / "vit")
    it = load(file=f"hf:{folder}", mean=0.5, std=0.5)
    assert (it.input.mean, it.input.origins["mean"], it.input.origins["size"]) == (
        [0.5] * 3,
        "configuration",
        "container",
    )


def test_a_convolutional_network_of_hugging_face_without_a_processor(tmp_path: Path) -> None:
    folder, model = hf_folder(tmp_path / "resnet", "resnet")
    it = load(file=f"hf:{folder}")
    assert it.input.origins["mean"] == "default"
    with torch.no_grad():
        torch.testing.assert_close(it(images()), model(images()).logits.flip(1), atol=1e-5, rtol=1e-4)


def test_names_that_nobody_gave_are_those_of_the_data(tmp_path: Path) -> None:
    unnamed = {"id2label": {i: f"LABEL_{i}" for i in range(3)}, "label2id": {f"LABEL_{i}": i for i in range(3)}}
    folder, _ = hf_folder(tmp_path / "vit", **unnamed)
    assert load(file=f"hf:{folder}").input.origins["classes"] == "data"


def test_folders_that_are_no_classifiers_end_in_one_sentence(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="the extra 'hf' is not installed")
    folder, model = hf_folder(tmp_path / "vit")
    bare = tmp_path / "bare"
    transformers.ViTModel(model.config, add_pooling_layer=False).save_pretrained(bare)
    code = tmp_path / "code"
    hf_folder(code)
    about = json.loads((code / "config.json").read_text())
    about |= {
        "model_type": "mine",
        "auto_map": {"AutoModelForImageClassification": "evil.Model", "AutoConfig": "evil.Config"},
    }
    (code / "config.json").write_text(json.dumps(about))
    (code / "evil.py").write_text("raise SystemExit('this was run')")
    pickled = tmp_path / "pickled"
    hf_folder(pickled)
    (pickled / "model.safetensors").unlink()
    torch.save(model.state_dict(), pickled / "pytorch_model.bin")
    empty = tmp_path / "empty"
    empty.mkdir()
    cases = {
        bare: "would draw at random",
        code: "cannot be loaded",
        pickled: "cannot be loaded",
        empty: "does not exist",
    }
    for place, sentence in cases.items():
        with pytest.raises(ClassifierError, match=sentence) as caught:
            load(file=f"hf:{place}")
        assert "\n" not in str(caught.value)
    with pytest.raises(ClassifierError, match="is a folder"):
        load(file=str(folder))


@pytest.mark.parametrize(
    ("said", "mean", "std", "side"),
    [
        ({"size": 224, "image_mean": [0.5], "image_std": [0.25]}, (0.5,), (0.25,), 224),
        ({"size": {"shortest_edge": 256}, "crop_size": {"height": 224, "width": 224}, "do_center_crop": True,
          "do_normalize": False}, (0.0,), (1.0,), 224),
        ({"do_rescale": False, "image_mean": [127.5], "image_std": [127.5]}, (0.5,), (0.5,), None),
        ({"rescale_factor": 1 / 127.5, "rescale_offset": True, "do_normalize": False}, (0.5,), (0.5,), None),
        ({"size": {"height": 224, "width": 384}, "do_normalize": False}, (0.0,), (1.0,), None),
    ],
)  # fmt: skip
def test_processors_in_units_of_pixels(
    said: dict[str, Any], mean: tuple[float, ...], std: tuple[float, ...], side: int | None
) -> None:
    found = settings_of_processor(said)
    assert found.mean == pytest.approx(mean)
    assert found.std == pytest.approx(std)
    assert found.input_size == side


# torchvision and timm


def test_a_model_that_asks_for_the_version_of_its_layout(tmp_path: Path) -> None:
    from torchvision import models

    network = seeded(lambda: models.get_model("mnasnet0_5", num_classes=3)).eval()
    torch.save(network.state_dict(), tmp_path / "it.pth")
    it = load(architecture="torchvision:mnasnet0_5", checkpoint=str(tmp_path / "it.pth"), input_size=32, mean=0, std=1)
    torch.testing.assert_close(it(images()), network(images()), atol=1e-5, rtol=1e-4)


def test_a_model_of_torchvision_with_a_checkpoint_of_ones_own(tmp_path: Path) -> None:
    from torchvision import models

    network = seeded(lambda: models.get_model("shufflenet_v2_x0_5", num_classes=3)).eval()
    torch.save({"state_dict": {f"module.{k}": v for k, v in network.state_dict().items()}}, tmp_path / "it.pth")
    given = {"architecture": "torchvision:shufflenet_v2_x0_5", "checkpoint": str(tmp_path / "it.pth")}
    it = load(**given, input_size=32)
    assert it.input.mean == [0.485, 0.456, 0.406]
    assert it.input.origins["mean"] == "library"
    assert it.source == "torchvision:shufflenet_v2_x0_5 + it.pth"
    mean, std = it.mean, it.std
    torch.testing.assert_close(it(images()), network((images() - mean) / std), atol=1e-5, rtol=1e-4)
    assert "its library's settings" in next(n.text for n in load(**given).notices if n.kind == "input-guessed")
    with pytest.raises(ClassifierError, match="did you mean 'resnet18'"):
        load(architecture="torchvision:resnet81", checkpoint=str(tmp_path / "it.pth"))


@pytest.mark.parametrize("prefix", ["", "module.", "model.", "backbone.", "net.", "model.backbone.", "model.module."])
def test_prefixes_of_lightning_and_of_users_modules(prefix: str, tmp_path: Path) -> None:
    from torchvision import models

    network = seeded(lambda: models.get_model("squeezenet1_1", num_classes=3)).eval()
    state = {prefix + key: value for key, value in network.state_dict().items()}
    lightning = {
        "epoch": 1, "pytorch-lightning_version": "2.4.0", "state_dict": state | {"criterion.weight": torch.ones(3)},
        "loops": {}, "callbacks": {}, "optimizer_states": [], "hyper_parameters": {"lr": 0.1},
    }  # fmt: skip
    torch.save(lightning, tmp_path / "last.ckpt")
    from audit.classifiers.checkpoint import read_checkpoint
    from audit.classifiers.fitting import fit_weights

    other = models.get_model("squeezenet1_1", num_classes=3)
    fit_weights(other, read_checkpoint(tmp_path / "last.ckpt"), "'last.ckpt'")
    assert all(torch.equal(value, other.state_dict()[key]) for key, value in network.state_dict().items())


def timm_cache(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Write a model into `folder` as the hub's cache keeps it, and let no other be reached."""
    import huggingface_hub.constants as hub
    import timm

    network = seeded(lambda: timm.create_model("convnext_atto", num_classes=3, in_chans=3)).eval()
    snapshot = folder / "models--me--owls" / "snapshots" / "0123456789"
    snapshot.mkdir(parents=True)
    (folder / "models--me--owls" / "refs").mkdir()
    (folder / "models--me--owls" / "refs" / "main").write_text("0123456789")
    cfg = {
        "input_size": [3, 32, 32], "mean": [0.4] * 3, "std": [0.3] * 3, "num_classes": 3, "first_conv": "stem.0",
        "label_names": CLASSES[::-1], "classifier": "head.fc",
    }  # fmt: skip
    about = {"architecture": "convnext_atto", "num_classes": 3, "num_features": 320, "pretrained_cfg": cfg}
    (snapshot / "config.json").write_text(json.dumps(about))
    save_file(network.state_dict(), str(snapshot / "model.safetensors"))
    monkeypatch.setattr(hub, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(hub, "HF_HUB_CACHE", str(folder))
    monkeypatch.setattr("timm.models._hub.get_cache_dir", lambda child="": str(folder))
    return network


def test_a_hub_model_of_timm_comes_from_the_local_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network = timm_cache(tmp_path, monkeypatch)
    it = load(architecture="hf-hub:me/owls")
    assert it.input.classes == list(CLASSES[::-1])
    assert {it.input.origins[key] for key in ("size", "channels", "mean", "std", "classes")} == {"container"}
    torch.testing.assert_close(it(images()), network((images() - 0.4) / 0.3).flip(1), atol=1e-5, rtol=1e-4)
    for architecture in ("hf-hub:me/not-there", "timm:resnet18.a1_in1k"):
        with pytest.raises(ClassifierError, match=r"not in the local cache, or the hub .* cannot be reached") as caught:
            load(architecture=architecture)
        assert "\n" not in str(caught.value)


# MONAI and torchxrayvision


def bundle(folder: Path, **network: Any) -> Any:
    nets = pytest.importorskip("monai.networks.nets", reason="the extra 'monai' is not installed")
    made = seeded(
        lambda: nets.DenseNet(
            spatial_dims=2, in_channels=1, out_channels=2, init_features=8, growth_rate=4, block_config=(2, 2)
        )
    ).eval()
    (folder / "configs").mkdir(parents=True)
    (folder / "models").mkdir()
    described = {"_target_": "DenseNet", "spatial_dims": "@dims", "in_channels": 1, "out_channels": 2,
                 "init_features": 8, "growth_rate": 4, "block_config": [2, 2]}  # fmt: skip
    said = {
        "dims": 2, "device": "$torch.device('cpu')", "network_def": {**described, **network},
        "network": "$@network_def.to(@device)",
        "preprocessing": {"_target_": "Compose", "transforms": [{"_target_": "ScaleIntensityd"}]},
    }  # fmt: skip
    (folder / "configs" / "inference.json").write_text(json.dumps(said))
    image = {"spatial_shape": [32, 32], "num_channels": 1, "value_range": [-1, 1]}
    answer = {"channel_def": {"0": "ill", "1": "well"}}
    about = {"network_data_format": {"inputs": {"image": image}, "outputs": {"pred": answer}}}
    (folder / "configs" / "metadata.json").write_text(json.dumps(about))
    torch.save({"model": made.state_dict()}, folder / "models" / "model.pt")
    return made


def test_a_bundle_of_monai(tmp_path: Path) -> None:
    network = bundle(tmp_path / "it")
    grey = images(shape=(1, 32, 32))
    it = load(shape=(1, 40, 40), classes=("well", "ill"), file=f"monai:{tmp_path / 'it'}")
    assert it.input_shape == (1, 32, 32)
    assert (it.input.mean, it.input.std) == ([0.5], [0.5])
    assert set(it.input.origins.values()) == {"container", "configuration"}
    torch.testing.assert_close(it(grey), network(2 * grey - 1).flip(1), atol=1e-5, rtol=1e-4)


def test_nothing_in_a_bundle_is_run(tmp_path: Path) -> None:
    bundle(tmp_path / "code", init_features="$__import__('os').system('touch ran')")
    bundle(tmp_path / "call", _target_="subprocess.run")
    for name, sentence in (("code", "computes an argument"), ("call", "is no class of monai.networks.nets")):
        with pytest.raises(ClassifierError, match=sentence):
            load(shape=(1, 32, 32), classes=("well", "ill"), file=f"monai:{tmp_path / name}")


def test_a_bundle_that_normalises_by_image_says_so(tmp_path: Path) -> None:
    bundle(tmp_path / "it")
    file = tmp_path / "it" / "configs" / "inference.json"
    file.write_text(file.read_text().replace("ScaleIntensityd", "NormalizeIntensityd"))
    it = load(shape=(1, 32, 32), classes=("well", "ill"), file=f"monai:{tmp_path / 'it'}")
    assert [n.kind for n in it.notices] == ["normalised-by-image"]


def test_a_network_of_torchxrayvision(tmp_path: Path) -> None:
    xrv = pytest.importorskip("torchxrayvision", reason="the extra 'xrv' is not installed")
    network = seeded(lambda: xrv.models.DenseNet(num_classes=18)).eval()
    about = xrv.models.model_urls["densenet121-res224-rsna"]
    network.op_threshs = torch.tensor(about["op_threshs"])
    network.targets = about["labels"]
    torch.save(network, tmp_path / "whole.pt")
    grey = images(shape=(1, 224, 224))
    given = {"architecture": "xrv:densenet121-res224-rsna", "checkpoint": str(tmp_path / "whole.pt")}
    it = load(shape=(1, 224, 224), classes=("pneumonia", "lung_opacity"), **given)
    assert it.input_shape == (1, 224, 224)
    assert float(it.prepare(torch.zeros(1, 1, 224, 224)).min()) == -1024
    assert float(it.prepare(torch.ones(1, 1, 224, 224)).max()) == 1024
    with torch.no_grad():
        bent = network(2048 * grey - 1024)[:, [8, 16]]
        logits = it(grey)
    assert torch.equal(logits > 0, bent > 0.5)
    assert "op_norm" in next(n.text for n in it.notices if n.kind == "operating-point")
    trained = load(
        shape=(1, 224, 224),
        classes=("pneumonia", "lung_opacity"),
        architecture_args={"operating_point": False},
        **given,
    )
    shift = torch.tensor([about["op_threshs"][i] for i in (8, 16)]).logit()
    with torch.no_grad():
        torch.testing.assert_close(trained(grey) - shift, logits, atol=1e-4, rtol=1e-4)
    with pytest.raises(ClassifierError, match="did you mean 'densenet121-res224-rsna'"):
        load(architecture="xrv:densenet121-res224-rsn", checkpoint=str(tmp_path / "whole.pt"))


# ONNX


def onnx_of(network: nn.Module, file: Path, side: int = 32) -> Path:
    pytest.importorskip("onnxruntime", reason="the extra 'onnx' is not installed")
    pytest.importorskip("onnx2pytorch", reason="the extra 'onnx' is not installed")
    torch.onnx.export(
        network, (torch.rand(2, 3, side, side),), str(file), dynamo=False, opset_version=17, input_names=["x"],
        output_names=["y"], dynamic_axes={"x": {0: "n"}, "y": {0: "n"}},
    )  # fmt: skip
    return file


def small() -> nn.Module:
    def network() -> nn.Module:
        # The second batch norm follows no convolution, so that it stays one in the file.
        layers = [nn.Conv2d(3, 8, 3, stride=2), nn.BatchNorm2d(8), nn.ReLU(), nn.BatchNorm2d(8)]
        return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3))

    return seeded(network).eval()


@pytest.mark.filterwarnings("ignore")
def test_an_onnx_file_answers_and_leads_back_as_the_network_it_was(tmp_path: Path) -> None:
    network = small()
    it = load(file=str(onnx_of(network, tmp_path / "it.onnx")))
    assert it.input_shape == RGB
    assert it.input.origins["size"] == "container"
    torch.testing.assert_close(it(images(3)), network(images(3)), atol=1e-5, rtol=1e-4)
    ours, theirs = images().requires_grad_(), images().requires_grad_()
    (found,) = torch.autograd.grad(it(ours)[:, 1].sum(), ours)
    (wanted,) = torch.autograd.grad(network(theirs)[:, 1].sum(), theirs)
    torch.testing.assert_close(found, wanted, atol=1e-6, rtol=1e-3)
    x, logits = it.features_and_logits(images())
    torch.testing.assert_close(it.head(x), logits, atol=1e-5, rtol=1e-4)


class Rounded(nn.Module):
    """Computes on pixels of eight bits: its gradient is zero everywhere and its slopes are not."""

    def __init__(self) -> None:
        super().__init__()
        self.network = small()

    def forward(self, images: Tensor) -> Tensor:
        return self.network(torch.round(images * 8) / 8)


@pytest.mark.filterwarnings("ignore")
def test_an_onnx_file_without_gradients_is_a_black_box_with_the_reason(tmp_path: Path) -> None:
    network = Rounded().eval()
    it = load(file=str(onnx_of(network, tmp_path / "it.onnx")))
    assert is_black_box(it)
    assert "cannot be converted to a network with gradients" in it.notices[0].text
    torch.testing.assert_close(it(images(3)), network(images(3)), atol=1e-5, rtol=1e-4)
    (tmp_path / "text.onnx").write_text("nothing")
    with pytest.raises(ClassifierError, match="cannot be opened by onnxruntime"):
        load(file=str(tmp_path / "text.onnx"))


# The table


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"file": "keras:model"}, "'classifiers.file' names 'keras', which is none of: hf, monai"),
        ({"architecture": "hf:folder"}, 'write file = "hf:folder"'),
        ({"architecture": "torchvision:resnet18"}, "needs a checkpoint beside"),
        ({"architecture": "hf-hub:a/b", "checkpoint": "a.pt"}, "'checkpoint' .* would have no effect"),
    ],
)
def test_kinds_that_do_not_fit_are_said_before_anything_is_read(given: dict[str, str], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        check_containers([ClassifierConfig.model_validate({"name": "it", **given})])


def test_folders_are_found_beside_the_configuration_and_recorded_without_the_machine(tmp_path: Path) -> None:
    models = [
        {"name": "a", "file": "hf:nets/vit"},
        {"name": "b", "architecture": "torchvision:resnet18", "checkpoint": "b.pt"},
    ]
    config = AuditConfig.model_validate({"data": {"path": "phantom"}, "classifiers": models})
    found = resolve_paths(config, tmp_path)
    assert found.classifiers[0].file == f"hf:{(tmp_path / 'nets/vit').resolve()}"
    assert found.classifiers[1].architecture == "torchvision:resnet18"
    assert [one["file"] for one in recorded(found, tmp_path.resolve())["classifiers"]] == ["hf:nets/vit", None]


def test_an_extra_that_is_not_installed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "config.json").write_text("{}")
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ClassifierError, match=r"pip install 'spruce-audit\[hf\]'"):
        load(file=f"hf:{tmp_path}")
