"""Keys: equal for equal inputs and code, other for any other."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from audit.config import InversionConfig
from audit.storage.codec import Entry
from audit.storage.keys import code_hash, hash_tensor, key_of

TYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.bool]


def key(stage: str, **inputs: object) -> str:
    return key_of(stage, "code", inputs)


def test_equal_inputs_have_equal_keys() -> None:
    found = key("inversion", config=InversionConfig(), weights="abc", images=torch.ones(2, 3), seed=0)
    assert len(found) == 64
    assert key("inversion", seed=0, images=torch.ones(2, 3), weights="abc", config=InversionConfig()) == found
    assert key("x", value=(1, 2)) == key("x", value=[1, 2])
    assert key("x", value=np.float64(0.5)) == key("x", value=0.5)
    assert key("x", value=np.ones(3, dtype=np.float32)) == key("x", value=torch.ones(3))


def test_any_difference_changes_the_key() -> None:
    base = {"config": InversionConfig(), "images": torch.zeros(2, 3), "seed": 0}
    keys = [
        key("inversion", **base),
        key("explain", **base),
        key("inversion", **{**base, "seed": 1}),
        key("inversion", **{**base, "seed": "0"}),
        key("inversion", **{**base, "seed": None}),
        key("inversion", **{**base, "config": InversionConfig(pivot_steps=151)}),
        key("inversion", **{**base, "images": torch.zeros(3, 2)}),
        key("inversion", **{**base, "images": torch.zeros(2, 3, dtype=torch.float64)}),
        key("inversion", **{**base, "images": torch.full((2, 3), 1e-30)}),
        key("inversion", **base, more=None),
    ]
    keys.append(key_of("inversion", "other code", base))
    assert len(set(keys)) == len(keys)


@pytest.mark.parametrize("value", [Path("x"), {1: "a"}, {1, 2}, print, object()])
def test_what_has_no_stable_form_is_refused(value: object) -> None:
    with pytest.raises(TypeError, match="key"):
        key("stage", value={"deep": [value]})


def test_a_dataclass_is_its_fields() -> None:
    assert key("x", value=Entry({}, {"a": 1})) == key("x", value={"tensors": {}, "metadata": {"a": 1}})


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


def test_code_is_what_a_module_imports_and_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def hashed(*modules: str) -> str:
        code_hash.cache_clear()
        return code_hash(*modules)

    files = {
        "coded/__init__.py": "",
        "coded/a.py": "from coded.b import (\n    STEP,  # told\n)\nimport os\n",
        "coded/b.py": "STEP = 1\n\n\ndef later():\n    from coded import c\n",
        "coded/c.py": "",
        "coded/apart.py": "X = 1\n",
        "coded/results.py": "",
        "coded/inner/__init__.py": "",
    }
    (tmp_path / "coded" / "inner").mkdir(parents=True)
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    first = hashed("coded.a")
    assert hashed("coded.a") == first
    for name, counts in (("apart", False), ("results", False), ("b", True), ("c", True), ("a", True)):
        before = hashed("coded.a")
        file = tmp_path / "coded" / f"{name}.py"
        file.write_text(file.read_text() + "Y = 2\n")
        assert (hashed("coded.a") != before) == counts, name
    whole = hashed("coded.inner")
    (tmp_path / "coded" / "inner" / "more.py").write_text("")
    assert hashed("coded.inner") != whole
    code_hash.cache_clear()
