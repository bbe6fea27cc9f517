"""A binary classifier of real images as one logit z and as [0, z]: the same audit, number by number."""

from collections.abc import Iterator
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from audit.gate.evaluate import evaluate_gate
from audit.gate.policy import Policy
from audit.pipeline.runner import run_audit
from audit.results import AuditResult, read_results

PNEUMONIA = Path(__file__).parents[2].parent / "shared" / "data" / "pneumoniamnist.npz"
OTHERWISE = {
    "name",
    "input",
    "source",
    "certificate",
    "image",
    "changed_image",
    "adversarial_image",
    "perturbation_image",
}
"""Fields that say which of the two it is, where its pictures lie, and how it was loaded."""


class Small(nn.Module):
    """A small network for images of side 28; with `twin` it answers [0, z] and else z."""

    def __init__(self, twin: bool) -> None:
        super().__init__()
        self.twin = twin
        self.body = nn.Sequential(
            nn.Conv2d(1, 8, 3, stride=2, padding=1), nn.ReLU(),
            nn.Conv2d(8, 16, 3, stride=2, padding=1), nn.ReLU(),
            nn.Flatten(), nn.Linear(16 * 49, 1),
        )  # fmt: skip

    def forward(self, images: Tensor) -> Tensor:
        z: Tensor = self.body(images)
        return nn.functional.pad(z, (1, 0)) if self.twin else z


def one_logit() -> nn.Module:
    return Small(twin=False)


def two_logits() -> nn.Module:
    return Small(twin=True)


@cache
def trained() -> dict[str, Tensor]:
    """Weights after a few steps on the training split."""
    with np.load(PNEUMONIA) as arrays:
        images = torch.from_numpy(arrays["train_images"])[:, None].float() / 255
        labels = torch.from_numpy(arrays["train_labels"]).float()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = one_logit()
        optimiser = torch.optim.Adam(net.parameters(), lr=3e-3)
        for _ in range(120):
            rows = torch.randint(len(images), (64,))
            loss = nn.functional.binary_cross_entropy_with_logits(net(images[rows]), labels[rows])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    return net.state_dict()


@pytest.fixture(scope="module")
def audit(tmp_path_factory: pytest.TempPathFactory) -> tuple[AuditResult, Path]:
    if not PNEUMONIA.is_file():
        pytest.skip("PneumoniaMNIST (../shared/data/pneumoniamnist.npz) is not on this machine")
    folder = tmp_path_factory.mktemp("twins")
    with np.load(PNEUMONIA) as arrays:
        np.savez(folder / "set.npz", **{key: arrays[key][:150] for key in arrays if not key.startswith("train")})
    save_file(trained(), folder / "weights.safetensors")
    models = "".join(
        f"""
[[classifiers]]
name = "{name}"
factory = "{Path(__file__).as_posix()}:{name}"
checkpoint = "weights.safetensors"
"""
        for name in ("one_logit", "two_logits")
    )
    (folder / "audit.toml").write_text(
        f"""
[data]
path = "set.npz"
classes = ["normal", "pneumonia"]

[robustness]
n = 24
attacks = ["pgd", "ensemble"]
eps = ["2/255", "8/255"]
l2_eps = [0.5]
steps = 4
ensemble = {{ apgd_steps = 5, fab_steps = 5, square_queries = 20 }}
trust = {{ n = 8, square_queries = 20 }}

[robustness.corruptions]
names = ["gaussian_noise", "contrast"]
severities = [3]
n = 40

[reliance]
n = 24
clusters = 2
interventions = ["side-marker", "gamma"]
{models}"""
    )
    return run_audit(folder / "audit.toml", folder / "out"), folder / "out"


def numbers(node: object, path: str = "") -> Iterator[tuple[str, object]]:
    """Yield every value of the results of a model with its path, but for what tells the two apart."""
    if isinstance(node, dict):
        for key, value in node.items():
            if key not in OTHERWISE:
                yield from numbers(value, f"{path}.{key}")
    elif isinstance(node, list):
        for place, value in enumerate(node):
            yield from numbers(value, f"{path}.{place}")
    else:
        yield path, node


def test_one_logit_and_its_twin_have_the_same_numbers(audit: tuple[AuditResult, Path]) -> None:
    result, folder = audit
    assert result.complete
    assert read_results(folder / "results.json") == result
    one, two = (dict(numbers(model.model_dump(mode="json"))) for model in result.models)
    assert one.keys() == two.keys()

    def spoken(value: object) -> object:
        return value.replace("two_logits", "one_logit") if isinstance(value, str) else value

    assert {path: (value, two[path]) for path, value in one.items() if spoken(value) != spoken(two[path])} == {}
    assert 0.7 < (result.models[0].clean.accuracy.value or 0) < 1
    for kind in ("robust.pgd", "robust.pgd_l2", "robust.ensemble", "robust.corruptions", "reliance.interventions"):
        assert any(path.startswith(f".{kind}.") and isinstance(value, float) for path, value in one.items()), kind
    # What is compared of the two differs in no image.
    assert result.differences
    assert all(row.difference.value == 0 for row in result.differences)
    assert [check.name for check in result.models[0].certificate] == [c.name for c in result.models[1].certificate]
    answers = [model.input.answer for model in result.models if model.input is not None]
    assert answers[0] != answers[1]


def test_report_and_gate_take_both_alike(audit: tuple[AuditResult, Path]) -> None:
    result, folder = audit
    page = (folder / "report.html").read_text()
    assert "one_logit" in page
    assert "two_logits" in page
    rules = [
        {"metric": "clean.accuracy", "min": 0.7},
        {"metric": "clean.ece", "max": 0.0},
        {"metric": "robust.pgd.8/255", "min": 0.999, "allow_untrusted": True, "allow_unchecked": True},
        {"metric": "clean.accuracy", "max_drop": 0, "baseline_model": "one_logit"},
    ]
    checks = evaluate_gate(result, Policy.model_validate({"rule": rules}), result).checks
    states = {name: [check.status for check in checks if check.model == name] for name in ("one_logit", "two_logits")}
    assert states["one_logit"] == states["two_logits"] == ["pass", "fail", "fail", "pass"]
