"""Factories find their neighbours as their code does when it is run by itself, and leave no trace of it."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from audit.classifiers.factory import build_by_factory
from audit.classifiers.load import load_classifier
from audit.config import ClassifierConfig
from audit.errors import ClassifierError

BLOCKS = "from torch import nn\nWIDTH = {width}\ndef layer():\n    return nn.Linear(16, WIDTH)\n"
NETS = "from torch import nn\n{line}\ndef make():\n    return nn.Sequential(nn.Flatten(), {name}())\n"


def folder_with(root: Path, width: int, line: str = "from blocks import layer", name: str = "layer") -> Path:
    root.mkdir(parents=True, exist_ok=True)
    (root / "blocks.py").write_text(BLOCKS.format(width=width))
    (root / "nets.py").write_text(NETS.format(line=line, name=name))
    return root


def width_of(text: str, folder: Path | None = None) -> int:
    network = build_by_factory(text, {}, folder)
    layer = network[1]
    assert isinstance(layer, nn.Linear)
    return layer.out_features


@pytest.mark.parametrize(
    ("line", "name"),
    [
        ("from blocks import layer", "layer"),
        ("import blocks", "blocks.layer"),
        ("from .blocks import layer", "layer"),
        ("from . import blocks", "blocks.layer"),
    ],
)
def test_neighbours_of_a_name_in_two_folders_do_not_clash(line: str, name: str, tmp_path: Path) -> None:
    before, modules = list(sys.path), set(sys.modules)
    one, two = (folder_with(tmp_path / n, w, line, name) for n, w in (("one", 2), ("two", 5)))
    for folder, width in ((one, 2), (two, 5), (one, 2)):
        assert width_of(f"{folder / 'nets.py'}:make") == width
    assert sys.path == before
    assert not {"blocks", "nets"} & (set(sys.modules) - modules)
    assert not list(tmp_path.rglob("__pycache__"))


def test_a_neighbour_that_is_imported_when_the_factory_is_called_is_found(tmp_path: Path) -> None:
    folder_with(tmp_path, 3)
    late = "def make():\n    import blocks, torch.nn as nn\n    return nn.Sequential(nn.Flatten(), blocks.layer())"
    (tmp_path / "nets.py").write_text(late)
    assert width_of(f"{tmp_path / 'nets.py'}:make") == 3
    assert width_of(f"{tmp_path / 'nets.py'}:make") == 3


def test_modules_of_the_configurations_folder_are_found(tmp_path: Path) -> None:
    for width, folder in ((2, tmp_path / "a"), (4, tmp_path / "b")):
        package = folder_with(folder / "zoo", width, "from zoo.blocks import layer")
        assert width_of("zoo.nets:make", folder) == width
        assert width_of(f"{package / 'nets.py'}:make", folder) == width
        (package / "__init__.py").write_text("")
        folder_with(package / "deep", width, "from ..blocks import layer")
        (package / "deep" / "__init__.py").write_text("")
        assert width_of(f"{package / 'deep' / 'nets.py'}:make") == width
    assert "zoo" not in sys.modules


def test_a_users_own_module_of_a_neighbours_name_gives_way_and_comes_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(folder_with(tmp_path / "mine", 7))
    import blocks  # type: ignore[import-not-found]

    monkeypatch.setitem(sys.modules, "blocks", blocks)
    assert width_of(f"{folder_with(tmp_path / 'other', 2) / 'nets.py'}:make") == 2
    assert sys.modules["blocks"] is blocks
    (tmp_path / "other" / "torch").mkdir()
    assert width_of(f"{tmp_path / 'other' / 'nets.py'}:make") == 2
    assert sys.modules["torch"] is torch


def load(folder: Path, **settings: Any) -> Any:
    config = ClassifierConfig(name="it", mean=0, std=1, **settings)
    return load_classifier(config, (1, 4, 4), ("a", "b"), folder)


def test_a_factory_may_bring_its_own_weights_but_none_at_random(tmp_path: Path) -> None:
    folder = folder_with(tmp_path, 2)
    with pytest.raises(ClassifierError, match=r"draws its weights at random .*'1\.weight'.*'checkpoint'"):
        load(folder, factory=f"{folder / 'nets.py'}:make")
    torch.save({"weight": torch.ones(2, 16), "bias": torch.zeros(2)}, folder / "own.pt")
    (folder / "trained.py").write_text(
        "import torch\nfrom pathlib import Path\nfrom nets import make as bare\n"
        "def make():\n    network = bare()\n"
        "    network[1].load_state_dict(torch.load(Path(__file__).parent / 'own.pt', weights_only=True))\n"
        "    return network\n"
    )
    it = load(folder, factory=f"{folder / 'trained.py'}:make")
    assert it.input.weights == "from the factory"
    assert bool((it.head.weight == 1).all())


@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        ("import sys\nsys.exit(2)\ndef make(): pass", r"exits with status 2, as a script does"),
        ("def make():\n    raise SystemExit('usage')", "exits with status usage"),
        ("def make():\n    raise AssertionError('first\\nsecond')", r"fails with factory_args \{\} \(first\)"),
        ("from nowhere_to_be_found import x\ndef make(): pass", "No module named 'nowhere_to_be_found'"),
    ],
)
def test_what_a_factory_raises_is_one_sentence(source: str, sentence: str, tmp_path: Path) -> None:
    (tmp_path / "bad.py").write_text(source)
    before = list(sys.path)
    with pytest.raises(ClassifierError, match=sentence) as caught:
        build_by_factory(f"{tmp_path / 'bad.py'}:make", {}, None)
    assert "\n" not in str(caught.value)
    assert sys.path == before
