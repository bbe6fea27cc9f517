"""What an audit says of canonical networks whose weights are not on the machine."""

from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest
import torch

from audit.config import PRESETS, AuditConfig, load_config
from audit.data.audit_set import AuditSet
from audit.data.demo import demo_config
from audit.data.phantom import phantom_set
from audit.errors import ConfigError, GeneratorError, MetricError
from audit.generator.features import DiscriminatorFeatures
from audit.generator.files.load import load_generator, save_generator
from audit.pipeline.networks import check_embeddings, judged_by_steering, load_networks
from audit.pipeline.runner import run_audit

CPU = torch.device("cpu")
NAMES = ("inception-v3-fid", "lpips-v0.1-vgg", "clip-vit-large-patch14-336")


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AuditConfig:
    """The demo's configuration on a machine without canonical weights."""
    monkeypatch.setenv("SPRUCE_AUDIT_WEIGHTS", str(tmp_path))
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    monkeypatch.setattr("audit.storage.pretrained.importlib.util.find_spec", lambda name: None)
    return load_config(demo_config())


def choose(config: AuditConfig, canonical: Literal["auto", "off", "require"]) -> AuditConfig:
    return config.model_copy(update={"metrics": config.metrics.model_copy(update={"canonical": canonical})})


@pytest.fixture
def data(config: AuditConfig) -> AuditSet:
    return phantom_set(2, 2, config.seed)


def test_absent_networks_are_not_computed_and_the_remedy_is_named(config: AuditConfig, data: AuditSet) -> None:
    networks = load_networks(choose(config, "auto"), data, CPU)
    assert (networks.canonical, networks.lpips) == ([], None)
    whys = " ".join(one.why for one in networks.missing)
    assert all(f"spruce-audit weights pull {name}" in whys for name in NAMES)
    assert [p for one in networks.missing for p in one.paths] == [
        f"counterfactuals.{m}" for m in ("fid", "lpips", "cmmd")
    ]


def test_required_networks_fail_with_the_command_that_fetches_them(config: AuditConfig, data: AuditSet) -> None:
    with pytest.raises(MetricError, match=f"'require' but .* run `spruce-audit weights pull {' '.join(NAMES)}`"):
        load_networks(choose(config, "require"), data, CPU)


def test_the_preset_of_the_thesis_asks_for_lpips(config: AuditConfig, data: AuditSet) -> None:
    preset = config.model_copy(
        update={"metrics": config.metrics.model_copy(update=PRESETS["spruce-thesis"]["metrics"])}
    )
    check_embeddings(preset)
    with pytest.raises(MetricError, match=r"run `spruce-audit weights pull lpips-v0\.1-vgg`"):
        load_networks(choose(preset, "off"), data, CPU)


def test_off_says_nothing(config: AuditConfig, data: AuditSet) -> None:
    assert load_networks(choose(config, "off"), data, CPU).missing == []


def test_numbers_of_the_network_that_steers_the_edit_are_named(config: AuditConfig, data: AuditSet) -> None:
    networks = load_networks(choose(config, "off"), data, CPU)
    own = "counterfactuals.perceptual"
    assert judged_by_steering(config, networks) == [own, "components.realism", "counterfactuals.judges"]
    other = replace(networks, perceptual=DiscriminatorFeatures(networks.loaded.discriminator))
    assert judged_by_steering(config, other) == [own]
    canonical = replace(other, lpips=other.perceptual)
    assert judged_by_steering(config, canonical) == [own, "counterfactuals.lpips"]
    unweighted = {
        key: getattr(config, key).model_copy(update={"perceptual_weight": 0.0})
        for key in ("inversion", "counterfactual")
    }
    assert judged_by_steering(config.model_copy(update=unweighted), networks) == []


def with_generator(config: AuditConfig, file: Path, embedding: str) -> AuditConfig:
    """The configuration with another generator file and embedding, and without encoder and canonical networks."""
    assert config.generator is not None
    return config.model_copy(
        update={
            "generator": config.generator.model_copy(update={"path": str(file)}),
            "inversion": config.inversion.model_copy(update={"encoder": None}),
            "metrics": config.metrics.model_copy(
                update={"embedding": embedding, "perceptual": embedding, "canonical": "off"}
            ),
        }
    )


@pytest.mark.parametrize("faulty", [False, True])
def test_a_generator_without_a_usable_discriminator_is_audited_with_an_embedding(
    config: AuditConfig, data: AuditSet, tmp_path: Path, faulty: bool
) -> None:
    shipped = load_generator("shipped:phantom")
    judge = shipped.discriminator if faulty else None
    if judge is not None:
        judge.b4.out.bias.fill_(torch.nan)
    file = tmp_path / "g.safetensors"
    save_generator(file, shipped.generator, judge, {})
    with pytest.raises(GeneratorError, match=r"metrics\.embedding .*train embedding") as error:
        load_networks(with_generator(config, file, "discriminator"), data, CPU)
    assert ("cannot be used" in str(error.value), "NaN" in str(error.value)) == (faulty, faulty)
    networks = load_networks(with_generator(config, file, "phantom-factors"), data, CPU)
    said = [(notice.subject, notice.text) for notice in networks.notices]
    assert len(said) == faulty
    assert all(subject == "generator" and "left out" in text and "NaN" in text for subject, text in said)


def with_metrics(config: AuditConfig, **values: str) -> AuditConfig:
    return config.model_copy(update={"metrics": config.metrics.model_copy(update={"canonical": "off", **values})})


def test_another_embedding_leaves_the_perceptual_distance_as_it_is_and_says_so(
    config: AuditConfig, data: AuditSet
) -> None:
    usual = load_networks(with_metrics(config), data, CPU)
    assert (usual.embedding.name, usual.perceptual.name, usual.notices) == ("phantom-factors", "phantom-factors", [])
    other = load_networks(with_metrics(config, embedding="discriminator"), data, CPU)
    assert (other.embedding.name, other.perceptual.name) == ("discriminator", "phantom-factors")
    (notice,) = other.notices
    assert notice.kind == "perceptual-embedding"
    assert "no longer on 'discriminator'" in notice.text
    chosen = load_networks(with_metrics(config, embedding="discriminator", perceptual="discriminator"), data, CPU)
    assert (chosen.embedding.name, chosen.perceptual.name, chosen.notices) == ("discriminator", "discriminator", [])
    steered = load_networks(with_metrics(config, perceptual="discriminator"), data, CPU)
    assert (steered.embedding.name, steered.perceptual.name, steered.notices) == (
        "phantom-factors",
        "discriminator",
        [],
    )


def test_a_word_that_names_no_embedding_is_refused_before_data_is_read(config: AuditConfig) -> None:
    nowhere = config.model_copy(update={"data": config.data.model_copy(update={"path": "/nowhere", "format": "auto"})})
    for key, value in (("embedding", "discriminater"), ("perceptual", "discriminator-"), ("perceptual", "auto.pt")):
        with pytest.raises(ConfigError, match=rf"metrics\.{key}.*'{value}' is no embedding: did you mean"):
            run_audit(with_metrics(nowhere, **{key: value}))
    with pytest.raises(ConfigError, match=r"metrics\.perceptual.*'inception' is no embedding"):
        run_audit(with_metrics(nowhere, perceptual="inception"))
