"""Checkpoints: round trip, refusal of other configurations and foreign files, nothing half written."""

import resource
from pathlib import Path

import pytest
import torch

from audit.errors import ConfigError
from audit.storage.checkpoint import Resumable, fingerprint, load_checkpoint, save_checkpoint


class Run(Resumable):
    _modules = ("net", "optimiser")
    _plain = ("step", "history")

    def __init__(self, width: int = 3) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.net = torch.nn.Linear(2, width)
        self.optimiser = torch.optim.Adam(self.net.parameters())
        self.rng = torch.Generator().manual_seed(0)
        self.step = 0
        self.history: list[dict[str, float]] = []

    def advance(self) -> None:
        self.optimiser.zero_grad()
        self.net(torch.randn(4, 2, generator=self.rng)).square().mean().backward()
        self.optimiser.step()
        self.step += 1
        self.history.append({"step": float(self.step)})


def test_a_resumed_run_goes_on_as_if_it_had_not_stopped(tmp_path: Path) -> None:
    whole, first, second = Run(), Run(), Run()
    for _ in range(4):
        whole.advance()
    second.resume(tmp_path / "c.pt", "k")  # nothing to resume from
    assert second.step == 0
    first.advance()
    first.advance()
    first.save(tmp_path / "c.pt", "k")
    second.resume(tmp_path / "c.pt", "k")
    second.advance()
    second.advance()
    assert second.history == whole.history
    assert torch.equal(second.net.weight, whole.net.weight)


def test_another_configuration_is_refused_before_anything_is_loaded(tmp_path: Path) -> None:
    path = tmp_path / "c.pt"
    Run().save(path, fingerprint("a"))
    wider = Run(5)
    with pytest.raises(
        ConfigError, match="holds a checkpoint of another configuration: name another --out or delete it"
    ):
        wider.resume(path, fingerprint("b"))
    assert wider.step == 0
    torch.save({"step": 3}, path)  # written before checkpoints had a fingerprint
    with pytest.raises(ConfigError, match="another configuration"):
        load_checkpoint(path, fingerprint("a"))


@pytest.mark.parametrize("content", [b"", b"no checkpoint", b"PK\x03\x04 cut off"])
def test_what_is_no_checkpoint_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "c.pt"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"c\.pt' cannot be read as a checkpoint"):
        load_checkpoint(path, "k")


def test_code_in_a_checkpoint_is_not_run(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return Path.touch, (tmp_path / "sprung",)

    torch.save({"key": "k", "trap": Trap()}, tmp_path / "c.pt")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_checkpoint(tmp_path / "c.pt", "k")
    assert not (tmp_path / "sprung").exists()


def test_a_failed_write_leaves_the_earlier_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "c.pt"
    save_checkpoint(path, "k", {"step": 1})
    with pytest.raises(Exception, match=r"pickle|local"):
        save_checkpoint(path, "k", {"step": 2, "bad": lambda: None})
    assert load_checkpoint(path, "k") == {"step": 1, "key": "k"}
    assert [f.name for f in tmp_path.iterdir()] == ["c.pt"]


def test_fingerprints_differ_with_the_text() -> None:
    assert fingerprint("a") == fingerprint("a") != fingerprint("b")


def test_a_disk_that_is_full_is_said_and_leaves_the_checkpoint_before(tmp_path: Path) -> None:
    """torch's writer tells of the end of its archive instead; a bound on files stands for the disk here."""
    path = tmp_path / "c.pt"
    save_checkpoint(path, "k", {"x": torch.zeros(10)})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, hard))
    try:
        with pytest.raises(OSError, match="File too large") as caught:
            save_checkpoint(path, "k", {"x": torch.zeros(1_000_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert caught.value.filename == str(path)
    assert [one.name for one in tmp_path.iterdir()] == ["c.pt"]
    found = load_checkpoint(path, "k")
    assert found is not None
    assert len(found["x"]) == 10
