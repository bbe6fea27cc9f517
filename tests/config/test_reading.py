"""A mistake is one sentence with the line, the key and the nearest valid name."""

from pathlib import Path
from typing import Any

import pytest
from support_config import MINIMAL, TOML, parsed

from audit.config import AuditConfig, load_config, parse_config, read_toml
from audit.errors import ConfigError


@pytest.mark.parametrize(
    ("changes", "key", "near"),
    [
        ({"sede": 1}, "sede", "seed"),
        ({"data": {"imagesize": 32}}, "data.imagesize", "image_size"),
        ({"data": {"phantom": {"audits": 9}}}, "data.phantom.audits", "audit"),
        ({"generator": {"pth": "x"}}, "generator.pth", "path"),
        ({"robustness": {"epsilon": ["8/255"]}}, "robustness.epsilon", "eps"),
        ({"classifier": []}, "classifier", "classifiers"),
        (
            {"classifiers": [{"name": "a", "checkpoint": "shipped:plain", "inputsize": 9}]},
            "classifiers.0.inputsize",
            "input_size",
        ),
    ],
)
def test_an_unknown_key_is_answered_with_the_nearest(changes: dict[str, Any], key: str, near: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parsed(**changes)
    assert str(caught.value) == f"Unknown key '{key}' in 'audit.toml': did you mean '{near}'?"


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"seed": -1}, "Key 'seed' .* greater than or equal to 0"),
        ({"seed": "x"}, "Key 'seed' .* valid integer"),
        ({"data": {"channels": 2}}, r"Key 'data\.channels' .* 1 or 3"),
        ({"data": {"image_size": 4}}, r"Key 'data\.image_size'"),
        ({"classifiers": []}, "Key 'classifiers' .* at least 1"),
        ({"robustness": {"eps": ["8/0"]}}, r"Key 'robustness\.eps\.0' .* '8/0' is not a number such as"),
        ({"robustness": {"eps": ["eight"]}}, "'eight' is not a number such as"),
        ({"robustness": {"eps": ["8"]}}, r"'8' is not in \(0, 1\]; eps is in pixel units"),
        ({"robustness": {"eps": [0]}}, r"'0' is not in \(0, 1\]"),
        ({"generator": {"path": "shipped:phantm"}}, "'shipped:phantm' is not one of the shipped weights"),
        (
            {"ranking": dict.fromkeys(("validity", "realism", "sparsity", "localisation", "transfer"), 0)},
            "Key 'ranking' .* at least one component",
        ),
        ({"inversion": {"pivot_lr": float("nan")}}, r"Key 'inversion\.pivot_lr' .* finite"),
        ({"counterfactual": {"latent_weight": float("inf")}}, r"Key 'counterfactual\.latent_weight' .* finite"),
    ],
)
def test_a_bad_value_names_key_file_and_reason(changes: dict[str, Any], match: str) -> None:
    with pytest.raises(ConfigError, match=match) as caught:
        parsed(**changes)
    assert "'audit.toml'" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_key_is_named() -> None:
    with pytest.raises(ConfigError, match=r"^Key 'data' is missing in 'x': add it\.$"):
        parse_config(AuditConfig, {"classifiers": MINIMAL["classifiers"]}, "'x'")
    with pytest.raises(ConfigError, match=r"Key 'classifiers\.0\.name' is missing"):
        parsed(classifiers=[{"checkpoint": "shipped:plain"}])


def test_unreadable_files(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"gone\.toml' does not exist"):
        load_config(tmp_path / "gone.toml")
    (tmp_path / "bad.toml").write_text("seed = = 3")
    with pytest.raises(ConfigError, match=r"bad\.toml' is not valid TOML: .*line 1"):
        load_config(tmp_path / "bad.toml")
    (tmp_path / "bytes.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match=r"bytes\.toml' is not valid TOML"):
        load_config(tmp_path / "bytes.toml")
    (tmp_path / "key.toml").write_text(TOML.replace("seed", "sed"))
    with pytest.raises(ConfigError, match=r"Unknown key 'sed' in '.*key\.toml', line \d+: did you mean 'seed'\?"):
        load_config(tmp_path / "key.toml")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[robustness]\nn = 4\natacks = ['pgd']\n", r"Unknown key 'robustness\.atacks' .*, line 3: .* 'attacks'\?"),
        ("seed = 3\ndevise = 'cpu'\n", "Unknown key 'devise' .*, line 2: did you mean 'device'"),
        # A comment and a text that hold the key's name stand above it.
        ("# steps\nname = '''\nsteps = 0'''\n[robustness]\nsteps = 0\n", r"Key 'robustness\.steps' .*, line 5, is not"),
        ("[robustness]\neps = [\n '2/255',\n '9',\n]\n", r"Key 'robustness\.eps\.1' .*, line 2, is not valid: '9'"),
        ("[counterfactual]\nmethod = 3\n", r"Key 'counterfactual\.method' .*, line 2, is not valid"),
        ("[[classifiers]]\nname = 'a'\nfile = 'a.pt'\n[[classifiers]]\nfile = 'b.pt'\n", "missing .*, line 4: add"),
        ("[reliance]\nmin_grup = 5\nregions = 1\n", r"Unknown key 'reliance\.min_grup' .*, line 2: .* 'min_group'"),
    ],
)
def test_an_error_names_the_line(text: str, said: str, tmp_path: Path) -> None:
    classifiers = "" if "classifiers" in text else "[[classifiers]]\nname = 'a'\nfile = 'a.pt'\n"
    (tmp_path / "audit.toml").write_text(f"{text}{classifiers}[data]\npath = 'x'\n")
    with pytest.raises(ConfigError, match=said):
        load_config(tmp_path / "audit.toml")


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"robustness": {"bootstrap": 100}}, r"it is a key of \[ranking\], move it there\.$"),
        ({"ranking": {"zzz": "1GB"}}, r"remove it, or write one of validity, .*separation\.$"),
    ],
)
def test_an_unknown_key_that_is_like_no_other_there(values: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        parsed(**values)


def test_a_byte_order_mark_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "notepad.toml").write_text("\ufeffseed = 3", encoding="utf-8")
    assert read_toml(tmp_path / "notepad.toml") == {"seed": 3}
