"""The store: entries that come back as they were or count as absent, its bound, and writers side by side."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from audit.storage.cache import DAMAGED, Store
from audit.storage.codec import Entry
from audit.storage.version import package_version

TYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.bool]


@pytest.mark.parametrize("dtype", TYPES)
def test_entries_come_back_as_they_were(tmp_path: Path, dtype: torch.dtype) -> None:
    store = Store(tmp_path)
    tensors = {
        "matrix": torch.arange(6).reshape(2, 3).to(dtype),
        "scalar": torch.tensor(1).to(dtype),
        "empty": torch.zeros(0, 4).to(dtype),
    }
    store.put("ab12", tensors, {"name": "größe", "values": [1, 2.5, None]})
    entry = store.get("ab12")
    assert entry is not None
    assert entry.metadata == {"name": "größe", "values": [1, 2.5, None]}
    assert sorted(entry.tensors) == sorted(tensors)
    for name, tensor in tensors.items():
        assert entry.tensors[name].dtype == dtype
        assert torch.equal(entry.tensors[name], tensor)


def test_views_and_gradients_can_be_stored(tmp_path: Path) -> None:
    store = Store(tmp_path)
    base = torch.arange(12.0, requires_grad=True)
    store.put("k1", {"turned": base.reshape(3, 4).T, "same": base, "again": base})
    entry = store.get("k1")
    assert entry is not None
    assert entry.tensors["turned"].equal(base.detach().reshape(3, 4).T)
    assert not entry.tensors["same"].requires_grad
    store.put("k2", {}, {"only": "metadata"})
    assert store.get("k2") == Entry({}, {"only": "metadata"})


def test_absent_and_damaged_entries_are_none(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    assert store.get("0000") is None
    store.put("0000", {"x": torch.randn(50, generator=torch.Generator().manual_seed(0))}, {"a": 1})
    path = store.path("0000")
    whole = path.read_bytes()
    half_header = whole[:20]
    flipped = bytearray(whole)
    flipped[-5] ^= 1
    other_metadata = whole.replace(b'\\"a\\":', b'\\"b\\":')
    assert other_metadata != whole
    for damaged in (b"", half_header, whole[:-3], bytes(flipped), other_metadata, b"x" * 100, whole + b"tail"):
        path.write_bytes(damaged)
        assert store.get("0000") is None
        assert not path.exists()
        assert (store.root / DAMAGED / path.name).read_bytes() == damaged
    path.write_bytes(whole)
    assert store.get("0000") is not None
    assert sorted(p.name for p in path.parent.iterdir()) == ["0000.safetensors"]


def test_a_cache_that_cannot_be_written_costs_no_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full_disk(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    store = Store(tmp_path)
    for _ in range(2):
        store.put("key", {"x": torch.ones(3)}, {"n": 3})
    assert caplog.text.count("No space left") == 1
    assert store.get("key") is None
    assert not [p for p in tmp_path.rglob("*") if p.is_file()]


def test_the_entries_used_longest_ago_go_first(tmp_path: Path) -> None:
    store = Store(tmp_path)
    for i in range(6):
        store.put(f"{i:02d}", {"x": torch.zeros(1000)})
        os.utime(store.path(f"{i:02d}"), (i, i))
    assert store.get("00") is not None  # used now
    size = store.path("00").stat().st_size
    collected = store.collect(4 * size)
    assert collected.entries == 3
    assert collected.left == 3 * size <= 4 * size * 0.9
    assert sorted(one.key for one in store.entries()) == ["00", "04", "05"]
    assert store.collect(4 * size).entries == 0


def test_a_bound_is_kept_while_an_audit_writes(tmp_path: Path) -> None:
    store = Store(tmp_path, max_bytes=50_000)
    for i in range(40):
        store.put(f"{i:02d}", {"x": torch.zeros(1000)})
        assert sum(one.bytes for one in store.entries()) <= 50_000 * 1.1 + 5000
    assert store.get("39") is not None
    assert store.get("00") is None


def test_what_killed_writers_left_is_removed_when_it_is_old(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.put("ab", {"x": torch.zeros(3)})
    old, new = (store.path("ab").with_name(f".{name}.tmp") for name in ("old", "new"))
    for file in (old, new):
        file.write_bytes(b"half")
    os.utime(old, (0, 0))
    store.collect(10**9)
    assert (old.exists(), new.exists(), store.get("ab") is not None) == (False, True, True)


def test_a_check_of_all_entries_sets_the_damaged_aside(tmp_path: Path) -> None:
    store = Store(tmp_path)
    for key in ("aa", "bb", "cc"):
        store.put(key, {"x": torch.zeros(3)}, stage="some")
    store.path("bb").write_bytes(store.path("bb").read_bytes()[:-1])
    assert store.verify() == (2, ["bb"])
    assert store.verify() == (2, [])
    assert store.description("aa") == {
        "stage": "some",
        "version": package_version(),
        "tensors": {"x": ["F32", 3]},
    }


WRITER = """
import sys
from pathlib import Path
import torch
from audit.storage.cache import Store

store = Store(Path(sys.argv[1]), max_bytes=60_000)
for turn in range(60):
    key = f"{turn % 20:02d}"
    found = store.get(key)
    assert found is None or torch.equal(found.tensors["x"], torch.full((500,), float(turn % 20)))
    store.put(key, {"x": torch.full((500,), float(turn % 20))})
print(len(list(store.entries())))
"""


def test_two_processes_write_and_clear_one_store_side_by_side(tmp_path: Path) -> None:
    command = [sys.executable, "-c", WRITER, str(tmp_path)]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    for one in both:
        out, error = one.communicate(timeout=120)
        assert (one.returncode, error) == (0, "")
        assert int(out) > 0
    assert not list(tmp_path.rglob("*.tmp"))
    assert not (tmp_path / DAMAGED).exists()
    assert Store(tmp_path).verify()[1] == []


def test_a_store_that_may_only_be_read_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(tmp_path)
    store.put("ab", {"x": torch.ones(3)})

    def refused(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    for name in ("utime", "replace"):
        monkeypatch.setattr(os, name, refused)
    found = store.get("ab")
    assert found is not None
    assert found.tensors["x"].equal(torch.ones(3))


def test_a_block_that_cannot_be_read_costs_a_recomputation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    store = Store(tmp_path)
    store.put("ab", {"x": torch.ones(3)})

    def broken(*_: object) -> bool:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("audit.storage.cache._is_whole", broken)
    assert store.get("ab") is None
    assert "Input/output error" in caplog.text


def test_an_entry_goes_to_another_store_as_it_is(tmp_path: Path) -> None:
    one, other = Store(tmp_path / "one"), Store(tmp_path / "other")
    one.put("k", {"x": torch.arange(3)}, {"told": 1})
    other.take("k", one.raw("k"))
    entry = other.get("k")
    assert entry is not None
    assert entry.metadata == {"told": 1}
    assert torch.equal(entry.tensors["x"], torch.arange(3))
    other.take("torn", one.raw("k")[:-4])
    assert other.get("torn") is None
