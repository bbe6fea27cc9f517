"""The configuration: defaults, one-sentence errors with the nearest valid name, and paths relative to the file."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from audit.config import (
    AuditConfig,
    ClassifierConfig,
    DataConfig,
    RelianceConfig,
    RobustnessConfig,
    eps_value,
    load_config,
    parse_config,
    read_toml,
    resolve_path,
    resolve_paths,
)
from audit.errors import ConfigError

MINIMAL = {"data": {"path": "phantom"}, "classifiers": [{"name": "a", "checkpoint": "shipped:plain"}]}


def _merge(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in changes.items():
        merged[key] = _merge(merged[key], value) if isinstance(value, dict) and key in merged else value
    return merged


def _parse(**changes: Any) -> AuditConfig:
    return parse_config(AuditConfig, _merge(MINIMAL, changes), "'audit.toml'")


def test_a_minimal_audit_has_defaults() -> None:
    config = _parse()
    assert config.generator is None
    assert config.data.audit_split == "test"
    assert config.robustness.eps == ("2/255", "8/255")
    assert parse_config(AuditConfig, config.model_dump(), "again") == config
    assert parse_config(AuditConfig, config.model_dump(mode="json"), "again") == config


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
        _parse(**changes)
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
        _parse(**changes)
    assert "'audit.toml'" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_key_is_named() -> None:
    with pytest.raises(ConfigError, match=r"^Key 'data' is missing in 'x': add it\.$"):
        parse_config(AuditConfig, {"classifiers": MINIMAL["classifiers"]}, "'x'")
    with pytest.raises(ConfigError, match=r"Key 'classifiers\.0\.name' is missing"):
        _parse(classifiers=[{"checkpoint": "shipped:plain"}])


@pytest.mark.parametrize(
    ("classifier", "match"),
    [
        ({}, "exactly one of .* given: none"),
        ({"architecture": "resnet18", "file": "a.pt"}, "given: architecture, file"),
        ({"architecture": "resnet18"}, "needs a checkpoint beside its architecture"),
        ({"factory": "m:f", "weights_key": "ema"}, "'weights_key' of classifier .* would have no effect"),
        ({"checkpoint": "shipped:nothing"}, "not one of the shipped weights"),
    ],
)
def test_a_classifier_comes_from_one_source(classifier: dict[str, Any], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        _parse(classifiers=[{"name": "a", **classifier}])


@pytest.mark.parametrize(
    "classifier",
    [
        {"checkpoint": "shipped:trades"},
        {"checkpoint": "a.safetensors"},
        {"architecture": "hf-hub:me/owls"},
        {"architecture": "resnet18", "checkpoint": "a.pt"},
        {"architecture": "convnext_atto", "checkpoint": "shipped:plain"},
        {"factory": "package.module:f", "checkpoint": "a.safetensors"},
        {"file": "a.pt2"},
    ],
)
def test_every_kind_of_classifier_is_accepted(classifier: dict[str, Any]) -> None:
    assert _parse(classifiers=[{"name": "a", **classifier}]).classifiers[0].name == "a"


def test_classifier_names_differ() -> None:
    with pytest.raises(ConfigError, match="must differ; used twice: a"):
        _parse(classifiers=MINIMAL["classifiers"] * 2)


def test_judges_have_names_of_their_own_and_are_copies_of_audited_classifiers(tmp_path: Path) -> None:
    judge = {"name": "b", "architecture": "resnet18", "checkpoint": "b.pt", "copy_of": "a"}
    config = _parse(judge_checkpoints=[judge])
    assert config.judge_checkpoints[0].copy_of == "a"
    assert resolve_paths(config, tmp_path).judge_checkpoints[0].checkpoint == str(tmp_path / "b.pt")
    with pytest.raises(ConfigError, match="must differ; used twice: a"):
        _parse(judge_checkpoints=[judge | {"name": "a"}])
    with pytest.raises(ConfigError, match="copy_of 'c', which is no audited classifier: name one of a"):
        _parse(judge_checkpoints=[judge | {"copy_of": "c"}])


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 255))
def test_eps_keeps_its_text_and_has_its_value(numerator: int) -> None:
    text = f"{numerator}/255"
    config = parse_config(RobustnessConfig, {"eps": [text, 0.03]}, "x")
    assert config.eps == (text, "0.03")
    assert eps_value(text) == numerator / 255


TOML = """
seed = 7
[data]
path = "set/manifest.csv"
[generator]
path = "weights/generator.safetensors"
[inversion]
encoder = "../encoder.safetensors"
[[classifiers]]
name = "mine"
architecture = "resnet18"
checkpoint = "mine.pt"
[[classifiers]]
name = "exported"
file = "/models/exported.pt2"
[[classifiers]]
name = "shipped"
checkpoint = "shipped:plain"
"""


def test_paths_are_relative_to_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "audits"
    folder.mkdir()
    (folder / "audit.toml").write_text(TOML)
    for working_folder, name in (
        (tmp_path, "audits/audit.toml"),
        (folder, "audit.toml"),
        (Path("/"), folder / "audit.toml"),
    ):
        monkeypatch.chdir(working_folder)
        config = load_config(name)
        assert config.data.path == str(folder / "set" / "manifest.csv")
        assert config.generator is not None
        assert config.generator.path == str(folder / "weights" / "generator.safetensors")
        assert config.inversion.encoder == str(tmp_path / "encoder.safetensors")
        assert config.classifiers[0].checkpoint == str(folder / "mine.pt")
        assert config.classifiers[1].file == "/models/exported.pt2"
        assert config.classifiers[2].checkpoint == "shipped:plain"
        assert config.seed == 7


def test_names_that_are_no_paths_stay(tmp_path: Path) -> None:
    config = resolve_paths(_parse(generator={}), tmp_path)
    assert config.data.path == "phantom"
    assert config.generator is not None
    assert config.generator.path == "shipped:phantom"
    assert config.inversion.encoder is None
    assert resolve_path("~/x", tmp_path) == str(Path.home().resolve() / "x")
    assert resolve_paths(config, Path("/other")) == config


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
        _parse(**values)


def test_a_byte_order_mark_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "notepad.toml").write_text("\ufeffseed = 3", encoding="utf-8")
    assert read_toml(tmp_path / "notepad.toml") == {"seed": 3}


def test_sections_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="frozen"):
        DataConfig(path="phantom").path = "other"  # type: ignore[misc]


@pytest.mark.parametrize(
    ("text", "key", "value"),
    [("0.5/255", "0.5/255", 0.5 / 255), (" 4 / 255", "4/255", 4 / 255), ("8/255.0", "8/255.0", 8 / 255)],
)
def test_radii_may_be_fractions_of_decimals_with_spaces(text: str, key: str, value: float) -> None:
    config = parse_config(RobustnessConfig, {"eps": [text], "l2_eps": [text]}, "x")
    assert config.eps == config.l2_eps == (key,)
    assert eps_value(key) == pytest.approx(value, rel=1e-12)


@pytest.mark.parametrize("text", ["1/2/3", "/255", "8/", "0.5/0.0"])
def test_what_is_no_fraction_is_refused(text: str) -> None:
    for table in ({"eps": [text]}, {"l2_eps": [text]}):
        with pytest.raises(ConfigError, match="is not a number such as"):
            parse_config(RobustnessConfig, table, "x")


CLASSIFIER = {"name": "it", "architecture": "resnet18", "checkpoint": "it.pt"}


def test_one_number_of_mean_and_std_and_a_square_size_are_taken() -> None:
    config = parse_config(ClassifierConfig, {**CLASSIFIER, "mean": 0.5, "std": 1, "input_size": [3, 64, 64]}, "x")
    assert (config.mean, config.std, config.input_size) == ((0.5,), (1.0,), 64)


@pytest.mark.parametrize(
    ("table", "sentence"),
    [
        (
            {"mean": [123.675, 116.28, 103.53], "std": [58.395, 57.12, 57.375]},
            r"mean = \[123\.675, .* set mean = \[0\.485, 0\.456, 0\.406\], std = \[0\.229, 0\.224, 0\.225\]",
        ),
        # As the networks of Caffe: 0 to 255 less the mean, and nothing else.
        ({"mean": [104, 117, 123], "std": [1, 1, 1]}, r"set mean = \[0\.4078, .*\], std = \[0\.003922, "),
        ({"std": 57.0}, r"std = \[57\] is in units of 0 to 255 .* set std = \[0\.2235\]"),
        ({"mean": 30000.0, "std": 10000.0}, r"0 to 65535 .* set mean = \[0\.4578\], std = \[0\.1526\]"),
        ({"std": [0.2, 0.0, 0.2]}, "not above 0"),
        ({"std": -0.2}, "not above 0"),
        ({"mean": [-0.5]}, "below 0"),
        ({"mean": "0.5"}, "'0.5' is not a number or a list of numbers"),
        ({"mean": []}, "is not a number or a list of numbers"),
        ({"std": True}, "is not a number or a list of numbers"),
        ({"input_size": [224, 200]}, "is not one side of a square"),
    ],
)
def test_wrong_normalisations_are_refused_with_the_right_value(table: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence) as caught:
        parse_config(ClassifierConfig, {**CLASSIFIER, **table}, "x")
    assert "\n" not in str(caught.value)


def test_an_effort_stands_in_for_defaults_and_a_given_key_wins(tmp_path: Path) -> None:
    given = {"n": 7, "trust": {"square_queries": 9}, "distance": True}
    quick = _parse(effort="quick", robustness=given, preset="spruce-thesis").robustness
    assert quick.trust is not None
    assert (quick.n, quick.steps, quick.trust.n, quick.trust.square_queries) == (7, 10, 32, 9)
    assert quick.corruptions is None
    assert _parse(effort="quick", preset="spruce-thesis").counterfactual.choose == "last"
    assert _parse(effort="quick", reliance=False).reliance is None
    assert _parse(effort="quick", robustness={"trust": False}).robustness.trust is None
    standard, default = _parse(effort="standard"), _parse()
    assert standard == default
    assert quick.steps < default.robustness.steps < _parse(effort="thorough").robustness.steps
    (tmp_path / "a.toml").write_text('effort = "quick"\n' + TOML)
    assert load_config(tmp_path / "a.toml").effort == "quick"
    assert load_config(tmp_path / "a.toml", "thorough").reliance == RelianceConfig(n=500)
    with pytest.raises(ConfigError, match=r"Key 'robustness' .* is not valid"):
        _parse(effort="quick", robustness=3)


def test_a_preset_stands_in_for_defaults_and_a_given_key_wins() -> None:
    config = _parse(preset="spruce-thesis", counterfactual={"steps": 30})
    search = config.counterfactual
    assert (search.loss, search.balance, search.shrink, search.choose) == ("raw", "fixed", False, "last")
    assert (search.perceptual_weight, search.latent_weight, search.image_weight) == (0.1, 1e-4, 1e-6)
    assert (search.operating_point_cap, search.steps) == (1.0, 30)
    assert (config.inversion.perceptual_weight, config.metrics.perceptual) == (1.0, "lpips-vgg")
    own = {"counterfactual": {"choose": "sparsest"}, "metrics": {"perceptual": "auto"}}
    changed = _parse(preset="spruce-thesis", **own)
    assert (changed.counterfactual.choose, changed.metrics.perceptual) == ("sparsest", "auto")
    assert (changed.counterfactual.loss, changed.inversion.perceptual_weight) == ("raw", 1.0)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"preset": "thesis"}, "Key 'preset' in 'audit.toml' is not valid: Input should be 'spruce-thesis'"),
        ({"preset": "spruce-thesis", "counterfactual": {"shrink": True}}, "set shrink = false or choose = 'reached'"),
        ({"preset": "spruce-thesis", "inversion": 3}, "Key 'inversion' in 'audit.toml' is not valid"),
        ({"counterfactual": {"choose": "last"}}, "set shrink = false or choose = 'reached'"),
    ],
)
def test_what_does_not_go_with_a_preset_is_refused(changes: dict[str, Any], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        _parse(**changes)
