"""Files: their hash, and writing that leaves the whole of the new or the old one."""

import os
import stat
from pathlib import Path

import pytest

from audit.storage.files import atomic_write_bytes, atomic_write_text, hash_file


def test_hash_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "abc").write_bytes(b"abc")
    assert hash_file(tmp_path / "abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_atomic_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "new" / "file.json"
    atomic_write_text(path, "größe")
    assert path.read_text(encoding="utf-8") == "größe"
    umask = os.umask(0)
    os.umask(umask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~umask

    def full_disk(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="No space left") as caught:
        atomic_write_bytes(path, b"half")
    assert caught.value.filename == str(path)
    assert path.read_text(encoding="utf-8") == "größe"
    assert [p.name for p in path.parent.iterdir()] == ["file.json"]


def test_text_with_half_a_character_is_written(tmp_path: Path) -> None:
    """File names in another coding than UTF-8 reach Python as lone surrogates."""
    atomic_write_text(tmp_path / "a.txt", "caf\udce9")
    assert (tmp_path / "a.txt").read_text(encoding="utf-8") == "caf\\udce9"
