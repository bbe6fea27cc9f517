"""Stages: computed once for all that they depend on; lots that outlive a kill; the account that belongs to a result."""

from pathlib import Path

import pytest
import torch
from support_store import kept

from audit.storage.cache import Store
from audit.storage.stages import Lots, Stages

CODE = ("audit.runtime.seeds",)


class Told:
    """A meter that counts."""

    def __init__(self) -> None:
        self.heard: list[object] = []

    def during(self, work):
        return work(), {"of": "work"}

    def told(self, what: object) -> None:
        self.heard.append(what)


@pytest.fixture
def stages(tmp_path: Path) -> Stages:
    return Stages(Store(tmp_path), {"model": "a"})


def test_a_result_is_computed_once_for_its_inputs(stages: Stages) -> None:
    calls: list[int] = []

    def compute() -> dict[str, torch.Tensor]:
        calls.append(1)
        return {"x": torch.ones(2)}

    for inputs in ({"n": 1}, {"n": 1}, {"n": 2}):
        assert torch.equal(stages.kept("stage", compute, CODE, **inputs)["x"], torch.ones(2))
    stages.on(model="b").kept("stage", compute, CODE, n=1)
    stages.kept("stage", compute, ("audit.runtime.memory",), n=1)
    assert len(calls) == 4
    for _ in range(2):
        Stages().kept("stage", compute, CODE, n=1)
    assert len(calls) == 6


def test_a_damaged_result_is_computed_again(stages: Stages, tmp_path: Path) -> None:
    assert stages.kept("stage", lambda: 1, CODE) == 1
    (file,) = tmp_path.glob("??/*.safetensors")
    file.write_bytes(b"damaged")
    assert stages.kept("stage", lambda: 2, CODE) == 2
    assert stages.kept("stage", lambda: 3, CODE) == 2


def test_what_fails_is_not_kept(stages: Stages, tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        stages.kept("stage", lambda: 1 / 0, CODE)
    assert not list(tmp_path.rglob("*.safetensors"))


def test_an_account_belongs_to_its_result(stages: Stages) -> None:
    meter = Told()
    metered = stages.on(meter)
    for _ in range(2):
        assert metered.kept("stage", lambda: 5, CODE) == 5
    assert meter.heard == [{"of": "work"}]


def lots_of(stages: Stages, items: list[int]) -> Lots[str]:
    return stages.lots("letters", [{"n": n} for n in items], CODE)


def test_an_item_finds_its_result_whichever_lot_it_was_in(stages: Stages, tmp_path: Path) -> None:
    lots = lots_of(stages, [1, 2, 3])
    assert lots.missing == [0, 1, 2]
    assert lots.keep([0, 1], lambda: ["a", "b"]) == ["a", "b"]
    lots.keep([2], lambda: ["c"])
    assert lots.all() == ["a", "b", "c"]
    assert kept(tmp_path) == {"letters": 2, "letters (place)": 3}
    again = lots_of(stages, [3, 7, 2])
    assert again.missing == [1]
    again.keep([1], lambda: ["g"])
    assert again.all() == ["c", "g", "b"]


def test_a_lot_that_a_kill_cut_off_is_made_up_again(stages: Stages, tmp_path: Path) -> None:
    """Places are written first, the lot last: of a lot that is not there, no item is."""
    lots_of(stages, [1, 2, 3]).keep([0, 1, 2], lambda: ["a", "b", "c"])
    store = Store(tmp_path)
    (lot,) = [one.key for one in store.entries() if store.description(one.key)["stage"] == "letters"]
    store.path(lot).unlink()
    assert lots_of(stages, [1, 2, 3]).missing == [0, 1, 2]


def test_an_item_whose_entry_is_lost_is_found_by_the_others_of_its_lot(stages: Stages, tmp_path: Path) -> None:
    lots_of(stages, [1, 2, 3]).keep([0, 1, 2], lambda: ["a", "b", "c"])
    store = Store(tmp_path)
    places = [one.key for one in store.entries() if store.description(one.key)["stage"] == "letters (place)"]
    for lost in places[:2]:
        store.path(lost).unlink()
    again = lots_of(stages, [1, 2, 3])
    assert again.missing == []
    assert again.all() == ["a", "b", "c"]
    store.path(places[2]).unlink()
    assert lots_of(stages, [1, 2, 3]).missing == [0, 1, 2]


def test_without_a_store_all_is_missing() -> None:
    lots = lots_of(Stages(), [1, 2])
    assert lots.missing == [0, 1]
    lots.keep([0, 1], lambda: ["a", "b"])
    assert lots.all() == ["a", "b"]
