"""Models that are shown the same images: a failure is the model's own, and images are made when somebody needs them."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from audit.errors import DataError, Terminated
from audit.robustness.panel import Panel
from audit.storage.cache import Store
from audit.storage.stages import Stages


class Raises(nn.Module):
    def __init__(self, error: BaseException) -> None:
        super().__init__()
        self.error = error

    def forward(self, images: Tensor) -> Tensor:
        raise self.error


def answer(model: nn.Module, images: Tensor) -> Tensor:
    return model(images)


def ask(panel: Panel, made: list[int]) -> dict[str, Tensor]:
    def show() -> Tensor:
        made.append(1)
        return torch.ones(2)

    return panel.ask("stage", show, answer, (__name__,), of="ones")


@pytest.mark.parametrize("error", [RuntimeError("no kernel"), DataError("no image"), SystemExit(3)])
def test_a_model_that_fails_is_asked_no_more(error: BaseException) -> None:
    panel = Panel({"failing": Raises(error), "good": nn.Identity()})
    assert list(ask(panel, [])) == list(ask(panel, [])) == panel.standing == ["good"]
    assert panel.failed == {"failing": error}


def test_a_signal_is_no_failure_and_neither_are_images_that_cannot_be_made() -> None:
    with pytest.raises(Terminated):
        ask(Panel({"it": Raises(Terminated(15))}), [])

    def broken() -> Tensor:
        raise DataError("no image")

    panel = Panel({"it": nn.Identity()})
    with pytest.raises(DataError):
        panel.ask("stage", broken, answer, (__name__,))
    assert panel.standing == ["it"]


def test_images_are_made_once_and_only_for_an_answer_that_is_not_kept(tmp_path: Path) -> None:
    store, made = Store(tmp_path), []
    models = {"a": nn.Identity(), "b": nn.Identity()}
    panel = Panel(models, {name: Stages(store, {"model": name}) for name in models})
    first = ask(panel, made)
    assert len(made) == 1
    again = ask(panel, made)
    assert len(made) == 1
    assert all(torch.equal(first[name], again[name]) for name in models)
