"""A package of somebody else, written and made importable by a test: how parts come in by entry points."""

import sys
from pathlib import Path

import pytest


def install(folder: Path, monkeypatch: pytest.MonkeyPatch, entry_point: str, code: str) -> None:
    """Write a package `outside_part` 1.0 with `code` and its `entry_point`, "group: name = attribute", into `folder`.

    It is what `pip install` leaves behind: the module and a `.dist-info` folder, on `sys.path` for this test only.
    """
    group, _, line = entry_point.partition(":")
    name, _, attribute = line.partition("=")
    package = folder / "site"
    info = package / "outside_part-1.0.dist-info"
    info.mkdir(parents=True)
    (package / "outside_part.py").write_text(code)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: outside-part\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[{group.strip()}]\n{name.strip()} = outside_part:{attribute.strip()}\n")
    monkeypatch.syspath_prepend(str(package))
    monkeypatch.delitem(sys.modules, "outside_part", raising=False)
