"""The store: keys, and entries that survive or count as absent."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from audit.config import InversionConfig
from audit.storage.cache import Entry, Store, hash_code, hash_tensor

TYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.bool]


def test_equal_inputs_have_equal_keys(tmp_path: Path) -> None:
    store = Store(tmp_path)
    key = store.key("inversion", config=InversionConfig(), weights="abc", images=torch.ones(2, 3), seed=0)
    assert len(key) == 64
    other = Store(tmp_path / "elsewhere")
    assert other.key("inversion", seed=0, images=torch.ones(2, 3), weights="abc", config=InversionConfig()) == key
    assert store.key("x", value=(1, 2)) == store.key("x", value=[1, 2])
    assert store.key("x", value=np.float64(0.5)) == store.key("x", value=0.5)
    assert store.key("x", value=np.ones(3, dtype=np.float32)) == store.key("x", value=torch.ones(3))


def test_any_difference_changes_the_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(tmp_path)
    base = {"config": InversionConfig(), "images": torch.zeros(2, 3), "seed": 0}
    keys = [
        store.key("inversion", **base),
        store.key("explain", **base),
        store.key("inversion", **{**base, "seed": 1}),
        store.key("inversion", **{**base, "seed": "0"}),
        store.key("inversion", **{**base, "seed": None}),
        store.key("inversion", **{**base, "config": InversionConfig(pivot_steps=151)}),
        store.key("inversion", **{**base, "images": torch.zeros(3, 2)}),
        store.key("inversion", **{**base, "images": torch.zeros(2, 3, dtype=torch.float64)}),
        store.key("inversion", **{**base, "images": torch.full((2, 3), 1e-30)}),
        store.key("inversion", **base, more=None),
    ]
    monkeypatch.setattr("audit.storage.cache.package_version", lambda: "another")
    keys.append(store.key("inversion", **base))
    assert len(set(keys)) == len(keys)


@pytest.mark.parametrize("value", [Path("x"), {1: "a"}, {1, 2}, print, object()])
def test_what_has_no_stable_form_is_refused(tmp_path: Path, value: object) -> None:
    with pytest.raises(TypeError, match="key"):
        Store(tmp_path).key("stage", value={"deep": [value]})


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
    path.write_bytes(whole)
    assert store.get("0000") is not None
    assert sorted(p.name for p in path.parent.iterdir()) == ["0000.safetensors"]


def test_computed_once_and_again_when_damaged(tmp_path: Path) -> None:
    store = Store(tmp_path)
    calls: list[int] = []

    def compute() -> Entry:
        calls.append(1)
        return Entry({"x": torch.ones(3)}, {"n": 3})

    for _ in range(2):
        assert store.get_or_compute("key", compute).metadata == {"n": 3}
    assert len(calls) == 1
    store.path("key").write_bytes(b"damaged")
    assert store.get_or_compute("key", compute).tensors["x"].equal(torch.ones(3))
    assert len(calls) == 2
    assert store.get("key") is not None


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, 255), min_size=6, max_size=6), st.sampled_from(TYPES))
def test_the_hash_sees_values_shape_and_type_but_not_strides(values: list[int], dtype: torch.dtype) -> None:
    tensor = torch.tensor(values).reshape(2, 3).to(dtype)
    assert hash_tensor(tensor) == hash_tensor(tensor.T.contiguous().T)
    assert hash_tensor(tensor) != hash_tensor(tensor.reshape(3, 2))
    assert hash_tensor(tensor) != hash_tensor(tensor.reshape(6))
    others = [t for t in TYPES if t != dtype]
    assert all(hash_tensor(tensor) != hash_tensor(tensor.to(t)) for t in others)
    assert hash_tensor(torch.zeros(0)) != hash_tensor(torch.zeros(0, 1))


def test_a_cache_that_cannot_be_written_costs_no_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full_disk(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    store = Store(tmp_path)
    entry = store.get_or_compute("key", lambda: Entry({"x": torch.ones(3)}, {"n": 3}))
    assert entry.metadata == {"n": 3}
    assert "No space left" in caplog.text
    assert store.get("key") is None
    assert not [p for p in tmp_path.rglob("*") if p.is_file()]


def test_the_hash_of_code_sees_every_constant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def hashed() -> str:
        hash_code.cache_clear()
        return hash_code("coded", "coded.inner")

    (tmp_path / "coded" / "inner").mkdir(parents=True)
    for file in ("coded/__init__.py", "coded/inner/__init__.py"):
        (tmp_path / file).write_text("STEP = 1\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    before = hashed()
    assert hashed() == before
    (tmp_path / "coded" / "inner" / "__init__.py").write_text("STEP = 2\n")
    changed = hashed()
    (tmp_path / "coded" / "inner" / "more.py").write_text("")
    assert len({before, changed, hashed()}) == 3
    hash_code.cache_clear()
