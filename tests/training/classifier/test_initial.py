"""Where a training starts: pretrained weights of timm from the local cache, weights of a file, a new head."""

from pathlib import Path

import huggingface_hub
import pytest
import timm
import torch
from safetensors.torch import save_file

from audit.errors import ClassifierError, ConfigError
from audit.training.classifier.initial import initial_network

TINY = "test_convnext.r160_in1k"
"""The smallest convolutional network for which timm names pretrained weights."""


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def published(cache: Path) -> dict[str, torch.Tensor]:
    """Put weights of TINY for 1000 classes where timm looks for them, as a download would."""
    with torch.random.fork_rng():
        torch.manual_seed(7)
        tensors = timm.create_model(TINY, pretrained=False).state_dict()
    repository = cache / f"models--timm--{TINY}"
    (repository / "refs").mkdir(parents=True)
    (repository / "snapshots" / "abc").mkdir(parents=True)
    (repository / "refs" / "main").write_text("abc")
    save_file(tensors, repository / "snapshots" / "abc" / "model.safetensors")
    return tensors


def test_pretrained_weights_get_a_new_head(cache: Path) -> None:
    tensors, state = published(cache), torch.get_rng_state()
    first, second = (initial_network("timm", TINY, 3, 3, {}, seed=5) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), state)
    assert first.source == {"timm": TINY}
    found = first.network.state_dict()
    heads = {key for key, value in found.items() if value.shape != tensors[key].shape}
    assert heads == {"head.fc.weight", "head.fc.bias"}
    for key, value in found.items():
        assert torch.equal(value, second.network.state_dict()[key]), "the head is drawn from the seed"
        assert key in heads or torch.equal(value, tensors[key])


def test_grey_images_take_the_summed_first_layer(cache: Path) -> None:
    tensors = published(cache)
    found = initial_network("timm", TINY, 2, 1, {}, seed=0).network.state_dict()
    assert torch.allclose(found["stem.0.weight"], tensors["stem.0.weight"].sum(dim=1, keepdim=True))


def test_offline_the_remedy_is_named(cache: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot be loaded .*connect this machine.*HF_HOME.*initial") as stop:
        initial_network("timm", TINY, 3, 3, {}, seed=0)
    assert "\n" not in str(stop.value)


@pytest.mark.parametrize("name", ["small-convnext", "botnet50ts_256"])
def test_networks_without_pretrained_weights_are_named(name: str) -> None:
    with pytest.raises(ConfigError, match=f"no pretrained weights for '{name}'"):
        initial_network("timm", name, 3, 3, {}, seed=0)


def test_unknown_networks_keep_their_error() -> None:
    with pytest.raises(ClassifierError, match="did you mean"):
        initial_network("timm", "convnext_bas", 3, 3, {}, seed=0)


def test_a_file_fits_or_gives_all_but_the_head() -> None:
    same = initial_network("shipped:plain", "small-convnext", 3, 1, {}, seed=0)
    more = initial_network("shipped:plain", "small-convnext", 5, 1, {}, seed=0)
    assert (same.source["new_head"], more.source["new_head"]) == (False, True)
    assert same.source["file"] == "plain.safetensors"
    assert len(same.source["sha256"]) == 64
    for key, value in same.network.state_dict().items():
        assert torch.equal(value, more.network.state_dict()[key]) or key.startswith("head.fc")
    with pytest.raises(ClassifierError, match="check architecture, channels"):
        initial_network("shipped:plain", "small-convnext", 3, 3, {}, seed=0)
    with pytest.raises(ClassifierError, match="does not exist"):
        initial_network("none.safetensors", "small-convnext", 3, 1, {}, seed=0)
