"""Files by name and those of a training: in place of their own kind only."""

from pathlib import Path

import pytest

from audit.errors import ConfigError
from audit.storage.own_files import check_own, claim, write_own


def test_a_file_by_name_takes_the_place_of_its_own_kind_only(tmp_path: Path) -> None:
    file = tmp_path / "summary.md"
    check_own(file, "## Gate ")
    write_own(file, "## Gate passed")
    check_own(file, "## Gate ")
    (tmp_path / "empty").write_text("")
    check_own(tmp_path / "empty", "## Gate ")
    file.write_text("my notes")
    with pytest.raises(ConfigError, match="was not written by this command"):
        check_own(file, "## Gate ")
    with pytest.raises(ConfigError, match="is a folder"):
        check_own(tmp_path, "## Gate ")
    check_own(Path("/dev/null"), "## Gate ")
    write_own(Path("/dev/null"), "## Gate")


def test_a_training_replaces_only_what_a_training_wrote(tmp_path: Path) -> None:
    out, names = tmp_path / "out", ("net.safetensors", "net.json", "net.pt")
    claim(out, names, "net.pt")
    (out / "net.safetensors").write_text("ours")
    claim(out, names, "net.pt")
    with pytest.raises(ConfigError, match=r"read by this training"):
        claim(out, names, "net.pt", (None, str(out / "net.safetensors")))
    other = tmp_path / "other"
    other.mkdir()
    (other / "net.json").write_text("mine")
    with pytest.raises(ConfigError, match=r"net.json' is there and was not written by a training"):
        claim(other, names, "net.pt")
    assert [(one.name, one.read_text()) for one in other.iterdir()] == [("net.json", "mine")]
    (other / "net.pt").write_text("a run to go on with, or to be refused by the training")
    claim(other, names, "net.pt")
