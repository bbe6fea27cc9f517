"""A black box has the numbers of the network that it hides, as far as answers alone lead to them."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from audit.classifiers.black_box import BlackBox
from audit.classifiers.classifier import Classifier
from audit.classifiers.load import load_classifier
from audit.config import ClassifierConfig, RobustnessConfig
from audit.data.audit_set import AuditSet
from audit.errors import ClassifierError
from audit.robustness.accuracy import clean_metrics
from audit.robustness.attacks.registry import by_answers
from audit.robustness.evaluate import measured_robustness

NAMES = ("a", "b")

FACTORY = """
import numpy as np

WEIGHT = np.random.default_rng(0).normal(size=(64, 2)).astype(np.float32)

def make():
    return lambda images: images.reshape(len(images), -1) @ WEIGHT

def sure():
    def call(images):
        raised = np.exp(images.reshape(len(images), -1) @ WEIGHT)
        return raised / raised.sum(axis=1, keepdims=True)

    return call

def wrong():
    return 3
"""


def network() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 2)).eval()


def hidden(inside: nn.Module, chunk: int = 3) -> BlackBox:
    def call(images: np.ndarray) -> dict[str, object]:
        assert images.dtype == np.float32
        assert len(images) <= chunk
        with torch.no_grad():
            return {"out": inside(torch.from_numpy(images)).numpy(), "version": 1}

    return BlackBox(call, chunk)


def classifier(one: nn.Module) -> Classifier:
    return Classifier(one, name="it", class_names=NAMES, input_shape=(1, 8, 8), mean=(0.5,), std=(0.5,))


def data() -> AuditSet:
    pixels = np.random.default_rng(1).integers(0, 256, (10, 8, 8), dtype=np.uint8)
    return AuditSet(
        read_image=lambda row: pixels[row], labels=np.arange(10) % 2, class_names=NAMES,
        ids=tuple(map(str, range(10))), splits=np.array(["test"] * 10), image_shape=(1, 8, 8), regions={},
        source="images",
    )  # fmt: skip


def test_answers_are_those_of_the_network_inside_in_chunks() -> None:
    open_, closed = classifier(network()), classifier(hidden(network()))
    images = torch.rand(8, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(closed(images), open_(images))
    assert (open_.differentiable, closed.differentiable) == (True, False)
    assert not closed(images.requires_grad_()).requires_grad
    other = classifier(hidden(nn.Sequential(network(), nn.Linear(2, 2))))
    assert len({open_.weights_sha256, closed.weights_sha256, other.weights_sha256}) == 3


def test_attacks_by_answers_give_the_same_numbers_and_gradients_are_left_out() -> None:
    config = RobustnessConfig(
        n=10, eps=("2/255", "8/255"), attacks=("pgd", "ensemble", "square", "rays"), steps=2, batch_size=5,
        ensemble={"square_queries": 30, "apgd_steps": 2, "fab_steps": 2}, options={"rays": {"queries": 60}},
        distance={"n": 2, "bisections": 2}, trust={"n": 8},
    )  # fmt: skip
    open_, closed = (
        measured_robustness(classifier(one), data(), config, seed=0) for one in (network(), hidden(network(), 32))
    )
    assert clean_metrics(classifier(network()), data()) == clean_metrics(classifier(hidden(network())), data())
    for attack in ("square", "rays"):
        for radius in config.eps:
            path = f"robust.attacks.{attack}.{radius}"
            assert torch.equal(closed.standing[path], open_.standing[path])
            one = closed.robust.attacks[attack][radius]
            assert one.unchecked == ["No trust check was made, because the model is a black box."]
    assert not closed.robust.pgd
    why = {one.what: one.why for one in closed.missing}
    assert set(why.values()) == {"black box: it gives no gradients."}
    assert set(why) == {
        "robust accuracy under PGD", "robust accuracy under Ensemble", "minimal distances by gradients",
        "trust checks",
    }  # fmt: skip
    assert by_answers(config)[0].attacks == ("square", "rays")
    assert by_answers(config.model_copy(update={"attacks": ("pgd", "transfer")}))[0].attacks == (
        "square", "rays", "transfer"
    )  # fmt: skip


def test_a_network_may_say_that_it_is_one() -> None:
    flagged = network()
    flagged.black_box = True
    assert not classifier(flagged).differentiable


def test_a_factory_may_return_a_function_of_arrays(tmp_path: Path) -> None:
    (tmp_path / "nets.py").write_text(FACTORY)
    found = load_classifier(ClassifierConfig(name="it", factory=f"{tmp_path}/nets.py:make"), (1, 8, 8), NAMES)
    assert not found.differentiable
    assert found(torch.rand(3, 1, 8, 8)).shape == (3, 2)
    assert [one.kind for one in found.notices] == ["black-box"]
    torch.save(network().state_dict(), tmp_path / "weights.pt")
    with pytest.raises(ClassifierError, match="has its weights inside: remove checkpoint"):
        load_classifier(
            ClassifierConfig(name="it", factory=f"{tmp_path}/nets.py:make", checkpoint=f"{tmp_path}/weights.pt"),
            (1, 8, 8), NAMES,
        )  # fmt: skip
    with pytest.raises(ClassifierError, match=r"returns a int: it has to return a torch\.nn\.Module, or a function of"):
        load_classifier(ClassifierConfig(name="it", factory=f"{tmp_path}/nets.py:wrong"), (1, 8, 8), NAMES)


def test_no_black_box_is_told_to_drop_its_softmax(tmp_path: Path) -> None:
    (tmp_path / "nets.py").write_text(FACTORY)
    found = load_classifier(ClassifierConfig(name="it", factory=f"{tmp_path}/nets.py:sure"), (1, 8, 8), NAMES)
    told = {one.kind: one.text for one in found.notices}
    assert "all digits" in told["probabilities"]
    assert "softmax" not in told["probabilities"]


def test_nothing_is_kept_of_what_may_change_unseen(tmp_path: Path) -> None:
    """The cache goes by `content`: of a black box nobody knows it, and another file is another one."""
    (tmp_path / "nets.py").write_text(FACTORY)
    hidden_ = load_classifier(ClassifierConfig(name="it", factory=f"{tmp_path}/nets.py:make"), (1, 8, 8), NAMES)
    assert hidden_.content is None
    found = []
    for name, body in (("one", "return x"), ("two", "return x.clamp(-9, 9)"), ("three", "return x")):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "help.py").write_text(f"def after(x):\n    {body}\n")
        (folder / "net.py").write_text(
            "from help import after\nfrom torch import nn\n\n"
            "class Net(nn.Module):\n"
            "    def __init__(self):\n        super().__init__()\n        self.fc = nn.Linear(64, 2)\n"
            "    def forward(self, x):\n        return after(self.fc(x.flatten(1)))\n"
        )
        torch.save({"fc.weight": torch.ones(2, 64), "fc.bias": torch.zeros(2)}, folder / "weights.pt")
        given = {"factory": f"{folder}/net.py:Net", "checkpoint": f"{folder}/weights.pt"}
        found.append(load_classifier(ClassifierConfig(name="it", **given), (1, 8, 8), NAMES).content)
    assert all(found)
    # Helper modules count as well; the same code elsewhere is the same.
    assert found[0] == found[2] != found[1]
