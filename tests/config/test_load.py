"""Relative paths are relative to the file."""

from pathlib import Path

import pytest
from support_config import TOML, parsed

from audit.config import load_config, resolve_path, resolve_paths


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
    config = resolve_paths(parsed(generator={}), tmp_path)
    assert config.data.path == "phantom"
    assert config.generator is not None
    assert config.generator.path == "shipped:phantom"
    assert config.inversion.encoder is None
    assert resolve_path("~/x", tmp_path) == str(Path.home().resolve() / "x")
    assert resolve_paths(config, Path("/other")) == config
