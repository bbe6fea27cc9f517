"""The table of embeddings: what every word gives, what "auto" stands for, and embeddings of another package."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from support_outside import install
from torch import Tensor

from audit.embeddings import resolve as module
from audit.embeddings.domain import DomainEncoder
from audit.embeddings.embedding import Pixels
from audit.embeddings.resolve import EMBEDDINGS, Request, Spec, check_word, choose, resolve
from audit.errors import ConfigError, GeneratorError, MetricError
from audit.generator.files.load import load_generator

CPU = torch.device("cpu")


def request(key: str = "metrics.embedding", is_phantom: bool = True) -> Request:
    return Request(key, CPU, is_phantom, load_generator("shipped:phantom"))


def test_each_word_gives_the_network_of_that_name() -> None:
    images = torch.rand(2, 1, 64, 64, generator=torch.Generator().manual_seed(0))
    for word, size in (("phantom-factors", 96), ("discriminator", None)):
        network = resolve(word, request(), "vectors and maps")
        assert network.name == word
        assert network.embed(images).shape == (2, size or network.embed(images).shape[1])
        assert network.maps(images)[0].shape[0] == 2


def test_a_file_gives_its_network_and_an_absent_one_says_how_to_make_it(tmp_path: Path) -> None:
    network = DomainEncoder("own", (1, 16, 16), (8, 8), 8)
    save_file(network.state_dict(), tmp_path / "own.safetensors", metadata=network.metadata())
    assert resolve(str(tmp_path / "own.safetensors"), request(), "vectors and maps").name == "own"
    with pytest.raises(MetricError, match="train embedding"):
        resolve(str(tmp_path / "none.safetensors"), request(), "vectors")


@pytest.mark.parametrize(
    ("key", "is_phantom", "inception", "word"),
    [
        ("metrics.embedding", True, True, "phantom-factors"),
        ("metrics.embedding", False, True, "discriminator"),
        ("metrics.perceptual", True, False, "phantom-factors"),
        ("metrics.perceptual", False, False, "discriminator"),
        ("similarity", False, True, "discriminator"),
        ("fid_embedding", True, True, "phantom-factors"),
        ("fid_embedding", False, True, "inception"),
        ("fid_embedding", False, False, None),
        ("second_discriminator", True, True, None),
    ],
)
def test_auto_is_the_first_that_suits(
    key: str, is_phantom: bool, inception: bool, word: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = {"inception-v3-fid": Path("somewhere") if inception else "absent"}
    monkeypatch.setattr(module, "available", lambda: there)
    assert choose("auto", Request(key, CPU, is_phantom)) == word
    assert choose("clip", Request(key, CPU, is_phantom)) == "clip"


def test_what_a_network_does_not_offer_is_said() -> None:
    EMBEDDINGS.add("flat", Spec(lambda _: Pixels(4), ("metrics.perceptual",)))
    try:
        assert resolve("flat", request("metrics.perceptual"), "vectors").name == "pixels"
        with pytest.raises(ConfigError, match=r"'metrics\.perceptual' names 'flat', which does not offer .*maps"):
            resolve("flat", request("metrics.perceptual"), "vectors and maps")
    finally:
        del EMBEDDINGS.added["flat"]


def test_without_a_discriminator_the_key_to_set_is_named() -> None:
    with pytest.raises(GeneratorError, match=r"set metrics\.perceptual to the \.safetensors file"):
        resolve("auto", Request("metrics.perceptual", CPU), "vectors and maps")


def test_a_key_has_the_words_of_the_table_and_its_own() -> None:
    assert check_word("phantom-factors", "metrics.embedding") == "phantom-factors"
    assert check_word("chest.safetensors", "second_discriminator", ()) == "chest.safetensors"
    assert check_word("none", "fid_embedding", ("auto", "none")) == "none"
    for value, key, near in (
        ("none", "metrics.embedding", "phantom-factors|discriminator|auto"),
        ("inception", "metrics.embedding", "phantom-factors|discriminator|auto"),
        ("inceptoin", "fid_embedding", "inception"),
    ):
        with pytest.raises(ValueError, match=f"'{value}' is no embedding: did you mean '({near})'"):
            check_word(value, key)


CODE = """
from audit.embeddings.resolve import Spec


class Means:
    name, weights_sha256 = "means", ""

    def embed(self, images):
        return images.mean((2, 3))


means = Spec(lambda request: Means(), keys=("metrics.embedding",))
"""


def test_another_package_adds_an_embedding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, monkeypatch, "spruce_audit.embeddings: means = means", CODE)
    assert check_word("means", "metrics.embedding") == "means"
    with pytest.raises(ValueError, match="'means' is no embedding"):
        check_word("means", "metrics.perceptual")
    embedded: Tensor = resolve("means", request(), "vectors").embed(torch.ones(3, 2, 4, 4))
    assert embedded.shape == (3, 2)
