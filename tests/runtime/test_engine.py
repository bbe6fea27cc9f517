"""Engines: every item once, in other processes; what is lost is said, and what cannot run is told before."""

import os
import sys
from typing import Any

import pytest
import torch
from support_engine import dying, failing, squared
from support_small_audit import configured

from audit.config import RayConfig
from audit.errors import ConfigError
from audit.runtime.engine import open_engine

CPU = torch.device("cpu")


def test_one_process_needs_no_engine() -> None:
    with open_engine(configured(), CPU) as engine:
        assert engine is None


@pytest.mark.slow
def test_processes_compute_every_item_once() -> None:
    with open_engine(configured(workers=2), CPU) as engine:
        assert engine is not None
        found = dict(engine.map(squared, iter(range(20))))
        with pytest.raises(ConfigError, match="is wrong"):
            list(engine.map(failing, [1]))
    assert {place: one and one[0] for place, one in found.items()} == {n: n**2 for n in range(20)}
    assert os.getpid() not in {one[1] for one in found.values() if one is not None}
    assert {one[2] for one in found.values() if one is not None} == {max(1, torch.get_num_threads() // 2)}


@pytest.mark.slow
def test_what_a_process_took_with_it_is_none(caplog: pytest.LogCaptureFixture) -> None:
    with open_engine(configured(workers=2), CPU) as engine:
        assert engine is not None
        assert set(engine.map(dying, [1])) <= {(0, None)}
    assert "is computed here: a process ended" in caplog.text


def test_without_ray_the_command_to_install_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigError, match=r"pip install 'spruce-audit\[ray\]'"), open_engine(on_ray(), CPU):
        pass


@pytest.mark.parametrize("address", ["127.0.0.1:1", "nonsense"])
def test_no_cluster_is_one_sentence(address: str) -> None:
    pytest.importorskip("ray", reason="needs the extra 'ray'")
    with pytest.raises(ConfigError, match="No Ray cluster answers at"), open_engine(on_ray(address=address), CPU):
        pass


def on_ray(**settings: Any) -> Any:
    return configured(engine="ray", ray=RayConfig(**settings))
